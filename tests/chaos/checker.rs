//! Decides from a history, by the invariants' names (`lib.rs`), whether anything was lost, doubled, early or changed.
//!
//! Pure. Known truth comes from `truth`, never from the program. Each violation carries the whole story of its command
//! in time order, faults included.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use crate::history::{Copy, History, Place, Position, Request, What};
use crate::truth::{End, Kind, Matched, SUBSCRIPTIONS};

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    pub what: String,
    /// Something is there more often than it should be; else it is missing, or wrong.
    pub doubled: bool,
    /// When it was last heard of the command, epoch ms, where that is known.
    pub at: Option<i64>,
    /// The event of the command, where it is about one.
    pub event: Option<u32>,
    /// The command's life, in time order.
    pub story: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)?;
        self.story
            .iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// What the run promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    ExactlyOnce,
    /// Nothing is lost; doubles are counted.
    AtLeastOnce,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub violations: Vec<Violation>,
    pub commands: usize,
    /// Requests that repeat an attempt.
    pub repeated: usize,
    /// How many the faults allow for: requests around each fault.
    pub allowed: usize,
    /// Events that the generator's client had acknowledged and that are not on the topic.
    pub never_there: usize,
    /// Positions that were told once and not again, below what was told before, while brokers began.
    pub told_back: usize,
    /// Copies in the commands topic that are more than one lineage has (only where the promise allows them).
    pub doubled: usize,
    /// Latency of first attempts of healthy subscriptions while one tenant was at fault, ms.
    pub beside_tenants: Vec<i64>,
}

/// Every name that a violation can have, in the order of the report.
pub const INVARIANTS: [&str; 10] = [
    "Complete",
    "Durable outcome",
    "One lineage",
    "Stable identity",
    "Never early",
    "Attempt counts survive",
    "Dead letters are whole",
    "Owner only",
    "Repeats are bounded",
    "Isolated",
];

/// What `now` undoes of what `before` had committed.
fn taken_back(before: &Position, now: &Position) -> Option<String> {
    let finished: HashSet<i64> = now.finished.iter().copied().collect();
    let mut was_finished = before.finished.iter();
    let undone =
        was_finished.find(|&&offset| offset >= now.position && !finished.contains(&offset));
    let is_back = now.position < before.position || undone.is_some();
    is_back.then(|| {
        format!(
            "partition {} at {}: the position went from {} to {}, finished {undone:?} is undone",
            now.partition, now.at, before.position, now.position
        )
    })
}

/// One command: an event and a subscription.
type Pair = (u32, usize);

/// All that is known of one command.
#[derive(Default)]
struct Life<'a> {
    copies: Vec<&'a Copy>,
    requests: Vec<&'a Request>,
}

impl Life<'_> {
    fn at(&self, place: Place) -> Vec<&Copy> {
        let mut found: Vec<&Copy> = self
            .copies
            .iter()
            .copied()
            .filter(|copy| copy.place == place && copy.what == What::Command)
            .collect();
        found.sort_by_key(|copy| (copy.at, copy.attempt, copy.partition, copy.offset));
        found
    }

    fn replays(&self) -> Vec<(i32, i64)> {
        let told = self.copies.iter().filter_map(|copy| match copy.what {
            What::Replayed(partition, offset) => Some((partition, offset)),
            What::Command => None,
        });
        told.collect()
    }
}

/// Checks everything.
pub fn check(history: &History, promise: Promise) -> Verdict {
    let mut lives: BTreeMap<Pair, Life<'_>> = BTreeMap::new();
    for copy in &history.copies {
        let life = lives.entry((copy.event, copy.subscription)).or_default();
        life.copies.push(copy);
    }
    for request in &history.requests {
        let life = lives
            .entry((request.event, request.subscription))
            .or_default();
        life.requests.push(request);
    }
    let mut check = Check {
        history,
        promise,
        verdict: Verdict::default(),
    };
    check.complete(&lives);
    check.identities();
    for (&pair, life) in &lives {
        check.lineage(pair, life);
        check.one_body(pair, life);
        check.never_early(pair, life);
        check.attempts(pair, life);
        check.dead_letters(pair, life);
        check.outcome(pair, life);
    }
    check.positions();
    check.at_rest();
    check.repeats();
    check.isolated();
    check.verdict.commands = lives.len();
    check.verdict
}

struct Check<'a> {
    history: &'a History,
    promise: Promise,
    verdict: Verdict,
}

impl Check<'_> {
    fn say(&mut self, invariant: &'static str, pair: Pair, life: &Life<'_>, what: String) {
        let story = self.story(life);
        let of_copies = life.copies.iter().map(|copy| copy.at);
        self.verdict.violations.push(Violation {
            invariant,
            what: format!("event {} for {}: {what}", pair.0, Kind::id(pair.1)),
            at: of_copies
                .chain(life.requests.iter().map(|one| one.at))
                .max(),
            event: Some(pair.0),
            doubled: invariant == "One lineage",
            story,
        });
    }

    fn story(&self, life: &Life<'_>) -> Vec<String> {
        let mut lines: Vec<(i64, String)> = Vec::new();
        lines.extend(life.copies.iter().map(|copy| (copy.at, copy.to_string())));
        lines.extend(life.requests.iter().map(|one| (one.at, one.to_string())));
        let (from, until) = (
            lines.iter().map(|line| line.0).min().unwrap_or(0),
            lines.iter().map(|line| line.0).max().unwrap_or(0),
        );
        let around = self
            .history
            .faults
            .iter()
            .filter(|fault| fault.until >= from - 5000 && fault.from <= until + 5000);
        lines.extend(around.map(|fault| {
            let text = format!("{} fault until {}: {}", fault.from, fault.until, fault.what);
            (fault.from, text)
        }));
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Each acknowledged event has a command for each subscription that matches, and no event has more, or others.
    fn complete(&mut self, lives: &BTreeMap<Pair, Life<'_>>) {
        let none = Life::default();
        for sent in &self.history.sent {
            let certain = || {
                (0..SUBSCRIPTIONS.len()).filter(|&number| SUBSCRIPTIONS[number] != Kind::Volatile)
            };
            let new = |number: usize| {
                let life = lives.get(&(sent.event, number)).unwrap_or(&none);
                let copies = life.at(Place::Commands);
                copies.iter().filter(|copy| copy.cause == "new").count()
            };
            let wanted = |number: usize| SUBSCRIPTIONS[number].matches(sent.event) == Matched::Yes;
            // Kafka's loss, or its client's: hookstream never saw it.
            self.verdict.never_there += usize::from(sent.acknowledged && sent.records == 0);
            for number in certain() {
                // An event that stands twice is two to fan-out, whose webhooks have one id.
                let expected = if wanted(number) { sent.records } else { 0 };
                let found = new(number);
                let more_is_fine = self.promise == Promise::AtLeastOnce && expected > 0;
                if found == expected || (found > expected && more_is_fine) {
                    continue;
                }
                let pair = (sent.event, number);
                let life = lives.get(&pair).unwrap_or(&none);
                self.say(
                    "Complete",
                    pair,
                    life,
                    format!("{found} commands were made, not {expected}"),
                );
                if let Some(violation) = self.verdict.violations.last_mut() {
                    violation.doubled = found > expected;
                }
            }
        }
        let sent: HashSet<u32> = self.history.sent.iter().map(|sent| sent.event).collect();
        for (&pair, life) in lives {
            if !sent.contains(&pair.0) {
                self.say(
                    "Complete",
                    pair,
                    life,
                    "no such event was produced".to_owned(),
                );
            }
        }
    }

    /// An id belongs to one command, and a command has one id.
    fn identities(&mut self) {
        let mut ids: HashMap<&str, Pair> = HashMap::new();
        let mut pairs: HashMap<Pair, &str> = HashMap::new();
        let of_copies = self
            .history
            .copies
            .iter()
            .map(|copy| (copy.id.as_str(), (copy.event, copy.subscription)));
        let of_requests = self
            .history
            .requests
            .iter()
            .map(|one| (one.id.as_str(), (one.event, one.subscription)));
        let mut found = Vec::new();
        for (id, pair) in of_copies.chain(of_requests) {
            if *ids.entry(id).or_insert(pair) != pair || *pairs.entry(pair).or_insert(id) != id {
                found.push((pair, id.to_owned()));
            }
        }
        found.dedup();
        for (pair, id) in found {
            self.say(
                "Stable identity",
                pair,
                &Life::default(),
                format!("the id {id} is not this command's alone, or not its only one"),
            );
        }
    }

    /// Whether the event stands more than once in its topic: then its commands have several lives of one id each.
    fn is_double(&self, event: u32) -> bool {
        let at = event.checked_sub(1).map(|before| before as usize);
        let sent = at.and_then(|at| self.history.sent.get(at));
        sent.is_some_and(|sent| sent.records > 1)
    }

    /// A command is in one place at a time: each copy in a tier comes from one in the commands and leads to one.
    fn lineage(&mut self, pair: Pair, life: &Life<'_>) {
        if self.is_double(pair.0) {
            return;
        }
        let commands = life.at(Place::Commands);
        // A wait that is longer than the tier's delay is several rounds through it, one after the other.
        let mut waits: Vec<&Copy> = Vec::new();
        for copy in life.at(Place::Tier) {
            match waits.last() {
                Some(last)
                    if last.due == copy.due
                        && last.attempt == copy.attempt
                        && last.at < copy.at => {}
                _ => waits.push(copy),
            }
        }
        let replays = life.replays().len();
        let expected = 1 + waits.len() + replays;
        if self.promise == Promise::AtLeastOnce {
            self.verdict.doubled += commands.len().saturating_sub(expected);
            return;
        }
        if commands.len() != expected {
            let what = format!(
                "{} commands for one event, {} waits and {replays} replays",
                commands.len(),
                waits.len()
            );
            self.say("One lineage", pair, life, what);
            return;
        }
        let letters = life.at(Place::DeadLetters).len();
        if letters > 1 + replays {
            self.say(
                "One lineage",
                pair,
                life,
                format!("{letters} dead letters and {replays} replays"),
            );
        }
        if replays > 0 {
            return;
        }
        for (wait, next) in waits.iter().zip(commands.iter().skip(1)) {
            if wait.at > next.at || wait.attempt != next.attempt {
                self.say(
                    "One lineage",
                    pair,
                    life,
                    "two copies lived at a time".to_owned(),
                );
                return;
            }
        }
    }

    fn one_body(&mut self, pair: Pair, life: &Life<'_>) {
        let copies = life.copies.iter().filter(|copy| copy.what == What::Command);
        let hashes: HashSet<u64> = copies
            .map(|copy| copy.hash)
            .chain(life.requests.iter().map(|one| one.hash))
            .collect();
        if hashes.len() > 1 {
            self.say(
                "Stable identity",
                pair,
                life,
                "the body has changed".to_owned(),
            );
        }
    }

    fn never_early(&mut self, pair: Pair, life: &Life<'_>) {
        for request in &life.requests {
            let before = life
                .at(Place::Tier)
                .into_iter()
                .filter(|copy| copy.cause == "retry" && copy.attempt + 1 == request.attempt)
                .filter_map(|copy| copy.due)
                .min();
            if let Some(due) = before.filter(|&due| request.at < due) {
                // After a replay attempts are counted anew: an early one is then not told from a first round's.
                if life.replays().is_empty() {
                    let what = format!(
                        "attempt {} came {} ms early",
                        request.attempt,
                        due - request.at
                    );
                    self.say("Never early", pair, life, what);
                }
            }
        }
    }

    /// Each failed attempt is counted once: numbers are never skipped, and never start again but by a replay.
    fn attempts(&mut self, pair: Pair, life: &Life<'_>) {
        if !life.replays().is_empty() || self.is_double(pair.0) {
            return;
        }
        let failed: HashSet<u32> = life
            .at(Place::Tier)
            .iter()
            .filter(|copy| copy.cause == "retry")
            .map(|copy| copy.attempt)
            .collect();
        let highest = failed.iter().copied().max().unwrap_or(0);
        let skipped = (1..=highest).find(|number| !failed.contains(number));
        if let Some(number) = skipped {
            self.say(
                "Attempt counts survive",
                pair,
                life,
                format!("attempt {number} failed and was not counted"),
            );
            return;
        }
        if let Some(request) = life.requests.iter().find(|one| one.attempt > highest + 1) {
            let what = format!("attempt {} came after {highest} failures", request.attempt);
            self.say("Attempt counts survive", pair, life, what);
            return;
        }
        // In time: the first request of each number comes after the first of the number before.
        let mut first: BTreeMap<u32, i64> = BTreeMap::new();
        for request in &life.requests {
            let at = first.entry(request.attempt).or_insert(request.at);
            *at = (*at).min(request.at);
        }
        if !first.values().is_sorted() {
            self.say(
                "Attempt counts survive",
                pair,
                life,
                "a number was used before the one below it".to_owned(),
            );
        }
    }

    /// A letter is what the command was; each is replayed once.
    fn dead_letters(&mut self, pair: Pair, life: &Life<'_>) {
        let replays = life.replays();
        let once: HashSet<_> = replays.iter().collect();
        if once.len() != replays.len() && self.promise == Promise::ExactlyOnce {
            self.say(
                "Dead letters are whole",
                pair,
                life,
                "a letter was replayed twice".to_owned(),
            );
        }
        let commands = life.at(Place::Commands);
        let again = commands
            .iter()
            .filter(|copy| copy.cause == "replay")
            .count();
        if again < replays.len() || (again > replays.len() && self.promise == Promise::ExactlyOnce)
        {
            let what = format!(
                "{again} commands by replay, and {} facts that say so",
                replays.len()
            );
            self.say("Dead letters are whole", pair, life, what);
        }
        let letters = life.at(Place::DeadLetters);
        if let Some(letter) = letters.first()
            && SUBSCRIPTIONS[pair.1] != Kind::Volatile
        {
            let expected = match SUBSCRIPTIONS[pair.1].end(pair.0) {
                End::Dead(reason) => Some(reason),
                End::Delivered(_) => None,
            };
            if letter.reason.as_deref() != expected {
                let what = format!(
                    "dead-lettered for {:?}, and should be {expected:?}",
                    letter.reason
                );
                self.say("Dead letters are whole", pair, life, what);
            }
        }
    }

    /// At rest each command is delivered or dead-lettered, whichever its endpoint makes of it.
    fn outcome(&mut self, pair: Pair, life: &Life<'_>) {
        let kind = SUBSCRIPTIONS[pair.1];
        let accepted = life.requests.iter().any(|one| one.accepted);
        let letters = life.at(Place::DeadLetters).len();
        let replays = life.replays().len();
        let ended = if kind == Kind::Volatile {
            // It may have been deleted when its command came.
            accepted || letters > 0
        } else {
            match kind.end(pair.0) {
                End::Delivered(_) => accepted,
                End::Dead(_) => letters > replays,
            }
        };
        if !ended && !life.at(Place::Commands).is_empty() {
            let what = format!(
                "it ended nowhere: {letters} letters, {replays} replays, accepted: {accepted}"
            );
            self.say("Durable outcome", pair, life, what);
        }
    }

    /// What was committed is never taken back. A coordinator that has just begun may tell old positions for a moment; what
    /// the next reading does not show any more was not committed.
    fn positions(&mut self) {
        let mut told: BTreeMap<i32, Vec<&Position>> = BTreeMap::new();
        for position in &self.history.positions {
            told.entry(position.partition).or_default().push(position);
        }
        for readings in told.into_values() {
            let mut last = readings[0];
            let mut rest = readings[1..].iter().copied().peekable();
            while let Some(now) = rest.next() {
                let Some(what) = taken_back(last, now) else {
                    last = now;
                    continue;
                };
                let is_mended = |next: &&Position| taken_back(last, next).is_none();
                if self.brokers_begin(now.at) && rest.peek().is_some_and(is_mended) {
                    self.verdict.told_back += 1;
                    continue;
                }
                self.verdict.violations.push(Violation {
                    invariant: "Owner only",
                    what,
                    at: Some(now.at),
                    event: None,
                    doubled: false,
                    story: Vec::new(),
                });
                last = now;
            }
        }
    }

    /// Whether brokers were away a moment before.
    fn brokers_begin(&self, at: i64) -> bool {
        const AFTER: i64 = 60_000;
        let mut faults = self.history.faults.iter();
        faults.any(|fault| fault.of_brokers && (fault.from..fault.until + AFTER).contains(&at))
    }

    fn at_rest(&mut self) {
        for (topic, partition, offset) in &self.history.left {
            self.verdict.violations.push(Violation {
                invariant: "Durable outcome",
                what: format!(
                    "at rest {topic} {partition}:{offset} is not passed, or in an open transaction"
                ),
                at: None,
                event: None,
                doubled: false,
                story: Vec::new(),
            });
        }
    }

    /// A request may come twice when a fault came between it and the commit of its outcome.
    fn repeats(&mut self) {
        /// Commits come every 100 ms; on a busy machine an attempt, its outcome and its commit take longer.
        const BEFORE: i64 = 3_000;
        /// An owner that cannot commit goes on until it notices, by the time-out of a request (12 s); the next one takes
        /// over after the session.
        const AFTER: i64 = 18_000;
        let mut seen: HashMap<(&str, u32), usize> = HashMap::new();
        for request in &self.history.requests {
            *seen.entry((&request.id, request.attempt)).or_default() += 1;
        }
        self.verdict.repeated = seen.values().map(|count| count - 1).sum();
        // A machine that is too busy for the session is a fault that nobody injected: for as long as the session nothing
        // could be committed.
        let session = i64::try_from(self.history.session.as_millis()).unwrap();
        let injected = self.history.faults.iter();
        let injected = injected.map(|fault| (fault.from - BEFORE, fault.until + AFTER));
        let evicted = self.history.evictions.iter();
        let evicted = evicted.map(|&at| (at - session - BEFORE, at + BEFORE));
        let windows: Vec<(i64, i64)> = injected.chain(evicted).collect();
        let near = |request: &&Request| {
            let mut windows = windows.iter();
            windows.any(|&(from, until)| (from..=until).contains(&request.at))
        };
        self.verdict.allowed = self.history.requests.iter().filter(near).count();
        // Not only in number: the first of two must itself be near a fault.
        let mut first: HashMap<(&str, u32), &Request> = HashMap::new();
        let mut strays: Vec<(&Request, &Request)> = Vec::new();
        for request in &self.history.requests {
            let known = first
                .entry((&request.id, request.attempt))
                .or_insert(request);
            if !std::ptr::eq(*known, request) && !near(known) && !self.was_replayed(request) {
                strays.push((known, request));
            }
        }
        for (known, request) in strays.into_iter().take(20) {
            let violation = Violation {
                invariant: "Repeats are bounded",
                what: format!(
                    "event {} for {}: attempt {} was sent again without a fault",
                    request.event,
                    Kind::id(request.subscription),
                    request.attempt
                ),
                at: Some(request.at),
                event: Some(request.event),
                doubled: false,
                story: vec![known.to_string(), request.to_string()],
            };
            self.verdict.violations.push(violation);
        }
    }

    /// While only one tenant is at fault, the first attempts of healthy subscriptions come as soon as ever.
    fn isolated(&mut self) {
        /// From the event's record to the request. A busy machine takes a few hundred milliseconds.
        const LATEST: i64 = 5_000;
        let mut first: HashMap<Pair, i64> = HashMap::new();
        for request in &self.history.requests {
            let pair = (request.event, request.subscription);
            let at = first.entry(pair).or_insert(request.at);
            *at = (*at).min(request.at);
        }
        let probes = (0..SUBSCRIPTIONS.len()).filter(|&number| SUBSCRIPTIONS[number].is_probe());
        let probes: Vec<usize> = probes.collect();
        let faults = self.history.faults.iter().filter(|fault| fault.of_tenant);
        let faults: Vec<_> = faults.collect();
        for sent in self.history.sent.iter().filter(|sent| sent.records == 1) {
            let Some(fault) = faults
                .iter()
                .find(|fault| (fault.from..fault.until).contains(&sent.at))
            else {
                continue;
            };
            for &number in &probes {
                // One that never comes violates other rules.
                let Some(&at) = first.get(&(sent.event, number)) else {
                    continue;
                };
                let latency = at - sent.at;
                self.verdict.beside_tenants.push(latency);
                if latency > LATEST {
                    self.verdict.violations.push(Violation {
                        invariant: "Isolated",
                        what: format!(
                            "event {} for {}: {latency} ms until its first attempt, beside another tenant's fault: {}",
                            sent.event,
                            Kind::id(number),
                            fault.what
                        ),
                        at: Some(at),
                        event: Some(sent.event),
                        doubled: false,
                        story: Vec::new(),
                    });
                }
            }
        }
    }

    fn was_replayed(&self, request: &Request) -> bool {
        if self.is_double(request.event) {
            return true;
        }
        let mut copies = self.history.copies.iter();
        copies.any(|copy| copy.id == request.id && matches!(copy.what, What::Replayed(..)))
    }
}
