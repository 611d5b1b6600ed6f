//! The checks: what holds at any moment, and what holds at the end. Names are those of the invariants in `lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use hookstream::config::Settings;
use hookstream::lag::figures::Figures;
use hookstream::model::command::header;
use hookstream::model::dead_letter::FACT;
use hookstream::model::source::{self, Mark, Point, Source};
use hookstream::model::units::{Offset, Position};
use hookstream::model::window::{Place, ReadError, Window};

use super::endpoints::Behaviour;
use super::history::{EPOCH, Hash, History, Signed, What};
use super::plan::{MOVED, MOVER, Plan, Sub};
use super::port::CLUSTER;
use crate::kafka::Tp;
use crate::kafka::log::{Ms, Record};
use crate::kafka::net::Net;

/// A copy of a command in a topic.
#[derive(Clone, Debug)]
struct Copy {
    offset: i64,
    id: Arc<str>,
}

/// What is known of a webhook.
#[derive(Clone, Debug, Default)]
struct Webhook {
    event: Arc<str>,
    subscription: Arc<str>,
    subscriber: Arc<str>,
    body: u64,
    /// Commands with the cause `new`.
    begun: u32,
    dead: u32,
    /// Commands with the cause `replay`.
    replayed: u32,
    /// Dead letters that are settled.
    settled: u32,
    /// Whether fan-out has written its event again after the subscription was made again for the other subscriber. Where the
    /// first command was deleted before it was finished, this one is sent.
    copied_for_mover: bool,
}

impl Webhook {
    /// Dead letters that were not replayed.
    fn left(&self) -> u32 {
        self.dead.saturating_sub(self.replayed)
    }
}

/// One kind of topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Commands,
    Tier,
    DeadLetters,
}

/// Follows the topics of a run.
pub struct Checker {
    net: Net,
    topics: Vec<(Arc<str>, Kind, &'static str)>,
    groups: [String; 2],
    events_topic: Arc<str>,
    events_group: String,
    partitions: i32,
    /// Clocks differ.
    skewed: bool,
    event_partitions: i32,
    read: BTreeMap<Tp, i64>,
    /// Copies that were not finished when they were looked at last.
    open: BTreeMap<Tp, Vec<Copy>>,
    webhooks: BTreeMap<Arc<str>, Webhook>,
    /// Where commands come from; what comes again from there is a copy that fan-out wrote after a failure.
    sources: BTreeSet<(Tp, Source, Point)>,
    /// Subscriptions that are made again for another subscriber, and so for another partition: what fan-out writes again
    /// there is no copy, and each subscriber may have one.
    moving: BTreeSet<String>,
    /// Copies that may exist once only.
    keys: BTreeSet<(Arc<str>, Arc<str>, String)>,
    /// When a webhook was seen to be in no place any more, ms since the beginning.
    finished: BTreeMap<Arc<str>, Ms>,
    /// Webhooks whose only command was deleted before anybody read it.
    lost: BTreeSet<Arc<str>>,
    /// Webhooks with dead letters that were read lately.
    newly_dead: BTreeSet<Arc<str>>,
    /// Commits may arrive behind later ones, and take positions back until they are committed again.
    late_commits: bool,
    /// Webhooks that are in two places, and since when, ms since the beginning.
    doubled: BTreeMap<Arc<str>, Ms>,
    /// Each partition with its group, where one reads it.
    places: Vec<(Tp, Option<String>)>,
    /// A hash over all that a look depends on, as of the last one, and whether nothing was open.
    seen: Option<(u64, bool)>,
    /// What is wrong.
    pub violations: Vec<String>,
}

/// An event and a subscription.
type Pair = (Arc<str>, Arc<str>);

/// For how long a late commit may take positions back: until everything is committed again.
const TAKEN_BACK: Duration = Duration::from_secs(2);

fn text(record: &Record, name: &str) -> String {
    let found = record.headers.iter().find(|(at, _)| &**at == name);
    let value = found.and_then(|(_, value)| value.as_ref());
    value.map_or_else(String::new, |value| {
        String::from_utf8_lossy(value).into_owned()
    })
}

impl Checker {
    /// Of a run with these settings.
    pub fn new(net: &Net, settings: &Settings, plan: &Plan) -> Self {
        let mut topics = vec![
            (
                Arc::from(settings.topics.commands()),
                Kind::Commands,
                "deliver",
            ),
            (
                Arc::from(settings.topics.dead_letters()),
                Kind::DeadLetters,
                "",
            ),
        ];
        let tiers = settings.retry_topics().into_iter();
        topics.extend(tiers.map(|topic| (Arc::from(topic), Kind::Tier, "release")));
        let prefix = &settings.group_prefix;
        let events: Arc<str> = Arc::from(settings.topics.events[0].as_str());
        let of_events = Self::all_partitions(&events, plan.event_partitions).into_iter();
        let mut places: Vec<_> = of_events
            .map(|tp| (tp, Some(format!("{prefix}fanout"))))
            .collect();
        for (topic, _, role) in &topics {
            let group = (!role.is_empty()).then(|| format!("{prefix}{role}"));
            let all = Self::all_partitions(topic, plan.partitions).into_iter();
            places.extend(all.map(|tp| (tp, group.clone())));
        }
        Self {
            net: net.clone(),
            topics,
            places,
            seen: None,
            groups: [format!("{prefix}deliver"), format!("{prefix}release")],
            events_topic: events,
            events_group: format!("{prefix}fanout"),
            partitions: plan.partitions,
            skewed: plan
                .acts
                .iter()
                .any(|(_, act)| matches!(act, super::plan::Act::Clock(..))),
            event_partitions: plan.event_partitions,
            read: BTreeMap::new(),
            open: BTreeMap::new(),
            webhooks: BTreeMap::new(),
            sources: BTreeSet::new(),
            moving: {
                let ids = plan.subs.iter().map(|sub| sub.id.clone());
                ids.filter(|id| plan.moves(id)).collect()
            },
            keys: BTreeSet::new(),
            finished: BTreeMap::new(),
            lost: BTreeSet::new(),
            newly_dead: BTreeSet::new(),
            late_commits: plan
                .acts
                .iter()
                .any(|(_, act)| matches!(act, super::plan::Act::LateCommit(..))),
            doubled: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    fn violated(&mut self, name: &str, what: String) {
        let at = self.net.now() - EPOCH;
        // One that persists is reported once.
        let line = format!("{name}: {what}");
        if !self.violations.iter().any(|old| old.ends_with(&line)) {
            self.violations.push(format!("{at} ms: {line}"));
        }
    }

    fn all_partitions(topic: &Arc<str>, count: i32) -> Vec<Tp> {
        let each = (0..count).map(|partition| Tp {
            topic: Arc::clone(topic),
            partition,
        });
        each.collect()
    }

    /// A hash over the ends and the positions of all partitions.
    fn present(&self) -> u64 {
        let mut hash = Hash::default();
        hash.add(&[u8::from(self.has_evicted())]);
        self.net.with(|cluster, _| {
            for (tp, group) in &self.places {
                if let Some(bounds) = cluster.bounds(tp) {
                    for offset in [bounds.start, bounds.stable, bounds.end] {
                        hash.add(&offset.to_le_bytes());
                    }
                }
                match group.as_ref().map(|group| cluster.position(group, tp)) {
                    Some(Ok(Some((position, metadata)))) => {
                        hash.add(&position.to_le_bytes());
                        hash.add(metadata.as_bytes());
                    }
                    Some(Ok(None)) => hash.add(&[1]),
                    Some(Err(_)) => hash.add(&[2]),
                    None => {}
                }
            }
        });
        hash.0
    }

    /// Reads on, and checks what holds at any moment. Returns whether nothing is open.
    pub fn look(&mut self) -> bool {
        let present = self.present();
        // What is in two places may stay there only for a while.
        let is_same = |seen: &(u64, bool)| seen.0 == present && self.doubled.is_empty();
        if let Some((_, settled)) = self.seen.filter(is_same) {
            return settled;
        }
        let settled = self.look_anew();
        self.seen = Some((present, settled));
        settled
    }

    fn look_anew(&mut self) -> bool {
        let topics = self.topics.clone();
        for (topic, kind, _) in &topics {
            for tp in Self::all_partitions(topic, self.partitions) {
                self.read_on(&tp, *kind);
            }
        }
        self.lose_what_was_held();
        // Its commands are in another topic, and all topics are read by now.
        for id in std::mem::take(&mut self.newly_dead) {
            let left = self.webhooks.get(&id).map_or(0, Webhook::left);
            let may_move = self
                .webhooks
                .get(&id)
                .is_some_and(|known| self.moving.contains(&*known.subscription));
            if left > 1 && !may_move {
                self.violated("One lineage", format!("{id} is dead {left} times"));
            }
        }
        let mut live: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        let mut settled = self.events_done() && self.all_stable();
        let mut is_whole = self.all_stable();
        for (topic, kind, role) in &topics {
            if *kind == Kind::DeadLetters {
                continue;
            }
            let group = self.groups[usize::from(*role == "release")].clone();
            for tp in Self::all_partitions(topic, self.partitions) {
                let found = self.net.with(|cluster, _| cluster.position(&group, &tp));
                let Ok(found) = found else {
                    // The end of a transaction is under way.
                    settled = false;
                    is_whole = false;
                    continue;
                };
                let place = Place::new(CLUSTER, &tp.topic, tp.partition);
                let window = found.map(|(position, metadata)| {
                    let metadata = if *kind == Kind::Commands {
                        &*metadata
                    } else {
                        ""
                    };
                    Window::restore(Position(position), metadata, place)
                });
                let end = self.read.get(&tp).copied().unwrap_or(0);
                let window = match window {
                    // Positions that a mirror copied say nothing here.
                    Some((window, None | Some(ReadError::OtherCluster))) => Some(window),
                    Some((_, Some(error))) => {
                        self.violated("Bounded", format!("metadata of {tp:?}: {error}"));
                        None
                    }
                    None => None,
                };
                if let Some(window) = &window
                    && window.position().0 > end
                {
                    let is_end = self.net.with(|cluster, _| cluster.bounds(&tp));
                    if is_end.is_some_and(|bounds| window.position().0 > bounds.end) {
                        let at = window.position().0;
                        self.violated(
                            "Durable outcome",
                            format!("{tp:?} is committed at {at}, beyond its end"),
                        );
                    }
                }
                let Some(open) = self.open.get_mut(&tp) else {
                    continue;
                };
                if let Some(window) = &window {
                    let position = window.position().0;
                    open.retain(|copy| {
                        copy.offset >= position && !window.is_finished(Offset(copy.offset))
                    });
                }
                for copy in open.iter() {
                    let at = format!("{} {} {}", tp.topic, tp.partition, copy.offset);
                    live.entry(Arc::clone(&copy.id)).or_default().push(at);
                }
            }
        }
        settled &= live.is_empty();
        if is_whole && self.all_stable() {
            let now = self.net.now() - EPOCH;
            for id in self.webhooks.keys() {
                // Of a command that was deleted nobody can tell whether a process holds it.
                match live.contains_key(id) || self.lost.contains(id) {
                    true => self.finished.remove(id),
                    false => Some(*self.finished.entry(Arc::clone(id)).or_insert(now)),
                };
            }
        }
        let (now, mut doubled) = (self.net.now() - EPOCH, BTreeSet::new());
        for (id, mut places) in live {
            if self.webhooks.get(&id).is_some_and(|known| known.left() > 0) {
                places.push("dead letters".to_owned());
            }
            let known = self.webhooks.get(&id);
            let may_move = known.is_some_and(|known| self.moving.contains(&*known.subscription));
            if places.len() > 1 && !may_move {
                doubled.insert(Arc::clone(&id));
                let since = *self.doubled.entry(Arc::clone(&id)).or_insert(now);
                // The commit that takes it back may be late itself.
                let late = self.net.late();
                let is_late = late.is_some_and(|late| Instant::now() < late + TAKEN_BACK);
                let lasted = Duration::from_millis((now - since).unsigned_abs());
                if !self.late_commits || lasted >= TAKEN_BACK && !is_late {
                    self.violated("One lineage", format!("{id} is in {}", places.join(", ")));
                }
            }
        }
        self.doubled.retain(|id, _| doubled.contains(id));
        settled
    }

    /// An operator has deleted all commands of a partition; those from `read` on may not have been read.
    pub fn deleted(&mut self, tp: &Tp, read: i64) {
        self.seen = None;
        let Some(open) = self.open.get_mut(tp) else {
            return;
        };
        let lost = open.extract_if(.., |copy| copy.offset >= read);
        self.lost.extend(lost.map(|copy| copy.id));
    }

    /// Whether a process has lost its partitions of delivery, and with them what it held in memory.
    pub fn has_evicted(&self) -> bool {
        self.net.has_evicted(&self.groups[0])
    }

    /// Whether all that is open was deleted unread, as far as anybody can tell: a process that holds such a command after all
    /// may write an outcome of it while it stops.
    pub fn has_only_lost_open(&self) -> bool {
        let mut open = self.open.values().flatten();
        self.events_done() && self.all_stable() && open.all(|copy| self.lost.contains(&copy.id))
    }

    /// What was deleted and what a process held that has lost its partitions since, nobody can read again.
    fn lose_what_was_held(&mut self) {
        if !self.has_evicted() {
            return;
        }
        let (commands, _, _) = &self.topics[0];
        for tp in Self::all_partitions(commands, self.partitions) {
            let bounds = self.net.with(|cluster, _| cluster.bounds(&tp));
            if let (Some(bounds), Some(open)) = (bounds, self.open.get_mut(&tp)) {
                let lost = open.extract_if(.., |copy| copy.offset < bounds.start);
                self.lost.extend(lost.map(|copy| copy.id));
            }
        }
    }

    /// Figures of the backlog count nothing that does not exist.
    pub fn bounds(&mut self, figures: &Figures) {
        self.look();
        for one in &figures.subscribers {
            let own = self.webhooks.values();
            let own = own.filter(|known| *known.subscriber == *one.name);
            let (mut begun, mut dead) = (0, 0);
            for known in own {
                begun += u64::from(known.begun + known.replayed);
                dead += u64::from(known.dead);
            }
            let pending = one.ready + one.waiting;
            let died = one.dead_letters.values().sum::<u64>();
            // After a late commit moves positions backwards, finished commands are pending again and finish twice.
            let more = !self.late_commits && (pending > begun || one.finished > begun);
            // A subscription that is made again for another subscriber has commands of both.
            if self.moving.is_empty() && (died > dead || more) {
                let (name, finished) = (&one.name, one.finished);
                self.violated(
                    "Lag",
                    format!("{pending} pending, {finished} finished and {died} dead of {begun} commands, {dead} dead, of {name}"),
                );
            }
        }
    }

    /// What is wrong with figures that were made when nothing was open.
    ///
    /// # Errors
    /// What it is.
    pub fn settled(&self, figures: &Figures) -> Result<(), String> {
        let total = &figures.total;
        let dead: u64 = self
            .webhooks
            .values()
            .map(|known| u64::from(known.left()))
            .sum();
        if total.ready + total.waiting > 0 || total.dead_letters != dead || figures.behind > 0 {
            return Err(format!(
                "{total:?} of {dead} dead, {} behind",
                figures.behind
            ));
        }
        Ok(())
    }

    fn events_done(&self) -> bool {
        let each = Self::all_partitions(&self.events_topic, self.event_partitions);
        self.net.with(|cluster, _| {
            each.iter().all(|tp| {
                let end = cluster.bounds(tp).map_or(0, |bounds| bounds.end);
                let found = cluster.position(&self.events_group, tp);
                end == 0 || matches!(found, Ok(Some((position, _))) if position >= end)
            })
        })
    }

    /// No open transaction hides records.
    fn all_stable(&self) -> bool {
        self.topics.iter().all(|(topic, _, _)| {
            let all = Self::all_partitions(topic, self.partitions);
            let bounds = |tp: &Tp| self.net.with(|cluster, _| cluster.bounds(tp));
            let mut each = all.iter().filter_map(bounds);
            each.all(|bounds| bounds.stable == bounds.end)
        })
    }

    fn read_on(&mut self, tp: &Tp, kind: Kind) {
        let from = self.read.get(tp).copied().unwrap_or(0);
        let Some(found) = self.net.with(|cluster, _| cluster.peek(tp, from)) else {
            return;
        };
        self.read.insert(tp.clone(), found.next);
        for (offset, record) in found.records {
            self.take(tp, kind, offset, &record);
        }
    }

    fn take(&mut self, tp: &Tp, kind: Kind, offset: i64, record: &Record) {
        let id: Arc<str> = Arc::from(text(record, header::WEBHOOK_ID));
        let body = Hash::of(record.value.as_deref().unwrap_or_default());
        let mark = (kind == Kind::Commands).then(|| text(record, source::HEADER));
        if let Some(mark) = mark.filter(|text| !text.is_empty()) {
            let Ok(mark) = Mark::parse(mark.as_bytes()) else {
                let what = format!("{tp:?} {offset} has the source {mark:?}");
                return self.violated("One lineage", what);
            };
            if !self.sources.insert((tp.clone(), mark.source, mark.at)) {
                let same = self.webhooks.get(&id);
                if same.is_none_or(|known| known.body != body) {
                    let what = format!("{id} in {tp:?} {offset} is no copy, and has its source");
                    self.violated("Stable identity", what);
                }
                let is_for_mover = record.key.as_deref() == Some(MOVER.as_bytes());
                if let Some(known) = self.webhooks.get_mut(&id) {
                    known.copied_for_mover |= is_for_mover;
                }
                return;
            }
        }
        let (attempt, cause, due) = (
            text(record, header::ATTEMPT),
            text(record, header::CAUSE),
            text(record, header::DUE),
        );
        // A replay begins anew.
        let begun = text(record, header::REPLAYED);
        let mut key = format!("{attempt} {cause} {due} {begun}");
        let may_move = self.moving.contains(&text(record, header::SUBSCRIPTION));
        if may_move {
            let subscriber = record.key.as_deref().unwrap_or_default();
            key.push_str(&String::from_utf8_lossy(subscriber));
        }
        // A record may pass the same tier several times on its way, and each time it waits it is the same.
        // Clocks that differ release a record too early, and it goes back.
        if kind == Kind::Commands
            && !self.skewed
            && cause != "parked"
            && !self
                .keys
                .insert((Arc::clone(&tp.topic), Arc::clone(&id), key.clone()))
        {
            let what = format!("{} has {id} ({key}) twice", tp.topic);
            self.violated("One lineage", what);
        }
        let known = self.webhooks.entry(Arc::clone(&id)).or_default();
        let is_first = known.begun == 0 && known.dead == 0;
        if kind == Kind::DeadLetters && text(record, FACT) != "dead-lettered" {
            known.settled += 1;
            return;
        }
        if cause == "new" && kind == Kind::Commands {
            known.begun += 1;
            if may_move && known.begun == 2 {
                known.subscriber = Arc::from(MOVER);
                self.finished.remove(&id);
            }
        }
        if cause == "replay" && kind == Kind::Commands {
            known.replayed += 1;
            self.finished.remove(&id);
        }
        if kind == Kind::DeadLetters {
            known.dead += 1;
            self.newly_dead.insert(Arc::clone(&id));
        }
        let begun = known.begun;
        let (event, subscription) = (
            text(record, header::EVENT_ID),
            text(record, header::SUBSCRIPTION),
        );
        let mut wrong = Vec::new();
        if is_first {
            known.event = Arc::from(event);
            known.subscription = Arc::from(subscription);
            let key = record.key.as_deref().unwrap_or_default();
            known.subscriber = Arc::from(String::from_utf8_lossy(key));
            known.body = body;
        } else if known.body != body {
            wrong.push((
                "Stable identity",
                format!("{id} changed its body in {tp:?} {offset}"),
            ));
        } else if *known.event != event || *known.subscription != subscription {
            wrong.push((
                "Stable identity",
                format!("{id} is of two events or subscriptions"),
            ));
        }
        if begun != 1 && !(may_move && begun == 2) {
            wrong.push(("Complete", format!("{id} was fanned out {begun} times")));
        }
        for (name, what) in wrong {
            self.violated(name, what);
        }
        if kind != Kind::DeadLetters {
            let open = self.open.entry(tp.clone()).or_default();
            open.push(Copy { offset, id });
        }
    }

    /// What is still open, for people.
    pub fn open(&self) -> String {
        let each = self.open.iter().filter(|(_, open)| !open.is_empty());
        let each = each.map(|(tp, open)| {
            let some: Vec<_> = open.iter().take(4).map(|copy| copy.offset).collect();
            let position = self
                .groups
                .each_ref()
                .map(|group| self.net.with(|cluster, _| cluster.position(group, tp)));
            let [deliver, release] = position;
            let position = match (deliver, release) {
                (Ok(Some((at, _))), _) | (_, Ok(Some((at, _)))) => at.to_string(),
                (Err(_), _) | (_, Err(_)) => "unstable".to_owned(),
                _ => "none".to_owned(),
            };
            format!(
                "{} {} at {position}: {} open {some:?}",
                tp.topic,
                tp.partition,
                open.len()
            )
        });
        let mut all: Vec<_> = each.collect();
        if !self.all_stable() {
            all.push("an open transaction hides records".to_owned());
        }
        if !self.events_done() {
            all.push("events are not fanned out".to_owned());
        }
        all.join("; ")
    }

    /// Checks what holds at the end. `wave` are the events that were published after all faults.
    pub fn end(&mut self, plan: &Plan, history: &History, wave: &BTreeSet<String>) {
        let mut accepted = BTreeSet::new();
        for (_, what) in &history.0 {
            if let What::Response { id, status, .. } = what
                && (200..300).contains(status)
            {
                accepted.insert(Arc::clone(id));
            }
        }
        let whole = "Dead letters are whole";
        for (id, known) in self.webhooks.clone() {
            let (dead, replayed, settled) = (known.dead, known.replayed, known.settled);
            if replayed != settled || replayed > dead {
                self.violated(
                    whole,
                    format!("{id} was dead {dead} times, replayed {replayed} times, settled {settled} times"),
                );
            }
        }
        self.check_events(plan, wave, &accepted);
        self.check_requests(plan, history);
    }

    fn check_events(
        &mut self,
        plan: &Plan,
        wave: &BTreeSet<String>,
        accepted: &BTreeSet<Arc<str>>,
    ) {
        let mut by_event: BTreeMap<Pair, Vec<Arc<str>>> = BTreeMap::new();
        for (id, known) in &self.webhooks {
            let key = (Arc::clone(&known.event), Arc::clone(&known.subscription));
            by_event.entry(key).or_default().push(Arc::clone(id));
        }
        let no_egress_fault = !plan.acts.iter().any(|(_, act)| {
            matches!(
                act,
                super::plan::Act::CutEgress(..) | super::plan::Act::Freeze(..)
            )
        });
        for tp in Self::all_partitions(&self.events_topic, self.event_partitions) {
            let found = self.net.with(|cluster, _| cluster.peek(&tp, 0));
            for (_, record) in found.map_or_else(Vec::new, |found| found.records) {
                let value = record.value.as_deref().unwrap_or_default();
                let event: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
                let (id, kind) = (
                    event["id"].as_str().unwrap_or_default(),
                    event["type"].as_str().unwrap_or_default(),
                );
                for sub in plan.subs.iter().filter(|sub| sub.wants(kind)) {
                    if !sub.lasting {
                        continue;
                    }
                    let key = (Arc::from(id), Arc::from(sub.id.as_str()));
                    let ids = by_event.get(&key).cloned().unwrap_or_default();
                    let [webhook] = ids.as_slice() else {
                        let count = ids.len();
                        self.violated(
                            "Complete",
                            format!("event {id} for {} has {count} webhooks", sub.id),
                        );
                        continue;
                    };
                    let dead = self.webhooks[webhook].left() > 0;
                    let is_accepted = accepted.contains(webhook);
                    if self.lost.contains(webhook) {
                        continue;
                    }
                    if !dead && !is_accepted {
                        self.violated(
                            "Durable outcome",
                            format!("{webhook} (event {id}, {}) is lost", sub.id),
                        );
                    }
                    if plan.replays() && !is_accepted {
                        self.violated(
                            "Dead letters are whole",
                            format!("{webhook} is dead, and all dead letters were replayed"),
                        );
                    }
                    let must = wave.contains(id) || (sub.control && no_egress_fault);
                    if must && !is_accepted {
                        self.violated(
                            "Liveness",
                            format!(
                                "{webhook} (event {id}, {}) is dead, and its endpoint is well",
                                sub.id
                            ),
                        );
                    }
                }
            }
        }
        for ((event, sub), ids) in by_event {
            if ids.len() > 1 {
                self.violated(
                    "Stable identity",
                    format!("event {event} for {sub} is {ids:?}"),
                );
            }
        }
    }

    fn check_requests(&mut self, plan: &Plan, history: &History) {
        struct Seen {
            body: u64,
            attempt: u32,
            /// When each attempt was first made.
            first: BTreeMap<u32, Ms>,
        }
        let jumps = plan.acts.iter().map(|(_, act)| match act {
            super::plan::Act::Clock(_, ms) => ms.abs(),
            _ => 0,
        });
        let skew = 2 * jumps.sum::<Ms>();
        let cut_off = plan.acts.iter().any(|(_, act)| {
            use super::plan::Act;
            matches!(
                act,
                Act::Freeze(..) | Act::Cut(..) | Act::KillBroker(..) | Act::Weather(..)
            )
        });
        let once = plan.keeps_memory() && !self.has_evicted();
        let orderly = plan.is_orderly();
        // Whoever stops waits for a response, but not for a slow one.
        let slow = plan.endpoints.iter().filter(|endpoint| {
            let mut each = endpoint.phases.iter();
            each.any(|(_, what)| matches!(what, Behaviour::Slow(_)))
        });
        let slow: BTreeSet<_> = slow.map(|endpoint| &*endpoint.host).collect();
        let mut answered = BTreeSet::new();
        let zombies = plan.has_zombies();
        let mut later = BTreeSet::new();
        let mut replayed = BTreeSet::new();
        let mut all: BTreeMap<&Arc<str>, Seen> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (at, what) in &history.0 {
            let (id, attempt, body) = match what {
                What::Response {
                    id,
                    attempt,
                    status: 429 | 503,
                    ..
                } => {
                    later.insert((id, *attempt));
                    continue;
                }
                What::Response {
                    host,
                    id,
                    attempt,
                    status: 1..,
                } => {
                    if !slow.contains(&**host) {
                        answered.insert((id, *attempt));
                    }
                    continue;
                }
                What::Replayed { id } => {
                    all.remove(id);
                    later.retain(|(one, _)| *one != id);
                    answered.retain(|(one, _)| *one != id);
                    replayed.insert(id);
                    continue;
                }
                What::Request {
                    id,
                    attempt,
                    body,
                    event,
                    signed,
                    host,
                    ..
                } => {
                    // The last wave comes when all have heard of the present secret.
                    let is_last = event.starts_with('w') && **host != *MOVED;
                    if *signed == Signed::No || is_last && *signed != Signed::Now {
                        wrong.push((
                            "Signed",
                            format!("{id}, sent at {at} ms, is not: {signed:?}"),
                        ));
                    }
                    (id, attempt, *body)
                }
                What::Unsent { id, attempt } => {
                    let known = self.webhooks.get(id).map(|known| known.body);
                    (id, attempt, known.unwrap_or(0))
                }
                _ => continue,
            };
            let Some(known) = self.webhooks.get(id) else {
                wrong.push(("Complete", format!("{id} was sent and never fanned out")));
                continue;
            };
            if known.body != body {
                wrong.push((
                    "Stable identity",
                    format!("{id} was sent with another body"),
                ));
            }
            let seen = all.entry(id).or_insert_with(|| Seen {
                body,
                attempt: 0,
                first: BTreeMap::new(),
            });
            // A process that was cut off may finish what others have done meanwhile.
            if !cut_off
                && let Some(finished) = self.finished.get(id)
                && at > finished
            {
                wrong.push((
                    "One lineage",
                    format!("{id} was sent at {at} ms, and was finished before {finished} ms"),
                ));
            }
            if seen.body != body {
                wrong.push(("Stable identity", format!("{id} was sent with two bodies")));
            }
            // Who wakes up late repeats what it was about to do.
            let may_move = self.moving.contains(&*known.subscription);
            let may_repeat = zombies || may_move || cut_off && replayed.contains(id);
            let back = *attempt < seen.attempt && !may_repeat;
            if back || *attempt > seen.attempt + 1 && seen.attempt > 0 {
                let before = seen.attempt;
                wrong.push((
                    "Attempt counts survive",
                    format!("{id}: attempt {attempt} after attempt {before}, at {at} ms"),
                ));
            }
            seen.attempt = seen.attempt.max(*attempt);
            let is_new = !seen.first.contains_key(attempt);
            // What a process knows, it does not do again, unless the endpoint wanted it later.
            let done = once || orderly && answered.contains(&(id, *attempt));
            let again = done && !is_new && !may_move && matches!(what, What::Request { .. });
            if again && !later.contains(&(id, *attempt)) {
                wrong.push(("Once", format!("{id}: attempt {attempt} again, at {at} ms")));
            }
            if let What::Request { host, .. } = what
                && **host == *MOVED
                && *known.subscriber != *MOVER
                && !known.copied_for_mover
            {
                let owner = &known.subscriber;
                wrong.push(("Isolated", format!("{id} of {owner} was sent to {MOVER}")));
            }
            seen.first.entry(*attempt).or_insert(*at);
            let sub = plan.subs.iter().find(|sub| *sub.id == *known.subscription);
            if let Some(sub) = sub
                && is_new
                && *attempt > 1
                && let Some(before) = seen.first.get(&(attempt - 1))
            {
                let index = usize::try_from(*attempt).unwrap_or(0) - 2;
                let delay = sub.schedule.get(index).copied().unwrap_or(0);
                let least = before + i64::try_from(delay * 8 / 10).unwrap_or(0) - skew - 1;
                if *at < least {
                    let early = least - at;
                    wrong.push((
                        "Never early",
                        format!("{id}: attempt {attempt} at {at} ms is {early} ms early"),
                    ));
                }
            }
        }
        for (name, what) in wrong {
            self.violated(name, what);
        }
        self.check_order(plan, history, cut_off);
    }

    /// The attempts of a subject are in the order of its events.
    fn check_order(&mut self, plan: &Plan, history: &History, cut_off: bool) {
        // What was refused comes behind what was not.
        if plan.leaves_gaps() {
            return;
        }
        let mut place: BTreeMap<Arc<str>, (String, i64)> = BTreeMap::new();
        for tp in Self::all_partitions(&self.events_topic, self.event_partitions) {
            let found = self.net.with(|cluster, _| cluster.peek(&tp, 0));
            for (offset, record) in found.map_or_else(Vec::new, |found| found.records) {
                let value = record.value.as_deref().unwrap_or_default();
                let event: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
                let id = event["id"].as_str().unwrap_or_default();
                let subject = event["subject"].as_str().unwrap_or_default();
                place.insert(Arc::from(id), (subject.to_owned(), offset));
            }
        }
        let moved = plan.acts.iter().filter_map(|(_, act)| match act {
            super::plan::Act::Move(sub) => Some(plan.subs[*sub].id.as_str()),
            _ => None,
        });
        let moved: BTreeSet<_> = moved.collect();
        let mut last: BTreeMap<(Arc<str>, String), i64> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut wrong = Vec::new();
        let mut replayed = BTreeSet::new();
        for (at, what) in &history.0 {
            let (id, event, attempt) = match what {
                What::Request {
                    id, event, attempt, ..
                } => (id, event, attempt),
                What::Replayed { id } => {
                    replayed.insert(id);
                    continue;
                }
                // It was made in time; a process that was cut off makes it again, and then it may arrive.
                What::Unsent { id, attempt } => {
                    seen.insert((Arc::clone(id), *attempt));
                    continue;
                }
                _ => continue,
            };
            // A replay is out of order.
            if replayed.contains(id) {
                continue;
            }
            let Some(known) = self.webhooks.get(id) else {
                continue;
            };
            let sub = plan.subs.iter().find(|sub| *sub.id == *known.subscription);
            let is_new = seen.insert((Arc::clone(id), *attempt));
            // Without `strict`, retries come whenever they are due. A process that was cut off may repeat what it has
            // sent before, and go on with it.
            // Nor does it know the order of a subscription that was made again meanwhile.
            let is_known = |sub: &Sub| !cut_off || !moved.contains(&sub.id.as_str());
            let counts = |sub: &Sub| {
                sub.ordered && is_known(sub) && (*attempt == 1 || sub.strict && !cut_off)
            };
            if !sub.is_some_and(counts) {
                continue;
            }
            let Some((subject, offset)) = place.get(event) else {
                continue;
            };
            let key = (Arc::clone(&known.subscription), subject.clone());
            if !is_new {
                // Whoever does not know what a killed process has sent begins again with it.
                last.insert(key, *offset);
                continue;
            }
            let before = last.get(&key).copied().unwrap_or(-1);
            if *offset < before {
                wrong.push(format!(
                    "{} {subject}: {id} of event {event} at {at} ms comes after a later one",
                    known.subscription
                ));
            }
            last.insert(key, before.max(*offset));
        }
        for what in wrong {
            self.violated("Order", what);
        }
    }
}

/// The latencies of the control group, from publishing to the first arrival, ms, in order.
pub fn control_latencies(history: &History, published: &BTreeMap<String, Ms>) -> Vec<Ms> {
    let mut first: BTreeMap<&Arc<str>, Ms> = BTreeMap::new();
    for (at, what) in &history.0 {
        if let What::Request { host, event, .. } = what
            && host.starts_with("host0.")
        {
            first.entry(event).or_insert(*at);
        }
    }
    let each = first.into_iter();
    let mut all: Vec<_> = each
        .filter_map(|(event, at)| Some(at - published.get(&**event)?))
        .collect();
    all.sort_unstable();
    all
}
