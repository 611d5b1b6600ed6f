//! How long partitions stood still, from the times of the requests.
//!
//! Pure. Under steady traffic to every partition, the time between two first attempts of one partition is short; the
//! longest such gap is the longest pause.

use std::collections::HashMap;

/// A first attempt: when, epoch ms, and of which partition.
pub type Arrival = (i64, i32);

/// The longest time that passed in one partition between two first attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pause {
    pub milliseconds: i64,
    pub partition: i32,
    /// When it ended, epoch ms.
    pub until: i64,
}

/// The longest pause of any partition that ended after `from` and not after `until`.
pub fn longest(arrivals: &[Arrival], from: i64, until: i64) -> Option<Pause> {
    let mut sorted = arrivals.to_vec();
    sorted.sort_unstable();
    let mut last: HashMap<i32, i64> = HashMap::new();
    let mut pauses = Vec::new();
    for (at, partition) in sorted {
        if let Some(before) = last.insert(partition, at)
            && (from + 1..=until).contains(&at)
        {
            pauses.push(Pause {
                milliseconds: at - before,
                partition,
                until: at,
            });
        }
    }
    pauses.into_iter().max()
}

#[test]
fn the_longest_pause_is_that_of_one_partition_while_the_others_go_on() {
    let arrivals = [
        (0, 1),
        (10, 2),
        (20, 1),
        (30, 1),
        (4_000, 1),
        (50, 2),
        (90, 2),
        (4_010, 2),
    ];
    let found = longest(&arrivals, 0, 10_000);
    let expected = Pause {
        milliseconds: 3_970,
        partition: 1,
        until: 4_000,
    };
    assert_eq!(found, Some(expected));
}

#[test]
fn a_pause_belongs_to_the_step_in_which_it_ends() {
    let arrivals = [(0, 1), (900, 1), (1_100, 1), (1_150, 1)];
    assert_eq!(
        longest(&arrivals, 1_100, 2_000).map(|pause| pause.milliseconds),
        Some(50)
    );
    assert_eq!(
        longest(&arrivals, 1_000, 1_100).map(|pause| pause.milliseconds),
        Some(200)
    );
    assert_eq!(longest(&arrivals, 2_000, 3_000), None);
}
