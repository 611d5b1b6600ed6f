//! Tiers: retry topics with one fixed delay each. Selects the tier for a record.
//!
//! A record waits in a tier for the tier's full delay, so a tier partition is in due order and only its head needs
//! checking. Any due time is reached by hops through ever shorter tiers.

use std::time::Duration;

use crate::model::units::{EpochMs, format_duration};

/// The configured tiers, shortest first; at least one, all distinct, each at least 1 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers(Vec<Duration>);

impl Tiers {
    /// Creates tiers from delays in any order.
    ///
    /// # Errors
    /// A sentence if there is no delay, a duplicate, or one below 1 ms.
    pub fn new(mut delays: Vec<Duration>) -> Result<Self, String> {
        delays.sort_unstable();
        if delays.is_empty() {
            return Err("at least one tier is needed".to_owned());
        }
        if delays[0] < Duration::from_millis(1) {
            return Err("a tier must be at least 1ms".to_owned());
        }
        if let Some(twice) = delays.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!(
                "the tier {} is named twice",
                format_duration(twice[0])
            ));
        }
        Ok(Self(delays))
    }

    /// The delays, shortest first.
    #[must_use]
    pub fn delays(&self) -> &[Duration] {
        &self.0
    }

    /// The index of the tier for a wait of `rest`: the longest that fits, or else the shortest.
    #[must_use]
    pub fn for_rest(&self, rest: Duration) -> usize {
        self.0
            .partition_point(|&delay| delay <= rest)
            .saturating_sub(1)
    }

    /// What to do at `now` with the head of tier `index`, appended at `appended` and due at `due`.
    #[must_use]
    pub fn at_head(&self, index: usize, appended: EpochMs, due: EpochMs, now: EpochMs) -> Head {
        let leaves = appended + self.0[index];
        if now < leaves {
            return Head::Wait(leaves);
        }
        if now >= due {
            return Head::Due;
        }
        let rest = due.since(now);
        // Another round through the shortest tier would delay it more than waiting here delays the records behind it.
        if rest <= self.0[0] / 2 {
            Head::Wait(due)
        } else {
            Head::Hop(self.for_rest(rest))
        }
    }

    /// How long to park a command that has waited for `waited`: in proportion, so that a short pause costs little delay
    /// and a long one few hops. At most [`LONGEST_PARK`], so that a resume or a recovery takes effect within that time.
    #[must_use]
    pub fn park_for(&self, waited: Duration) -> Duration {
        (waited / 2).clamp(self.0[0], LONGEST_PARK.max(self.0[0]))
    }
}

/// The longest time for which a command is parked at once.
pub const LONGEST_PARK: Duration = Duration::from_secs(600);

/// What to do with the head of a tier partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Leave it until this time, with all records behind it.
    Wait(EpochMs),
    /// Move it to `webhook-commands`.
    Due,
    /// Move it to the tier with this index.
    Hop(usize),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tiers() -> Tiers {
        Tiers::new(
            [5, 30, 120, 600, 3600, 21600]
                .map(Duration::from_secs)
                .to_vec(),
        )
        .unwrap()
    }

    /// Follows a record through the tiers, released as early as possible; returns when it reaches `webhook-commands`.
    fn arrival(tiers: &Tiers, due: EpochMs) -> (EpochMs, u32) {
        let mut now = EpochMs(0);
        let mut tier = tiers.for_rest(due.since(now));
        for hops in 1..10_000 {
            let appended = now;
            loop {
                match tiers.at_head(tier, appended, due, now) {
                    Head::Wait(until) => {
                        assert!(until > now, "waiting must make progress");
                        now = until;
                    }
                    Head::Due => return (now, hops),
                    Head::Hop(next) => {
                        tier = next;
                        break;
                    }
                }
            }
        }
        panic!("a record never arrives");
    }

    proptest! {
        #[test]
        fn a_record_is_never_early_and_at_most_5_s_or_10_percent_late(rest in 1..200_000_000_i64) {
            let (arrived, hops) = arrival(&tiers(), EpochMs(rest));
            prop_assert!(arrived >= EpochMs(rest));
            let late = arrived.0 - rest;
            prop_assert!(late <= 5_000.max(rest / 10), "due after {rest} ms, {late} ms late");
            prop_assert!(hops <= 40, "{hops} hops for {rest} ms");
        }

        #[test]
        fn a_parked_command_is_looked_at_within_ten_minutes(waited in 0..10_000_000_u64) {
            let park = tiers().park_for(Duration::from_secs(waited));
            prop_assert!(park >= Duration::from_secs(5) && park <= LONGEST_PARK);
        }
    }

    #[test]
    fn the_largest_tier_that_fits_is_chosen() {
        let tier = |seconds| tiers().for_rest(Duration::from_secs(seconds));
        assert_eq!(
            [
                tier(0),
                tier(5),
                tier(29),
                tier(30),
                tier(599),
                tier(100_000)
            ],
            [0, 0, 0, 1, 2, 5]
        );
    }

    #[test]
    fn tiers_that_cannot_be_are_refused() {
        assert!(Tiers::new(vec![]).unwrap_err().contains("at least one"));
        assert!(
            Tiers::new(vec![Duration::ZERO])
                .unwrap_err()
                .contains("1ms")
        );
        let twice = Tiers::new([60, 5, 60].map(Duration::from_secs).to_vec()).unwrap_err();
        assert!(twice.contains("1m is named twice"), "{twice}");
    }
}
