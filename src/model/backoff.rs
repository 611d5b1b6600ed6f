//! The retry schedule: the delay between a failed attempt and the next one. Also the delays within an attempt that the
//! server refuses to process.
//!
//! Jitter spreads the retries of commands that failed together. `Retry-After` can only lengthen a delay, so that an
//! endpoint cannot make hookstream retry faster, and only up to a cap, so that it cannot delay a retry forever.

use std::time::Duration;

/// The jitter, as a share of the delay in either direction.
pub const JITTER: f64 = 0.2;

/// The longest delay that `Retry-After` can cause.
pub const RETRY_AFTER_CAP: Duration = Duration::from_secs(24 * 3600);

/// The delay before the next attempt, after `attempts` attempts; `None` at the end of the schedule.
///
/// `chance` is uniform in 0..1 and determines the jitter.
#[must_use]
pub fn next_delay(
    schedule: &[Duration],
    attempts: u32,
    retry_after: Option<Duration>,
    chance: f64,
) -> Option<Duration> {
    let index = usize::try_from(attempts).ok()?.checked_sub(1)?;
    let base = *schedule.get(index)?;
    let delay = jittered(base, chance);
    Some(delay.max(retry_after.unwrap_or_default().min(RETRY_AFTER_CAP)))
}

/// The delay before a request is sent again after the server has refused it `refusals` times before it processed it:
/// at once, then doubling; `None` when others should get their turn first.
#[must_use]
pub fn resend_delay(refusals: u32, chance: f64) -> Option<Duration> {
    /// The delay before the second time.
    const FIRST: Duration = Duration::from_millis(100);
    match refusals {
        0 | 1 => Some(Duration::ZERO),
        2..=5 => Some(jittered(FIRST * 2_u32.pow(refusals - 2), chance)),
        _ => None,
    }
}

/// `base` with jitter of up to [`JITTER`]; `chance` is uniform in 0..1.
#[must_use]
pub fn jittered(base: Duration, chance: f64) -> Duration {
    base.mul_f64(1.0 + JITTER * (2.0 * chance.clamp(0.0, 1.0) - 1.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCHEDULE: [Duration; 3] = [
        Duration::from_secs(5),
        Duration::from_secs(300),
        Duration::from_secs(1800),
    ];

    #[test]
    fn the_schedule_ends() {
        assert_eq!(next_delay(&SCHEDULE, 1, None, 0.5), Some(SCHEDULE[0]));
        assert_eq!(next_delay(&SCHEDULE, 3, None, 0.5), Some(SCHEDULE[2]));
        assert_eq!(next_delay(&SCHEDULE, 4, None, 0.5), None);
        assert_eq!(next_delay(&[], 1, None, 0.5), None);
    }

    #[test]
    fn retry_after_only_lengthens_and_only_up_to_its_cap() {
        let after = |seconds| next_delay(&SCHEDULE, 1, Some(Duration::from_secs(seconds)), 0.5);
        assert_eq!(after(1), Some(SCHEDULE[0]));
        assert_eq!(after(60), Some(Duration::from_secs(60)));
        assert_eq!(after(u64::MAX), Some(RETRY_AFTER_CAP));
    }

    #[test]
    fn a_refused_request_is_sent_again_at_once_and_then_more_and_more_rarely() {
        let delays: Vec<_> = (1..)
            .map_while(|refusals| resend_delay(refusals, 0.5))
            .map(|delay| delay.as_millis())
            .collect();
        assert_eq!(delays, [0, 100, 200, 400, 800]);
    }

    proptest! {
        #[test]
        fn jitter_stays_within_its_share(attempt in 1..4_u32, chance in 0.0..1.0_f64) {
            let base = SCHEDULE[attempt as usize - 1].as_secs_f64();
            let delay = next_delay(&SCHEDULE, attempt, None, chance).unwrap().as_secs_f64();
            prop_assert!((base * 0.799..=base * 1.201).contains(&delay), "{delay} is not within 20 % of {base}");
        }
    }
}
