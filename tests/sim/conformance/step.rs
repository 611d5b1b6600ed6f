//! The vocabulary of scenarios, and how one is played.

use super::scenarios::Scenario;

/// One step. Names are those of the scenario; each side gives them names of its own.
#[derive(Clone, Debug)]
pub enum Step {
    /// Creates a topic with so many partitions and settings.
    Topic(&'static str, i32, &'static [(&'static str, &'static str)]),
    /// Deletes a topic.
    DeleteTopic(&'static str),
    /// Enlarges a topic.
    Partitions(&'static str, i32),
    /// Deletes the records of partition 0 below an offset.
    DeleteRecords(&'static str, i64),
    /// A producer with this transactional id and transaction timeout in ms.
    Open(&'static str, &'static str, u32),
    /// A producer without transactions.
    OpenPlain(&'static str),
    /// Begins a transaction.
    Begin(&'static str),
    /// Queues records for a partition: `key=value` each, made so many ms ago.
    Send(
        &'static str,
        &'static str,
        i32,
        &'static [&'static str],
        i64,
    ),
    /// Queues a record of so many bytes for partition 0.
    SendLarge(&'static str, &'static str, usize),
    /// Waits for the queue; shows what became of each record.
    Flush(&'static str),
    /// Adds an offset of partition 0 to the transaction: for a kept membership, with metadata of so many characters.
    Offsets(&'static str, &'static str, &'static str, i64, usize),
    /// Commits the transaction.
    Commit(&'static str),
    /// Aborts the transaction.
    Abort(&'static str),
    /// Ends the producer without a word.
    Crash(&'static str),
    /// Reads a partition from an offset to its end; committed records, or all.
    Read(&'static str, i32, i64, bool),
    /// The first offset, the last stable one and the high watermark of partition 0.
    Ends(&'static str),
    /// The offset of the first record of partition 0 that is at most so many ms old.
    Since(&'static str, i64),
    /// A member joins a group for a topic; static with a name.
    Join(&'static str, &'static str, &'static str, &'static str),
    /// Waits until members own so many partitions.
    Own(&'static [(&'static str, usize)]),
    /// Whether what a member owns is part of what it owned at the last such step, or the other way round.
    Kept(&'static str),
    /// From now on the member does not give up what is revoked, or does again.
    Hold(&'static str, bool),
    /// Waits until the member is asked to give something up.
    Asked(&'static str),
    /// The member stops polling, or polls again.
    Freeze(&'static str, bool),
    /// The member leaves.
    Leave(&'static str),
    /// Keeps the present membership of a member by a name.
    Keep(&'static str, &'static str),
    /// A member commits an offset of a partition, with metadata of so many characters.
    CommitAs(&'static str, &'static str, i32, i64, usize),
    /// A client that is no member commits an offset of partition 0 for a group.
    CommitAlone(&'static str, &'static str, i64),
    /// What a group has committed for a partition: offset and length of the metadata.
    Committed(&'static str, &'static str, i32),
    /// Repeats a step until it shows this, and shows it.
    Until(Box<Step>, &'static str),
}

/// A Kafka and its clients.
pub trait Side {
    /// Does a step, and returns what the client saw.
    fn act(&mut self, step: &Step) -> String;

    /// Waits a little before a step is repeated.
    fn pause(&mut self);
}

/// Plays a scenario; one line a step.
pub fn play(side: &mut impl Side, scenario: &Scenario) -> Vec<String> {
    let each = scenario.steps.iter();
    each.map(|step| match step {
        Step::Until(step, wanted) => {
            let seen = until(side, step, wanted);
            format!("{step:?} -> {seen}")
        }
        step => format!("{step:?} -> {}", side.act(step)),
    })
    .collect()
}

fn until(side: &mut impl Side, step: &Step, wanted: &str) -> String {
    /// With the pauses, longer than anything that is waited for takes on a busy machine.
    const TRIES: usize = 400;
    let mut seen = String::new();
    for _ in 0..TRIES {
        seen = side.act(step);
        if seen == wanted {
            break;
        }
        side.pause();
    }
    seen
}

/// Key and value of a record as it is written in a scenario.
pub fn key_value(text: &str) -> (Option<&str>, Option<&str>) {
    match text.split_once('=') {
        Some((key, "")) => (Some(key), None),
        Some((key, value)) => (Some(key), Some(value)),
        None => (None, Some(text)),
    }
}
