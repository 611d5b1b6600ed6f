//! Why a group does not begin, with the way out.

use super::Start;
use crate::edge::kafka::error::Failure;
use crate::model::units::first_of;
use crate::positions::GroupRole;

impl Start<'_> {
    pub(super) fn lost(&self, lost: &[(String, Vec<i32>)]) -> Failure {
        let topics: Vec<&str> = lost.iter().map(|(topic, _)| topic.as_str()).collect();
        let places = lost
            .iter()
            .map(|(topic, partitions)| format!("{topic} (partitions {})", first_of(partitions)));
        let places: Vec<String> = places.collect();
        let (to, advice) = match self.role {
            GroupRole::Fanout => ("earliest|now|TIME", "events before that are not fanned out"),
            GroupRole::Deliver | GroupRole::Release => (
                "earliest|TIME",
                "commands that wait before that time are lost, and what was done since is done again, so choose a time before the oldest one that waits",
            ),
        };
        Failure::PositionsLost(format!(
            "the committed positions of {} are gone in {}: they expired while the group had no members, or were deleted; nothing is read, since records would be sent again or skipped; set where to continue with `hookstream positions set {} --to {to}`: {advice} (--start-at applies to a first start only)",
            self.group,
            places.join(", "),
            topics.join(" "),
        ))
    }

    pub(super) fn not_moved(&self, topic: &str) -> Failure {
        Failure::PositionsLost(format!(
            "{} has positions in {topic} on another cluster, but none on this one; move them with `hookstream positions import`, set them with `hookstream positions set {topic} --to earliest|now|TIME`, or start with an explicit --start-at",
            self.group,
        ))
    }

    pub(super) fn busy(&self, topic: &str) -> Failure {
        Failure::PositionsLost(format!(
            "{} has no positions in {topic}, and none can be committed while other replicas run with --guarantee at-least-once; stop all replicas of the role first, or start with --start-at earliest",
            self.group,
        ))
    }
}
