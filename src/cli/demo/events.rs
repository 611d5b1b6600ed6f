//! The number and rate of the sample events. Pure.

use std::time::Duration;

/// The number and rate of events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) per_second: u32,
    pub(super) duration: Duration,
}

impl Flow {
    /// The number of events.
    pub(super) fn events(self) -> u32 {
        self.due(self.duration).max(1)
    }

    /// Events due after `elapsed`.
    pub(super) fn due(self, elapsed: Duration) -> u32 {
        let elapsed = elapsed.min(self.duration);
        (elapsed.as_secs_f64() * f64::from(self.per_second)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_due_evenly_until_the_end() {
        let flow = Flow {
            per_second: 20,
            duration: Duration::from_secs(8),
        };
        let due = |ms| flow.due(Duration::from_millis(ms));
        assert_eq!(
            [due(0), due(50), due(1000), due(8000), due(90_000)],
            [0, 1, 20, 160, 160]
        );
    }
}
