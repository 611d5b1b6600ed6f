//! Topics: what is deleted, made again, enlarged, compacted.

use super::{Scenario, quick, slow, until};
use crate::conformance::step::Step::*;

pub(super) fn topics() -> Vec<Scenario> {
    vec![
        quick(
            "delete-records",
            &[
                "deleted records move the start of a partition; a reader below it is told",
                "offsets go on after all records were deleted",
                "records beyond the high watermark cannot be deleted",
            ],
            vec![
                Topic("t", 1, &[]),
                OpenPlain("p"),
                Send("p", "t", 0, &["a", "b", "c"], 0),
                Flush("p"),
                DeleteRecords("t", 2),
                until(Ends("t"), "2 3 3"),
                Read("t", 0, 2, true),
                Read("t", 0, 1, true),
                DeleteRecords("t", 9),
                DeleteRecords("t", 3),
                until(Ends("t"), "3 3 3"),
                Read("t", 0, 3, true),
                Send("p", "t", 0, &["d"], 0),
                Flush("p"),
                Read("t", 0, 3, true),
            ],
        ),
        quick(
            "beyond-the-end",
            &["a reader beyond the end of a partition is told"],
            vec![
                Topic("t", 1, &[]),
                OpenPlain("p"),
                Send("p", "t", 0, &["a"], 0),
                Flush("p"),
                Read("t", 0, 1, true),
                Read("t", 0, 7, true),
            ],
        ),
        quick(
            "topic-made-again",
            &[
                "a topic that is deleted and made again begins at offset 0, without offsets of groups",
                "a topic that exists cannot be made; one that does not cannot be deleted",
            ],
            vec![
                Topic("t", 1, &[]),
                Topic("t", 1, &[]),
                OpenPlain("p"),
                Send("p", "t", 0, &["a", "b"], 0),
                Flush("p"),
                CommitAlone("g", "t", 2),
                Committed("g", "t", 0),
                DeleteTopic("t"),
                until(Topic("t", 1, &[]), "ok"),
                until(Ends("t"), "0 0 0"),
                until(Committed("g", "t", 0), "none"),
                Read("t", 0, 2, true),
                OpenPlain("q"),
                Send("q", "t", 0, &["c"], 0),
                Flush("q"),
                Read("t", 0, 0, true),
                DeleteTopic("other"),
            ],
        ),
        quick(
            "partitions-added",
            &["a topic can only grow; new partitions are empty"],
            vec![
                Topic("t", 1, &[]),
                Partitions("t", 1),
                Partitions("t", 3),
                until(Read("t", 2, 0, true), ""),
                OpenPlain("p"),
                Send("p", "t", 2, &["a"], 0),
                Flush("p"),
                Read("t", 2, 0, true),
            ],
        ),
        slow(
            "retention",
            &["old records are deleted, and a group's position may be before the start then"],
            vec![
                Topic("t", 1, &[("retention.ms", "60000")]),
                OpenPlain("p"),
                Send("p", "t", 0, &["a", "b"], 3_600_000),
                Flush("p"),
                until(Ends("t"), "2 2 2"),
                Read("t", 0, 0, true),
                Send("p", "t", 0, &["c"], 0),
                Flush("p"),
                Read("t", 0, 2, true),
            ],
        ),
        slow(
            "compaction",
            &["compaction keeps the last record of each key and its offset; readers pass the gaps"],
            vec![
                Topic(
                    "t",
                    1,
                    &[
                        ("cleanup.policy", "compact"),
                        ("segment.ms", "1000"),
                        ("min.cleanable.dirty.ratio", "0.001"),
                        ("max.compaction.lag.ms", "1"),
                    ],
                ),
                OpenPlain("p"),
                Send("p", "t", 0, &["a=1", "b=1", "a=2", "b=2", "c=1"], 600_000),
                Flush("p"),
                // In the active segment, which is not compacted.
                Send("p", "t", 0, &["d=1"], 0),
                Flush("p"),
                until(Read("t", 0, 0, true), "2=2 3=2 4=1 5=1"),
                Read("t", 0, 1, true),
                Ends("t"),
            ],
        ),
        quick(
            "time",
            &[
                "the first offset of a time is found; beyond the last record it is the end",
                "a time of more than an hour ahead is refused",
            ],
            vec![
                Topic("t", 1, &[]),
                OpenPlain("p"),
                Send("p", "t", 0, &["a"], 600_000),
                Send("p", "t", 0, &["b"], 60_000),
                Flush("p"),
                Since("t", 3_600_000),
                Since("t", 300_000),
                Since("t", 1_000),
                Send("p", "t", 0, &["c"], -7_200_000),
                Flush("p"),
                Send("p", "t", 0, &["d"], -600_000),
                Flush("p"),
            ],
        ),
    ]
}
