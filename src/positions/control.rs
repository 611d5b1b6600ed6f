//! Shows the committed positions of the groups, and sets them while no role runs.
//!
//! A position that is set has no metadata: what delivery had finished above it is sent again. Records between the old and
//! the new position are skipped or read again; both are reported before anything is committed.

use std::sync::Arc;

use serde::Serialize;

use super::{Client, CommittedPartition, GroupRole, PURPOSE, PositionsError};
use super::{client, commit, committed, no_members};
use crate::config::Settings;
use crate::edge::kafka::log_reader::{Log, Range};
use crate::edge::kafka::member::{Commit, TopicPartition};
use crate::model::units::{EpochMs, Position};

/// The position of a group in a partition. Offsets count the markers of transactions too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The committed offset; `None` where there is none.
    pub position: Option<i64>,
    /// The first offset that the broker still has.
    pub low: i64,
    /// One past the last offset that can be read now.
    pub end: i64,
    /// Offsets from the position, or from the first one, to the end.
    pub behind: i64,
}

/// Where to set positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Behind all that can be read now.
    Now,
    /// The first record.
    Earliest,
    /// The first record of this time or later, or else the end.
    Time(EpochMs),
    /// This offset.
    Offset(i64),
}

/// What to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A topic that one of the groups reads.
    pub topic: String,
    /// One partition; `None` is all of them.
    pub partition: Option<i32>,
}

/// One position to set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The committed offset before.
    pub before: Option<i64>,
    /// The new position.
    pub position: i64,
    /// Offsets that were not read and will not be.
    pub skipped: i64,
    /// Offsets that were read and will be again.
    pub repeated: i64,
}

impl Moved {
    /// Without a position a group begins at the first record.
    fn new(group: String, topic: &str, range: Range, before: Option<i64>, position: i64) -> Self {
        let from = before.unwrap_or(range.low).max(range.low);
        Self {
            group,
            topic: topic.to_owned(),
            partition: range.partition,
            before,
            position,
            skipped: position.saturating_sub(from).max(0),
            repeated: from.saturating_sub(position).max(0),
        }
    }
}

/// Positions that can be set.
pub struct Plan {
    /// Each position, with what it changes.
    pub moves: Vec<Moved>,
    groups: Vec<(String, Client, Vec<Commit>)>,
}

/// Reads the positions of all groups, and the ends of their topics.
///
/// # Errors
/// [`PositionsError`]: a topic is missing, permission is denied, or no broker responds.
pub fn show(settings: &Settings) -> Result<Vec<Shown>, PositionsError> {
    let mut shown = Vec::new();
    for role in GroupRole::ALL {
        let client = client(settings, role)?;
        for topic in role.topics(settings) {
            let log = Log::open(settings, topic.clone(), PURPOSE)?;
            let ranges = log.stable_ends()?;
            let committed = committed(&client, role, settings, &topic, &ranges)?;
            shown.extend(ranges.iter().map(|range| {
                let position = position_of(&committed, *range);
                let from = position.unwrap_or(range.low).max(range.low);
                Shown {
                    group: role.group(settings),
                    topic: topic.clone(),
                    partition: range.partition,
                    position,
                    low: range.low,
                    end: range.end,
                    behind: range.end.saturating_sub(from).max(0),
                }
            }));
        }
    }
    Ok(shown)
}

fn position_of(committed: &[CommittedPartition], range: Range) -> Option<i64> {
    let mut found = committed.iter();
    let found = found.find(|found| found.range.partition == range.partition);
    found.map(|found| found.position)
}

/// Checks what to set, and computes the positions. Commits nothing.
///
/// # Errors
/// [`PositionsError`]: a group has members, a topic or partition is unknown, or an offset is out of range.
pub fn plan(
    settings: &Settings,
    wanted: &[Wanted],
    target: Target,
) -> Result<Plan, PositionsError> {
    if let Some(unknown) = wanted
        .iter()
        .find(|wanted| role_of(settings, wanted).is_none())
    {
        let known = GroupRole::ALL.iter().flat_map(|role| role.topics(settings));
        return Err(PositionsError::UnknownTopic {
            topic: unknown.topic.clone(),
            known: known.collect(),
        });
    }
    let mut plan = Plan {
        moves: Vec::new(),
        groups: Vec::new(),
    };
    for role in GroupRole::ALL {
        let mut own = wanted.iter();
        if !own.any(|wanted| role_of(settings, wanted) == Some(role)) {
            continue;
        }
        let (client, group) = (client(settings, role)?, role.group(settings));
        no_members(&client, &group)?;
        let mut commits = Vec::new();
        for topic in role.topics(settings) {
            let mut of_topic = wanted
                .iter()
                .filter(|wanted| wanted.topic == topic)
                .peekable();
            if of_topic.peek().is_none() {
                continue;
            }
            let log = Log::open(settings, topic.clone(), PURPOSE)?;
            let ranges = chosen(&log.stable_ends()?, of_topic)?;
            let positions = positions(&log, &ranges, target)?;
            let committed = committed(&client, role, settings, &topic, &ranges)?;
            for (range, position) in ranges.into_iter().zip(positions) {
                let before = position_of(&committed, range);
                plan.moves
                    .push(Moved::new(group.clone(), &topic, range, before, position));
                commits.push(Commit {
                    at: TopicPartition {
                        topic: Arc::from(topic.as_str()),
                        partition: range.partition,
                    },
                    position: Position(position),
                    metadata: String::new(),
                });
            }
        }
        plan.groups.push((group, client, commits));
    }
    Ok(plan)
}

fn role_of(settings: &Settings, wanted: &Wanted) -> Option<GroupRole> {
    let mut roles = GroupRole::ALL.into_iter();
    roles.find(|role| role.topics(settings).contains(&wanted.topic))
}

/// The ranges of the wanted partitions, each once.
fn chosen<'w>(
    all: &[Range],
    wanted: impl Iterator<Item = &'w Wanted>,
) -> Result<Vec<Range>, PositionsError> {
    let mut chosen: Vec<Range> = Vec::new();
    for wanted in wanted {
        let is_wanted = |range: &&Range| wanted.partition.is_none_or(|one| one == range.partition);
        let found: Vec<Range> = all.iter().filter(is_wanted).copied().collect();
        if let (Some(partition), true) = (wanted.partition, found.is_empty()) {
            return Err(PositionsError::UnknownPartition {
                topic: wanted.topic.clone(),
                partition,
                count: all.len(),
            });
        }
        chosen.extend(found);
    }
    chosen.sort_by_key(|range| range.partition);
    chosen.dedup_by_key(|range| range.partition);
    Ok(chosen)
}

fn positions(log: &Log, ranges: &[Range], target: Target) -> Result<Vec<i64>, PositionsError> {
    let each = ranges.iter();
    Ok(match target {
        Target::Now => each.map(|range| range.end).collect(),
        Target::Earliest => each.map(|range| range.low).collect(),
        Target::Time(at) => {
            let later = log.since(ranges, at)?;
            later.iter().map(|range| range.low).collect()
        }
        Target::Offset(offset) => {
            let is_outside = |range: &&Range| !(range.low..=range.end).contains(&offset);
            if let Some(range) = ranges.iter().find(is_outside) {
                return Err(PositionsError::OutOfRange {
                    topic: log.topic().to_owned(),
                    partition: range.partition,
                    offset,
                    low: range.low,
                    end: range.end,
                });
            }
            vec![offset; ranges.len()]
        }
    })
}

impl Plan {
    /// Commits the positions.
    ///
    /// # Errors
    /// [`PositionsError`] of the first group that fails, such as one that has members by now; those before it are
    /// committed.
    pub fn commit(self) -> Result<Vec<Moved>, PositionsError> {
        for (group, client, commits) in self.groups {
            no_members(&client, &group)?;
            // The broker refuses this too if a member joins meanwhile.
            commit(&client, &group, &commits)?;
        }
        Ok(self.moves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(partition: i32, low: i64, end: i64) -> Range {
        Range {
            partition,
            low,
            end,
        }
    }

    fn wanted(partition: Option<i32>) -> Wanted {
        Wanted {
            topic: "t".to_owned(),
            partition,
        }
    }

    #[test]
    fn what_a_move_skips_and_repeats_counts_from_where_the_group_would_continue() {
        for (before, position, skipped, repeated) in [
            (Some(10), 20, 10, 0),
            (Some(20), 10, 0, 10),
            (Some(20), 20, 0, 0),
            // Without a position the group would begin at the first record.
            (None, 20, 15, 0),
            (None, 5, 0, 0),
            // Records below the first offset are gone already.
            (Some(2), 20, 15, 0),
        ] {
            let moved = Moved::new("g".to_owned(), "t", range(0, 5, 30), before, position);
            assert_eq!(
                (moved.skipped, moved.repeated),
                (skipped, repeated),
                "{before:?} to {position}"
            );
        }
    }

    #[test]
    fn partitions_are_chosen_once_and_unknown_ones_are_refused() {
        let all = [range(0, 0, 1), range(1, 0, 2), range(2, 0, 3)];
        let numbers = |wanted: &[Wanted]| -> Vec<i32> {
            let chosen = chosen(&all, wanted.iter()).unwrap();
            chosen.iter().map(|range| range.partition).collect()
        };
        assert_eq!(numbers(&[wanted(None)]), [0, 1, 2]);
        assert_eq!(numbers(&[wanted(Some(2)), wanted(Some(0))]), [0, 2]);
        assert_eq!(numbers(&[wanted(Some(1)), wanted(None)]), [0, 1, 2]);
        let error = chosen(&all, [wanted(Some(3))].iter()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "t has no partition 3; it has 3 partitions, from 0"
        );
    }
}
