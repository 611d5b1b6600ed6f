//! Tiers: retry topics with one fixed delay each. Selects the tier for a record, and how long a command is parked.
//!
//! A record waits in a tier for the tier's full delay, so a tier partition is in due order and only its head needs
//! checking. Any due time is reached by hops through ever shorter tiers. The last hop may end a little late
//! ([`Tiers::for_rest`]), which saves the many short ones for a small rest.
//!
//! A retry is due when its schedule says. When a parked command returns is free to choose, and each hop is an append. So
//! it waits for the delay of a tier, or of two ([`Tiers::at_least`], [`Tiers::at_most`]).

use std::time::Duration;

use crate::model::units::{EpochMs, format_duration};

/// A hop may end late by this share of the rest.
const LATE: u32 = 20;

/// The configured tiers, shortest first; at least one, all distinct, each at least 1 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers {
    delays: Vec<Duration>,
    /// The waits of one hop or two, shortest first.
    waits: Vec<Duration>,
}

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
        let mut tiers = Self {
            delays,
            waits: Vec::new(),
        };
        tiers.waits = tiers.find_waits();
        Ok(tiers)
    }

    /// The delay of each tier, and the sums of two that a record passes in that order.
    fn find_waits(&self) -> Vec<Duration> {
        let mut waits = self.delays.clone();
        for (index, &first) in self.delays.iter().enumerate() {
            let sums = self.delays[..=index].iter().map(|&second| first + second);
            waits.extend(sums.filter(|&sum| self.for_rest(sum) == index));
        }
        waits.sort_unstable();
        waits.dedup();
        waits
    }

    /// The delays, shortest first.
    #[must_use]
    pub fn delays(&self) -> &[Duration] {
        &self.delays
    }

    /// The index of the tier for a wait of `rest`: the shortest that covers it and is at most a twentieth, or half of the
    /// shortest tier, longer; else the longest that fits, or else the shortest.
    #[must_use]
    pub fn for_rest(&self, rest: Duration) -> usize {
        let late = (rest / LATE).max(self.delays[0] / 2);
        let covers = self.delays.partition_point(|&delay| delay < rest);
        match self.delays.get(covers) {
            Some(&delay) if delay - rest <= late => covers,
            _ => covers.saturating_sub(1),
        }
    }

    /// What to do at `now` with the head of tier `index`, appended at `appended` and due at `due`.
    #[must_use]
    pub fn at_head(&self, index: usize, appended: EpochMs, due: EpochMs, now: EpochMs) -> Head {
        let leaves = appended + self.delays[index];
        if now < leaves {
            return Head::Wait(leaves);
        }
        if now >= due {
            return Head::Due;
        }
        let rest = due.since(now);
        // Another round through the shortest tier would delay it more than waiting here delays the records behind it.
        if rest <= self.delays[0] / 2 {
            Head::Wait(due)
        } else {
            Head::Hop(self.for_rest(rest))
        }
    }

    /// How long to park a command that has waited for `waited`: in proportion, so that a short pause costs little delay
    /// and a long one few hops. At most [`LONGEST_PARK`], so that a resume or a recovery takes effect within that time.
    #[must_use]
    pub fn park_for(&self, waited: Duration) -> Duration {
        self.at_most((waited / 2).min(LONGEST_PARK))
    }

    /// The longest wait of at most two hops that is not longer than `wanted`, or else the shortest tier.
    #[must_use]
    pub fn at_most(&self, wanted: Duration) -> Duration {
        let longer = self.waits.partition_point(|&wait| wait <= wanted);
        self.waits[longer.saturating_sub(1)]
    }

    /// The time to park a command that can do nothing before `wanted`: one hop, if that is at most twice as long, or else
    /// the shortest wait of at most two. So it is at most twice `wanted`, or half the largest ratio of a tier to the one
    /// before it if that is more; never less than the shortest tier. Where the tiers have no such wait up to
    /// [`LONGEST_PARK`], it is `wanted`, by as many hops as that takes.
    #[must_use]
    pub fn at_least(&self, wanted: Duration) -> Duration {
        let wanted = wanted.min(LONGEST_PARK);
        let shortest = self.delays[0];
        // A little more than a tier's delay ends with a wait at its head.
        let first = |waits: &[Duration]| {
            let covers = waits.partition_point(|&wait| wait + shortest / 2 < wanted);
            let wait = waits.get(covers)?.max(&wanted);
            (*wait <= LONGEST_PARK.max(shortest)).then_some(*wait)
        };
        let one = first(&self.delays).filter(|&one| one <= (wanted * 2).max(shortest));
        one.or_else(|| first(&self.waits)).unwrap_or(wanted)
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

    /// Follows a record through the tiers; returns when it reaches `webhook-commands`, and how many tiers it passed.
    /// Each append takes `lag`.
    fn arrival(tiers: &Tiers, due: EpochMs, lag: Duration) -> (EpochMs, u32) {
        let mut now = EpochMs(0);
        let mut tier = tiers.for_rest(due.since(now));
        for hops in 1..10_000 {
            let appended = now + lag;
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

    /// The factor by which a wait may differ from what is wanted.
    fn factor(tiers: &Tiers) -> f64 {
        let ratios = tiers.delays().windows(2);
        let ratios = ratios.map(|pair| pair[1].as_secs_f64() / pair[0].as_secs_f64());
        ratios.fold(2.0, |factor, ratio| f64::max(factor, ratio / 2.0))
    }

    /// Any tiers from 10 ms to two hours.
    fn any_tiers() -> impl Strategy<Value = Tiers> {
        proptest::collection::btree_set(10..7_200_000_u64, 1..8).prop_map(|delays| {
            let delays = delays.into_iter().map(Duration::from_millis);
            Tiers::new(delays.collect()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_record_is_never_early_and_at_most_5_s_or_10_percent_late(rest in 1..200_000_000_i64) {
            let (arrived, hops) = arrival(&tiers(), EpochMs(rest), Duration::ZERO);
            prop_assert!(arrived >= EpochMs(rest));
            let late = arrived.0 - rest;
            prop_assert!(late <= 5_000.max(rest / 10), "due after {rest} ms, {late} ms late");
            prop_assert!(hops <= 40, "{hops} hops for {rest} ms");
        }

        #[test]
        fn a_parked_command_is_looked_at_within_ten_minutes(waited in 0..10_000_000_u64) {
            let waited = Duration::from_secs(waited);
            let park = tiers().park_for(waited);
            prop_assert!(park >= Duration::from_secs(5) && park <= LONGEST_PARK);
            prop_assert!(park <= (waited / 2).max(Duration::from_secs(5)));
        }

        #[test]
        fn a_wait_is_never_too_short_and_one_hop_or_two_and_not_much_too_long(
            tiers in prop_oneof![Just(tiers()), any_tiers()],
            wanted in 0..700_000_u64,
            lag in 0.0..0.99_f64,
        ) {
            let wanted = Duration::from_millis(wanted);
            let (shortest, least) = (tiers.delays()[0], wanted.min(LONGEST_PARK));
            let wait = tiers.at_least(wanted);
            prop_assert!(wait >= least);
            let longest = least.mul_f64(factor(&tiers)).max(shortest);
            prop_assert!(wait <= longest && wait <= LONGEST_PARK.max(shortest), "{wait:?} for {wanted:?}");
            // A short wait that is not of two hops was chosen because there is none.
            let is_whole = tiers.waits.iter().any(|&one| one <= wait && wait <= one + shortest / 2);
            let none = tiers.waits.iter().all(|&one| one + shortest / 2 < least || one > LONGEST_PARK);
            prop_assert!(is_whole || none && wait == least, "{wait:?} for {wanted:?}");
            if is_whole {
                let due = EpochMs(0) + wait;
                let (arrived, hops) = arrival(&tiers, due, (shortest / 2).mul_f64(lag));
                prop_assert!(arrived >= due && hops <= 2, "{hops} hops for {wait:?}");
                prop_assert!(arrived <= due + shortest.max(wait / 20), "{arrived:?} for {wait:?}");
            }
        }

        #[test]
        fn a_wait_that_may_be_shorter_is_one_hop_or_two_and_not_much_shorter(
            tiers in prop_oneof![Just(tiers()), any_tiers()],
            wanted in 0..700_000_u64,
            lag in 0.0..0.99_f64,
        ) {
            let wanted = Duration::from_millis(wanted);
            let shortest = tiers.delays()[0];
            let wait = tiers.at_most(wanted);
            prop_assert!(wait <= wanted.max(shortest));
            // Beyond twice the longest tier there is nothing longer.
            let most = tiers.waits[tiers.waits.len() - 1];
            prop_assert!(wait.mul_f64(factor(&tiers) * 1.001) >= wanted.min(most), "{wait:?} for {wanted:?}");
            let (_, hops) = arrival(&tiers, EpochMs(0) + wait, (shortest / 2).mul_f64(lag));
            prop_assert!(hops <= 2, "{hops} hops for {wait:?}");
        }
    }

    #[test]
    fn waits_for_a_probe_are_few_hops_of_the_default_tiers() {
        let wait = |seconds| tiers().at_least(Duration::from_secs(seconds)).as_secs();
        let wanted = [
            0, 5, 7, 8, 12, 14, 16, 40, 61, 121, 160, 299, 300, 595, 600, 900,
        ];
        let waits = [
            5, 5, 7, 10, 12, 30, 30, 60, 120, 121, 240, 600, 600, 600, 600, 600,
        ];
        assert_eq!(wanted.map(wait), waits);
        // Where only an hour is longer than a minute, ten minutes are ten hops.
        let coarse = Tiers::new([5, 60, 3600].map(Duration::from_secs).to_vec()).unwrap();
        assert_eq!(coarse.at_least(LONGEST_PARK), LONGEST_PARK);
    }

    #[test]
    fn a_rest_that_is_a_little_shorter_than_a_tier_is_one_hop() {
        let tier = |seconds| tiers().for_rest(Duration::from_secs(seconds));
        assert_eq!(
            [
                tier(27),
                tier(28),
                tier(114),
                tier(115),
                tier(571),
                tier(572)
            ],
            [0, 1, 1, 2, 2, 3]
        );
    }

    #[test]
    fn the_largest_tier_that_fits_is_chosen() {
        let tier = |seconds| tiers().for_rest(Duration::from_secs(seconds));
        assert_eq!(
            [
                tier(0),
                tier(5),
                tier(27),
                tier(30),
                tier(570),
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
