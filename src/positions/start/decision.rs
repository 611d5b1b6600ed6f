//! What a group does at its start about one topic: go on, begin, or refuse. Pure.
//!
//! | positions | marker of this cluster | decision |
//! |---|---|---|
//! | in all partitions | any | go on |
//! | in some, or none | names a partition with records and without a position | positions are lost: refuse |
//! | in some | otherwise | the others are new: from their beginning |
//! | in none | otherwise; a member reads the topic | somebody began already: go on |
//! | in none | none, but one of another cluster; `--start-at` not given | an unfinished failover: refuse |
//! | in none | otherwise | a first start: as `--start-at` says; own topics from their beginning |

use crate::config::StartAt;
use crate::edge::kafka::log_reader::Range;

/// What is known about a topic of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// The position in each partition, counted from 0.
    pub(super) positions: &'a [Option<i64>],
    /// How many partitions, counted from 0, had positions by the marker of this cluster; `None` without a marker.
    pub(super) marker: Option<i32>,
    /// Whether there is a marker of another cluster.
    pub(super) is_elsewhere: bool,
}

impl Known<'_> {
    /// Whether nothing has to be decided or written.
    pub(super) fn is_complete(&self) -> bool {
        self.lacks_no_position() && self.new_marker(self.count()).is_none()
    }

    /// Whether there is a position in each partition.
    pub(super) fn lacks_no_position(&self) -> bool {
        self.positions.iter().all(Option::is_some)
    }

    fn count(&self) -> i32 {
        as_number(self.positions.len())
    }

    /// The marker to write when the first `partitions` partitions have positions.
    fn new_marker(&self, partitions: i32) -> Option<i32> {
        (partitions > self.marker.unwrap_or(0)).then_some(partitions)
    }

    /// How many partitions have a position, up to the first one without.
    fn leading(&self) -> i32 {
        let leading = self.positions.iter().take_while(|known| known.is_some());
        as_number(leading.count())
    }
}

fn as_number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Which members of the group read the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Members {
    /// There are none.
    None,
    /// None of them.
    Elsewhere,
    /// At least one.
    Reading,
    /// Not known while the group rebalances.
    Unknown,
}

/// What the settings say about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A topic of hookstream, which is read from its beginning.
    Own,
    /// An event topic, with `--start-at` if it is given.
    Events(Option<StartAt>),
}

impl Kind {
    pub(super) fn start_at(self) -> StartAt {
        match self {
            Self::Own => StartAt::Earliest,
            Self::Events(given) => given.unwrap_or_default(),
        }
    }

    /// Whether a group with these positions, by topic, has begun to read its topics, as far as they say. Only then may it
    /// go on where no marker can be written: partitions without a position are read from their beginning.
    pub(super) fn has_begun(self, positions: &[Vec<Option<i64>>]) -> bool {
        let mut each = positions
            .iter()
            .map(|topic| topic.iter().any(Option::is_some));
        match self {
            // A tier that was never used has no positions.
            Self::Own => each.any(|has_some| has_some),
            Self::Events(_) => each.all(|has_some| has_some),
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing, except to write this marker.
    GoOn {
        /// The marker's partitions.
        marker: Option<i32>,
    },
    /// Commit positions for these partitions, with the marker.
    Begin {
        /// Which.
        partitions: Vec<i32>,
        /// Where.
        at: StartAt,
        /// Whether no partition had a position.
        is_first: bool,
        /// The marker's partitions, unless it has them already.
        marker: Option<i32>,
    },
    /// Decide again in a moment.
    Wait,
    /// These partitions had positions, and have records.
    Lost(Vec<i32>),
    /// The group had positions on another cluster only.
    NotMoved,
    /// Without transactions, a position cannot be committed while the group has members.
    Busy,
}

/// Decides about one topic. `ranges` are those of all partitions.
pub(super) fn decide(
    known: Known<'_>,
    ranges: &[Range],
    kind: Kind,
    members: Members,
    has_transactions: bool,
) -> Decision {
    let missing = |range: &&Range| {
        let number = usize::try_from(range.partition).ok();
        let position = number.and_then(|number| known.positions.get(number));
        position.is_some_and(Option::is_none)
    };
    let missing: Vec<Range> = ranges.iter().filter(missing).copied().collect();
    let go_on = Decision::GoOn {
        marker: known.new_marker(known.leading()),
    };
    if missing.is_empty() {
        return go_on;
    }
    let had = known.marker.unwrap_or(0);
    let has_records = |range: &&Range| range.low < range.end;
    let lost = missing.iter().filter(|range| range.partition < had);
    let lost: Vec<i32> = numbers(lost.filter(has_records));
    if !lost.is_empty() {
        return Decision::Lost(lost);
    }
    let is_first = known.positions.iter().all(Option::is_none) && had == 0;
    match members {
        // A member reads partitions without a position from their beginning, and may commit at any moment.
        Members::Reading => return go_on,
        Members::Unknown => return Decision::Wait,
        Members::None | Members::Elsewhere => {}
    }
    let is_undecided = matches!(kind, Kind::Events(None));
    if is_first && known.is_elsewhere && is_undecided && missing.iter().any(|r| r.low < r.end) {
        return Decision::NotMoved;
    }
    let at = match is_first {
        true => kind.start_at(),
        false => StartAt::Earliest,
    };
    if members != Members::None && !has_transactions {
        return match at {
            // Where a member begins by itself.
            StartAt::Earliest => go_on,
            StartAt::Now | StartAt::Time(_) => Decision::Busy,
        };
    }
    Decision::Begin {
        partitions: numbers(missing.iter()),
        at,
        is_first,
        marker: known.new_marker(known.count()),
    }
}

fn numbers<'r>(ranges: impl Iterator<Item = &'r Range>) -> Vec<i32> {
    ranges.map(|range| range.partition).collect()
}

/// Offsets that a start skips, or will read, as text.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// How many offsets.
    pub(super) offsets: i64,
    text: Vec<String>,
    more: usize,
}

impl Ranges {
    /// How many ranges a line of the log names.
    const SHOWN: usize = 100;

    /// Adds `from` to `to`, unless it is empty.
    pub(super) fn add(&mut self, topic: &str, partition: i32, from: i64, to: i64) {
        if from >= to {
            return;
        }
        self.offsets = self.offsets.saturating_add(to - from);
        match self.text.len() < Self::SHOWN {
            true => self
                .text
                .push(format!("{topic} {partition}: {from} to {to}")),
            false => self.more += 1,
        }
    }

    /// The ranges, each from its first offset to that behind its last.
    pub(super) fn text(&self) -> String {
        let text = self.text.join(", ");
        match (self.more, text.is_empty()) {
            (0, true) => "none".to_owned(),
            (0, false) => text,
            (more, _) => format!("{text} and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
