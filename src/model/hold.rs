//! A hold: roles of all replicas stop for as long as a command of an operator needs it, and start again by themselves.
//!
//! It is a lease: the command renews it while it runs, and roles look for it every few seconds. One that is not renewed
//! ends after [`LEASE`], also when the command was killed. Roles that hold leave their consumer groups, so the command sees
//! from the members of a group whether all have stopped, an older version that knows no holds included.
//!
//! It is kept as the commit metadata of a group that nobody joins: no topic, no permission and no reader of its own. What
//! a lease is worth is measured from when a look finds it changed, so that clocks need not agree.

use std::time::{Duration, Instant};

use super::units::EpochMs;

/// How long a hold lasts that is not renewed.
pub const LEASE: Duration = Duration::from_secs(30);
/// How often a command renews its hold, and how often roles look for one.
pub const LOOK_EVERY: Duration = Duration::from_secs(3);
/// A hold that was renewed so long ago, by the clock of who wrote it, is that of a command that was killed: a process that
/// starts does not wait for it. Clocks may differ by less than that.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// What the text begins with, and its version.
const PREFIX: &str = "hold ";
const VERSION: &str = "1";

/// The roles that hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldRoles {
    /// Fan-out takes no events.
    pub fanout: bool,
    /// Release moves no retries.
    pub release: bool,
}

impl HeldRoles {
    /// No role.
    pub const NONE: Self = Self {
        fanout: false,
        release: false,
    };
    /// Fan-out only.
    pub const FANOUT: Self = Self {
        fanout: true,
        release: false,
    };
    /// Fan-out and release: nothing new comes into the commands.
    pub const BOTH: Self = Self {
        fanout: true,
        release: true,
    };

    fn names(self) -> &'static str {
        match (self.fanout, self.release) {
            (false, false) => "none",
            (true, false) => "fanout",
            (false, true) => "release",
            (true, true) => "fanout,release",
        }
    }

    fn of_names(names: &str) -> Option<Self> {
        let mut roles = Self::NONE;
        for name in names.split(',') {
            match name {
                "none" => {}
                "fanout" => roles.fanout = true,
                "release" => roles.release = true,
                _ => return None,
            }
        }
        Some(roles)
    }
}

/// The text of a hold that is written at `now`. `number` differs each time.
#[must_use]
pub fn text(roles: HeldRoles, number: u64, now: EpochMs) -> String {
    format!("{PREFIX}{VERSION} {} {number} {}", roles.names(), now.0)
}

/// What a text says; `None` when it is no hold. One of a newer version holds both roles: whoever wrote it relies on that.
fn read(text: &str) -> Option<(HeldRoles, Option<EpochMs>)> {
    let mut words = text.strip_prefix(PREFIX)?.split(' ');
    if words.next() != Some(VERSION) {
        return Some((HeldRoles::BOTH, None));
    }
    let roles = HeldRoles::of_names(words.next()?)?;
    let written = words.nth(1).and_then(|word| word.parse().ok());
    Some((roles, written.map(EpochMs)))
}

/// What a process knows of holds.
#[derive(Debug, Default)]
pub struct Watch {
    seen: Option<String>,
    roles: HeldRoles,
    /// When the hold ends unless it is renewed.
    until: Option<Instant>,
}

impl Watch {
    /// A look has found this text.
    pub fn saw(&mut self, text: Option<&str>, now: Instant, wall: EpochMs) {
        if text == self.seen.as_deref() {
            return;
        }
        let is_first = self.seen.is_none();
        self.seen = text.map(str::to_owned);
        let (roles, written) = text.and_then(read).unwrap_or_default();
        let forgotten = i64::try_from(FORGOTTEN.as_millis()).unwrap_or(i64::MAX);
        let is_forgotten =
            is_first && written.is_some_and(|written| wall.0.saturating_sub(written.0) > forgotten);
        self.roles = roles;
        self.until = (!is_forgotten && roles != HeldRoles::NONE).then(|| now + LEASE);
    }

    /// The roles that hold now.
    #[must_use]
    pub fn held(&self, now: Instant) -> HeldRoles {
        match self.until {
            Some(until) if now < until => self.roles,
            _ => HeldRoles::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: EpochMs = EpochMs(1_700_000_000_000);

    fn start() -> Instant {
        #[allow(clippy::disallowed_methods, reason = "an arbitrary beginning")]
        Instant::now()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_hold_lasts_while_it_is_renewed_and_no_longer() {
        let (mut watch, start) = (Watch::default(), start());
        assert_eq!(watch.held(start), HeldRoles::NONE);
        for number in 0..20 {
            let now = start + s(3 * number);
            watch.saw(Some(&text(HeldRoles::FANOUT, number, WALL)), now, WALL);
            assert_eq!(watch.held(now + s(3)), HeldRoles::FANOUT);
        }
        let last = start + s(57);
        // The same text again is no renewal.
        let same = text(HeldRoles::FANOUT, 19, WALL);
        watch.saw(Some(&same), last + s(29), WALL);
        assert_eq!(watch.held(last + s(29)), HeldRoles::FANOUT);
        assert_eq!(watch.held(last + s(30)), HeldRoles::NONE);
        watch.saw(Some(&same), last + s(31), WALL);
        assert_eq!(watch.held(last + s(31)), HeldRoles::NONE, "it stays ended");
    }

    #[test]
    fn a_hold_ends_when_its_command_says_so() {
        let (mut watch, now) = (Watch::default(), start());
        watch.saw(Some(&text(HeldRoles::BOTH, 1, WALL)), now, WALL);
        assert_eq!(watch.held(now), HeldRoles::BOTH);
        watch.saw(Some(&text(HeldRoles::NONE, 2, WALL)), now, WALL);
        assert_eq!(watch.held(now), HeldRoles::NONE);
        watch.saw(Some(&text(HeldRoles::BOTH, 3, WALL)), now, WALL);
        watch.saw(None, now, WALL);
        assert_eq!(watch.held(now), HeldRoles::NONE, "the group is gone");
    }

    #[test]
    fn a_process_that_starts_waits_for_no_hold_of_a_command_that_was_killed_long_ago() {
        let (mut watch, now) = (Watch::default(), start());
        let old = EpochMs(WALL.0 - 601_000);
        watch.saw(Some(&text(HeldRoles::BOTH, 1, old)), now, WALL);
        assert_eq!(watch.held(now), HeldRoles::NONE);
        // Somebody whose clock is wrong renews it.
        watch.saw(Some(&text(HeldRoles::BOTH, 2, old)), now, WALL);
        assert_eq!(watch.held(now), HeldRoles::BOTH);
    }

    #[test]
    fn a_newer_version_holds_both_roles_and_other_texts_none() {
        for (text, expected) in [
            ("hold 2 deliver 7", HeldRoles::BOTH),
            ("hold 1 fanout 1 2", HeldRoles::FANOUT),
            (
                "hold 1 release 1 2",
                HeldRoles {
                    fanout: false,
                    release: true,
                },
            ),
            ("hold 1 fanout,release 1", HeldRoles::BOTH),
            ("hold 1 deliver 1 2", HeldRoles::NONE),
            ("hold 1", HeldRoles::NONE),
            ("", HeldRoles::NONE),
            ("first", HeldRoles::NONE),
        ] {
            let (mut watch, now) = (Watch::default(), start());
            watch.saw(Some(text), now, EpochMs(2));
            assert_eq!(watch.held(now), expected, "{text:?}");
        }
    }
}
