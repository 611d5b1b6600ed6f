//! Ends the process when a call into the client library hangs.
//!
//! Closing, committing, sending offsets and starting transactions can block forever in librdkafka (issues 453, 5456,
//! 5511), whatever timeout they are given, and no other thread can unblock them. So each such call is registered here,
//! and a watchdog thread checks the oldest. Time without a reachable broker does not count.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::clock;

/// Calls in progress, in reusable slots, and when brokers were last unreachable.
struct Calls {
    slots: Vec<Option<(&'static str, Instant)>>,
    unreachable: Option<Instant>,
    /// Since when all clients have found the brokers unreachable.
    away: Option<Instant>,
}

static CALLS: Mutex<Calls> = Mutex::new(Calls {
    slots: Vec::new(),
    unreachable: None,
    away: None,
});

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call in progress; ends when dropped.
struct Entry(usize);

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(slot) = calls().slots.get_mut(self.0) {
            *slot = None;
        }
    }
}

/// Makes a call that may hang, supervised by the watchdog.
pub(super) fn bounded<T>(what: &'static str, call: impl FnOnce() -> T) -> T {
    let _entry = begin(what);
    call()
}

fn begin(what: &'static str) -> Entry {
    let mut calls = calls();
    let free = calls.slots.iter().position(Option::is_none);
    let at = free.unwrap_or_else(|| {
        calls.slots.push(None);
        calls.slots.len() - 1
    });
    calls.slots[at] = Some((what, clock::instant()));
    Entry(at)
}

/// Notes that a client could not reach any broker.
pub(super) fn unreachable() {
    let now = clock::instant();
    let mut calls = calls();
    calls.unreachable = Some(now);
    calls.away.get_or_insert(now);
}

/// Notes that a client has reached a broker.
pub(super) fn reachable() {
    calls().away = None;
}

/// The reachability of the brokers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Brokers {
    /// No client of this process has reached a broker for a while.
    pub away: bool,
    /// When a client last failed to reach any broker.
    pub unreachable: Option<Instant>,
}

/// The reachability of the brokers at `now`, as probed by the clients of this process every few seconds.
#[must_use]
pub fn brokers(now: Instant) -> Brokers {
    /// Longer than two probes, so that a briefly busy broker does not count as away.
    const AWAY: Duration = Duration::from_secs(8);
    let calls = calls();
    let since = calls.away;
    Brokers {
        away: since.is_some_and(|since| now.saturating_duration_since(since) > AWAY),
        unreachable: calls.unreachable,
    }
}

/// Whether a client failed to reach any broker within the last `time`.
pub(super) fn was_unreachable_within(time: Duration) -> bool {
    let away = calls().unreachable;
    away.is_some_and(|away| clock::instant().saturating_duration_since(away) < time)
}

/// The longest call over `bound`, with its duration while brokers were reachable.
fn hanging(calls: &Calls, now: Instant, bound: Duration) -> Option<(&'static str, Duration)> {
    let oldest = calls.slots.iter().flatten().map(|&(what, since)| {
        let counted_from = calls.unreachable.map_or(since, |away| away.max(since));
        (what, now.saturating_duration_since(counted_from))
    });
    oldest
        .filter(|&(_, age)| age > bound)
        .max_by_key(|&(_, age)| age)
}

/// Watches until the process ends; calls `give_up` with a message when a call exceeds `bound`.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(bound: Duration, give_up: impl Fn(String) + Send + 'static) -> std::io::Result<()> {
    let every = (bound / 10).min(Duration::from_secs(1));
    let look = move || {
        loop {
            std::thread::sleep(every);
            let found = hanging(&calls(), clock::instant(), bound);
            if let Some((what, age)) = found {
                give_up(format!(
                    "{what} hangs in the Kafka client for {age:.0?} while brokers are reachable (--hang-deadline {bound:?}); exiting, unfinished work is repeated after the restart"
                ));
            }
        }
    };
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(look)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::{Calls, hanging};
    use std::time::Duration;

    const BOUND: Duration = Duration::from_secs(10);

    #[test]
    fn the_oldest_call_over_the_bound_is_named() {
        let now = crate::edge::clock::instant();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut calls = Calls {
            slots: vec![Some(("a", ago(9))), None, Some(("b", ago(8)))],
            unreachable: None,
            away: None,
        };
        assert_eq!(hanging(&calls, now, BOUND), None);
        calls.slots.push(Some(("c", ago(12))));
        calls.slots.push(Some(("d", ago(11))));
        assert_eq!(
            hanging(&calls, now, BOUND),
            Some(("c", Duration::from_secs(12)))
        );
    }

    #[test]
    fn the_time_without_a_broker_does_not_count() {
        let now = crate::edge::clock::instant();
        let ago = |seconds| now.checked_sub(Duration::from_secs(seconds)).unwrap();
        let mut calls = Calls {
            slots: vec![Some(("a", ago(60)))],
            unreachable: Some(ago(9)),
            away: None,
        };
        assert_eq!(hanging(&calls, now, BOUND), None);
        calls.unreachable = Some(ago(11));
        assert_eq!(
            hanging(&calls, now, BOUND),
            Some(("a", Duration::from_secs(11)))
        );
    }
}
