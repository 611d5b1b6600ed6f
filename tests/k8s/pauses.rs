//! How long partitions stood still, from the times of the requests.
//!
//! Pure. Between two first attempts of one partition, the partition stands still for as long as it holds a record that
//! nobody sends.

use std::collections::HashMap;

/// A first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// Epoch ms.
    pub at: i64,
    /// Of its record.
    pub partition: i32,
    /// When the partition got the record, epoch ms.
    pub produced: i64,
}

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
    for one in sorted {
        if let Some(before) = last.insert(one.partition, one.at)
            && (from + 1..=until).contains(&one.at)
        {
            pauses.push(Pause {
                milliseconds: one.at - before.max(one.produced),
                partition: one.partition,
                until: one.at,
            });
        }
    }
    pauses.into_iter().max()
}

#[cfg(test)]
fn arrivals(all: &[(i64, i32)]) -> Vec<Arrival> {
    let of = |&(at, partition): &(i64, i32)| Arrival {
        at,
        partition,
        produced: 0,
    };
    all.iter().map(of).collect()
}

#[test]
fn the_longest_pause_is_that_of_one_partition_while_the_others_go_on() {
    let all = [
        (0, 1),
        (10, 2),
        (30, 1),
        (4_000, 1),
        (50, 2),
        (90, 2),
        (3_000, 2),
    ];
    let expected = Pause {
        milliseconds: 3_970,
        partition: 1,
        until: 4_000,
    };
    assert_eq!(longest(&arrivals(&all), 0, 10_000), Some(expected));
}

#[test]
fn a_partition_without_records_does_not_pause() {
    let mut all = arrivals(&[(0, 1), (4_000, 1)]);
    all[1].produced = 3_800;
    let found = longest(&all, 0, 10_000).map(|pause| pause.milliseconds);
    assert_eq!(found, Some(200));
}

#[test]
fn a_pause_belongs_to_the_step_in_which_it_ends() {
    let all = arrivals(&[(0, 1), (900, 1), (1_100, 1), (1_150, 1)]);
    let longest = |from, until| longest(&all, from, until).map(|pause| pause.milliseconds);
    assert_eq!(longest(1_100, 2_000), Some(50));
    assert_eq!(longest(1_000, 1_100), Some(200));
    assert_eq!(longest(2_000, 3_000), None);
}
