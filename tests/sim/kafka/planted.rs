//! Bugs that are planted to see whether the checks of a simulated run find them: each one changes what passes between a role
//! and its clients, as if the role had asked for it.

use std::cell::Cell;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bug {
    pub name: &'static str,
    pub what: &'static str,
}

const fn bug(name: &'static str, what: &'static str) -> Bug {
    Bug { name, what }
}

/// All of them.
pub const ALL: [Bug; 41] = [
    bug("outcome-lost", "delivery does not write one outcome in 20"),
    bug("command-lost", "fan-out does not write one command in 50"),
    bug("outcome-twice", "delivery writes one outcome in 20 twice"),
    bug(
        "release-without-positions",
        "release moves records and commits no positions",
    ),
    bug(
        "fanout-without-positions",
        "fan-out writes commands and commits no positions",
    ),
    bug(
        "position-ahead",
        "a commit of delivery without a transaction passes one more record",
    ),
    bug(
        "transaction-ahead",
        "a commit in a transaction passes one more record",
    ),
    bug(
        "metadata-lost",
        "a new owner ignores what is finished above the position",
    ),
    bug(
        "uncommitted",
        "members read records of open and aborted transactions",
    ),
    bug(
        "zombie",
        "transactions are committed without the generation of the group",
    ),
    bug("no-rewind", "after an abort, records are not read again"),
    bug("early", "a retry is due a minute too early"),
    bug("body", "the body of a retry differs"),
    bug("webhook-id", "a retry has a new webhook id"),
    bug("attempt-reset", "a retry begins with attempt 1 again"),
    bug("attempt-skipped", "a retry counts one attempt too many"),
    bug(
        "abort-as-commit",
        "a failed transaction is taken for a committed one",
    ),
    bug(
        "stale-disable",
        "a disabling after a 410 holds after the operator has applied the subscription again",
    ),
    bug(
        "revocation-ignored",
        "partitions are given up before their work has ended",
    ),
    bug(
        "lost-as-revoked",
        "lost partitions are treated as revoked ones",
    ),
    bug(
        "wrong-partition",
        "commands are not written by the key of their subscriber",
    ),
    bug(
        "generation-late",
        "the generation is that of the commit, and not that of the records",
    ),
    bug(
        "metadata-elsewhere",
        "what is finished on another cluster is believed to be finished here",
    ),
    bug("held-dropped", "held commands are dropped at a gap"),
    bug(
        "subscription-moved",
        "commands of a subscription that was made again for another subscriber are sent to that one",
    ),
    bug(
        "look-ahead-stable",
        "the look-ahead sees nothing behind an open transaction",
    ),
    bug(
        "abort-repeats",
        "delivery forgets its outcomes when a transaction is aborted, and sends again",
    ),
    bug(
        "replay-again",
        "a replay does not write that a dead letter is settled",
    ),
    bug(
        "replay-lost",
        "a replay settles one dead letter in three without its command",
    ),
    bug(
        "stale-secret",
        "delivery signs with the first secret of a subscription",
    ),
    bug("source-missing", "commands do not name their source"),
    bug(
        "predecessor-missing",
        "commands name no predecessor: each claims that all before it was written",
    ),
    bug(
        "same-hash",
        "the subscriptions of an event have one hash: their commands have one place in the source",
    ),
    bug(
        "coverage-lost",
        "a new owner of commands does not know what was seen before its position",
    ),
    bug(
        "coverage-ahead",
        "delivery commits what was seen up to the last record read, instead of up to the position",
    ),
    bug(
        "finished-unasked",
        "a new owner does not note as seen what is finished above the position",
    ),
    bug(
        "acknowledged-early",
        "fan-out commits positions before its commands are acknowledged",
    ),
    bug(
        "refusal-ignored",
        "fan-out takes a refused command for an acknowledged one",
    ),
    bug(
        "epoch-lost",
        "fan-out begins a new epoch with each assignment",
    ),
    bug(
        "epoch-uncommitted",
        "fan-out writes in a new epoch before it is committed",
    ),
    bug(
        "backlog-stale",
        "the backlog is counted without the positions of release",
    ),
];

thread_local! {
    static PLANTED: Cell<Option<&'static str>> = const { Cell::new(None) };
    static COUNT: Cell<u32> = const { Cell::new(0) };
}

/// Plants a bug in the runs of this thread.
pub fn plant(bug: Option<&'static str>) {
    PLANTED.set(bug);
}

/// A run begins.
pub fn begin() {
    COUNT.set(0);
}

/// Whether this one is planted.
pub fn is(name: &str) -> bool {
    PLANTED.get().is_some_and(|planted| planted == name)
}

/// Whether this one is planted, one time in `every`.
pub fn sometimes(name: &str, every: u32) -> bool {
    is(name) && {
        COUNT.set(COUNT.get() + 1);
        COUNT.get().is_multiple_of(every)
    }
}
