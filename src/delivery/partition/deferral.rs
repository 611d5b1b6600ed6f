//! Commands deferred by reference: what a quick lane has no room for stays in its partition and is read again.
//!
//! A whale is a subscriber whose endpoint works, and who gets more at a time than that endpoint takes. Holding the
//! partition for it delays its neighbours; parking costs two appends a command. So a full lane that is quick drops its
//! commands from memory instead. They stay unfinished in the window, where they rest, and are read again when the lane
//! has room. While a lane has deferred commands, its newer ones are deferred too, so that they keep their order; of a lane
//! it is enough to know the first and the last offset. Commands that wait for a probe (`until_probe`) are deferred in the
//! same way, but have no order.
//!
//! - **Cost**: a pass reads a part of the log once for all lanes that have room and whose first deferred command lies in
//!   it. Lanes take turns in beginning a pass, so none starves. When passes have read `READS` records for each
//!   command that was deferred, the next ones take all commands of their part, and those without room are parked.
//! - **Bounds**: [`MOST_COMMANDS`], [`MOST_SPAN`] and [`MOST_BYTES`], so that a new owner, who knows only what is
//!   unfinished, reads them again in some five seconds; and what the window can describe. Beyond these, commands are held
//!   or parked, as without deferral.
//!
//! Pure: the shell reads.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

use super::env::Amount;
use crate::model::command::Command;
use crate::model::units::{EpochMs, Offset};
use crate::model::window::Window;

/// The most deferred commands of a partition. Reading runs at 100,000 records per second and more.
pub const MOST_COMMANDS: usize = 400_000;
/// The most offsets from the first deferred command to the last one.
pub const MOST_SPAN: i64 = 500_000;
/// What deferred commands weigh at most, bytes: five seconds at some 128 MiB per second.
pub const MOST_BYTES: usize = 640 * 1024 * 1024;
/// With more offsets than this between the position and the end, passes leave nothing behind.
const SWEEP_SPAN: u64 = 1_000_000;
/// The most records that a pass reads.
pub const PASS_RECORDS: usize = 16_384;
/// Commands that a pass takes for a lane that will park them.
pub const PASS_PARKED: usize = 2_000;
/// Records read in passes for each deferred command, before passes leave nothing behind.
const READS: i64 = 4;
/// Further ones for one that waits for a probe: it may lie among many others, but in a short span.
const READS_FOR_PROBE: i64 = 60;

/// The deferred commands of one subscription.
#[derive(Debug)]
pub(super) struct Deferred {
    /// All of them are at or behind this offset.
    pub(super) from: i64,
    /// The last one.
    pub(super) last: i64,
    /// The smallest offset that was deferred since the last pass began, which does not know it.
    added: i64,
    /// When the first of those expires that were deferred until a probe.
    pub(super) expire: Option<EpochMs>,
    /// Since when the first of those waits.
    pub(super) waits_since: Option<Instant>,
    commands: usize,
    bytes: usize,
}

/// A part of the log to read again.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The first offset.
    pub from: i64,
    /// Behind the last offset.
    pub to: i64,
    /// How many commands to take of each of these subscriptions.
    pub quotas: BTreeMap<Box<str>, usize>,
    /// The pass ends when so many of this one were taken.
    pub leader: Box<str>,
    /// Which offsets rest.
    pub window: Box<Window>,
}

/// What a pass found.
#[derive(Debug, Default)]
pub struct Found {
    /// Commands that rest, ascending.
    pub commands: Vec<(Offset, Box<Command>)>,
    /// Of subscriptions of which more was found than asked for: where the rest begins.
    pub left: BTreeMap<Box<str>, i64>,
    /// The position up to which the log was read.
    pub seen_to: i64,
    /// Runs of offsets whose records were deleted by retention.
    pub gone: Vec<(i64, i64)>,
    /// Records read.
    pub records: usize,
}

/// All deferred commands of a partition.
#[derive(Debug, Default)]
pub(super) struct Deferrals {
    of: BTreeMap<Rc<str>, Deferred>,
    commands: usize,
    bytes: usize,
    /// The subscriptions of the pass under way.
    pub(super) reading: Option<Vec<Box<str>>>,
    /// Whether commands of this pass for which there is no room are parked.
    pub(super) is_sweep: bool,
    /// Whether a command that was read again is being routed.
    pub(super) is_routing: bool,
    /// Whose turn it was last to begin a pass.
    last_leader: Option<Rc<str>>,
    /// Records that may be read before passes leave nothing behind.
    credit: i64,
    /// Whether this pass counts: it is for a lane that has room, and not for one whose commands will be parked.
    is_charged: bool,
}

impl Deferrals {
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    pub(super) fn commands(&self) -> usize {
        self.commands
    }

    /// Whether a subscription has deferred commands before `offset`.
    pub(super) fn are_before(&self, name: &str, offset: Offset) -> bool {
        self.of.get(name).is_some_and(|of| of.from <= offset.0)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.of.contains_key(name)
    }

    /// How many subscriptions have deferred commands.
    pub(super) fn subscriptions(&self) -> usize {
        self.of.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Rc<str>> {
        self.of.keys()
    }

    /// Whether another command, at this offset, is within the bounds.
    pub(super) fn has_room(&self, offset: Offset, bytes: usize) -> bool {
        let first = self.of.values().map(|of| of.from).min();
        self.commands < MOST_COMMANDS
            && self.bytes + bytes <= MOST_BYTES
            && first.is_none_or(|first| offset.0 - first < MOST_SPAN)
    }

    /// Notes a command that is deferred, for the first time or again.
    pub(super) fn add(&mut self, name: &str, offset: Offset, bytes: usize) {
        if !self.is_routing {
            self.credit += READS;
        }
        self.commands += 1;
        self.bytes += bytes;
        if !self.of.contains_key(name) {
            let none = Deferred {
                from: offset.0,
                last: offset.0,
                added: i64::MAX,
                expire: None,
                waits_since: None,
                commands: 0,
                bytes: 0,
            };
            self.of.insert(Rc::from(name), none);
        }
        let Some(of) = self.of.get_mut(name) else {
            return;
        };
        of.from = of.from.min(offset.0);
        if !self.is_routing {
            of.added = of.added.min(offset.0);
        }
        of.last = of.last.max(offset.0);
        of.commands += 1;
        of.bytes += bytes;
    }

    /// A command that was just noted waits for a probe, and expires at this time.
    pub(super) fn wait_for_probe(&mut self, name: &str, expires: EpochMs, now: Instant) {
        if let Some(of) = self.of.get_mut(name) {
            of.expire = Some(of.expire.map_or(expires, |first| first.min(expires)));
            of.waits_since.get_or_insert(now);
        }
        self.credit += READS_FOR_PROBE;
    }

    /// What a subscription has deferred.
    pub(super) fn get(&self, name: &str) -> Option<&Deferred> {
        self.of.get(name)
    }

    /// Takes a command that was read again; those behind it stay.
    pub(super) fn take(&mut self, name: &str, offset: Offset, bytes: usize) {
        if let Some(of) = self.of.get_mut(name) {
            of.from = offset.0 + 1;
            let (commands, bytes) = (of.commands.min(1), of.bytes.min(bytes));
            of.commands -= commands;
            of.bytes -= bytes;
            self.commands -= commands;
            self.bytes -= bytes;
        }
    }

    /// Nothing of a subscription is deferred before `from`.
    pub(super) fn advance(&mut self, name: &str, from: i64) {
        let Some(of) = self.of.get_mut(name) else {
            return;
        };
        of.from = of.from.max(from).min(of.added);
        if of.from > of.last {
            // What was not found was deleted.
            self.commands -= of.commands;
            self.bytes -= of.bytes;
            self.of.remove(name);
        }
        if self.of.is_empty() {
            self.credit = 0;
        }
    }

    /// A pass has read so many records.
    pub(super) fn spend(&mut self, records: usize) {
        if self.is_charged {
            self.credit -= i64::try_from(records).unwrap_or(i64::MAX);
        }
    }

    /// The next pass, when `wants` says how many commands each lane would take, if any. One begins for a lane that wants
    /// its commands by `when`, or when too much lies between the position and the end.
    pub(super) fn next_pass(
        &mut self,
        window: &Window,
        when: When,
        wants: impl Fn(&str, &Deferred) -> Option<Wanted>,
    ) -> Option<Pass> {
        let wanted: BTreeMap<&Rc<str>, Wanted> = self
            .of
            .iter()
            .filter_map(|(name, of)| Some((name, wants(name, of)?)))
            .collect();
        let urgent = || {
            let each = wanted.iter().filter(|(_, wanted)| wanted.when <= when);
            each.map(|(name, _)| Rc::clone(name))
        };
        let is_later = |name: &Rc<str>| self.last_leader.as_ref().is_none_or(|last| name > last);
        let in_turn = urgent().find(is_later).or_else(|| urgent().next());
        let is_long = when == When::NextTick && window.span() > SWEEP_SPAN;
        self.is_sweep = is_long || in_turn.is_some() && self.credit < 0;
        let first = |name: &str| self.of.get(name).map_or(0, |of| of.from);
        // Those that wait for a probe are not in anybody's way before too much lies behind them.
        let stays = |name: &Rc<str>| {
            let wanted = wanted.get(name);
            !is_long && wanted.is_some_and(|wanted| wanted.when == When::AfterProbe)
        };
        let all = || self.of.keys().filter(|&name| !stays(name));
        let oldest = || all().min_by_key(|name| first(name)).cloned();
        let leader = if self.is_sweep { oldest() } else { in_turn }?;
        let from = first(&leader);
        let reach = from + i64::try_from(PASS_RECORDS).unwrap_or(i64::MAX);
        let starts_within = |of: &Deferred| (from..reach).contains(&of.from);
        let in_reach = || self.of.iter().filter(|(_, of)| starts_within(of));
        let quotas: BTreeMap<Box<str>, usize> = in_reach()
            .filter_map(|(name, _)| {
                let quota = match wanted.get(name) {
                    _ if stays(name) => 0,
                    _ if self.is_sweep => usize::MAX,
                    wanted => wanted?.commands,
                };
                (quota > 0).then(|| (Box::from(&**name), quota))
            })
            .collect();
        let last = in_reach()
            .filter(|(name, _)| quotas.contains_key(&***name))
            .map(|(_, of)| of.last)
            .max()?;
        let leads = wanted.get(&leader);
        self.is_charged = leads.is_none_or(|wanted| wanted.when == When::Now);
        self.last_leader = Some(Rc::clone(&leader));
        for name in quotas.keys() {
            if let Some(of) = self.of.get_mut(&**name) {
                of.added = i64::MAX;
            }
        }
        self.reading = Some(quotas.keys().cloned().collect());
        Some(Pass {
            from,
            to: last + 1,
            quotas,
            leader: Box::from(&*leader),
            window: Box::new(window.clone()),
        })
    }
}

/// What a lane would take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) commands: usize,
    pub(super) when: When,
}

/// When a lane wants its commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum When {
    Now,
    /// At the next tick at the earliest.
    NextTick,
    /// When a pass reads the part for another lane.
    WithAnother,
    /// Not while its breaker waits for a probe.
    AfterProbe,
}

/// Collects what a pass finds, record by record.
#[derive(Debug)]
pub struct Collector {
    pass: Pass,
    found: Found,
    bytes: usize,
    most: Amount,
    is_done: bool,
}

impl Collector {
    /// Nothing is read yet; the pass ends when it has taken `most`.
    #[must_use]
    pub fn new(pass: Pass, most: Amount) -> Self {
        let found = Found {
            seen_to: pass.from,
            ..Found::default()
        };
        Self {
            pass,
            found,
            bytes: 0,
            most,
            is_done: false,
        }
    }

    /// Whether nothing was read.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.found.records == 0
    }

    /// The log begins at `low`.
    pub fn begin(&mut self, low: i64) {
        self.skip_to(low.min(self.pass.to));
    }

    /// The next record, of this subscription.
    pub fn visit(
        &mut self,
        offset: Offset,
        subscription: Option<&str>,
        read: impl FnOnce() -> Option<Box<Command>>,
    ) {
        if self.is_done || offset.0 < self.found.seen_to {
            return;
        }
        self.skip_to(offset.0);
        self.found.seen_to = offset.0 + 1;
        self.found.records += 1;
        self.is_done = self.found.records >= PASS_RECORDS;
        if !self.pass.window.rests(offset) {
            return;
        }
        let Some((name, quota)) =
            subscription.and_then(|name| Some((name, self.pass.quotas.get_mut(name)?)))
        else {
            return;
        };
        if *quota == 0 {
            self.found.left.entry(name.into()).or_insert(offset.0);
            return;
        }
        let Some(command) = read() else {
            return;
        };
        *quota -= 1;
        self.bytes += command.weight();
        self.is_done |= *quota == 0 && *name == *self.pass.leader;
        self.found.commands.push((offset, command));
        self.is_done |=
            self.bytes >= self.most.bytes || self.found.commands.len() >= self.most.commands;
    }

    /// Whether enough was read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Found {
        self.found
    }

    /// There is no record before `offset`: what rests there was deleted.
    fn skip_to(&mut self, offset: i64) {
        let gone = self.pass.window.resting(self.found.seen_to, offset);
        self.found.gone.extend(gone);
        self.found.seen_to = self.found.seen_to.max(offset);
    }
}
