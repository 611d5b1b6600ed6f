//! A member of a group, as the roles use it: membership, and a reader of its partitions.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hookstream::config::Settings;
use hookstream::edge::port;
use hookstream::edge::port::Polled;
use hookstream::edge::port::failure::{ClientError, Failure};
use hookstream::edge::port::gap::Gap;
use hookstream::edge::port::records::{Commit, Committed};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::model::source::{HEADER, Mark};
use hookstream::model::units::{Offset as At, Position};
use hookstream::model::window::{Format, Place, Restored, Window};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{View, client_name, error, plain};
use crate::kafka::client::member::{self, Config, Event, Member};
use crate::kafka::client::reader::{self, Reader};
use crate::kafka::client::{Class, Link, Trouble, is_lost};
use crate::kafka::cluster::{Membership, Offset, Spec};
use crate::kafka::net::{Api, Net};
use crate::kafka::planted;
use crate::kafka::{Code, Tp};

type Found = Result<Vec<Committed>, Code>;

/// A member of one consumer group.
pub struct SimMember {
    member: Member,
    reader: RefCell<Reader>,
    group: Arc<str>,
    purpose: &'static str,
    /// Assigned partitions whose committed offsets are being read.
    assigned: RefCell<Option<(Vec<Tp>, oneshot::Receiver<Found>)>>,
    gaps: RefCell<VecDeque<Gap>>,
    generation: RefCell<Option<Membership>>,
    /// Of planted bugs: commits that were not made, and what was finished when partitions were assigned.
    pretended: RefCell<BTreeMap<Tp, Option<Committed>>>,
    finished: RefCell<BTreeMap<Tp, Window>>,
    refused: RefCell<Vec<(Tp, ClientError)>>,
    keep_waiting: KeepWaiting,
    disturbed: Cell<bool>,
}

impl SimMember {
    /// Joins `group` for `topics`.
    pub fn join(
        net: &Net,
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
    ) -> Self {
        let name = client_name(settings, purpose);
        let member = Member::join(net, &name, group, topics, Config::default());
        Self {
            member,
            reader: RefCell::new(Reader::new(net, &name, !planted::is("uncommitted"))),
            group: Arc::from(group),
            purpose,
            assigned: RefCell::default(),
            gaps: RefCell::default(),
            generation: RefCell::default(),
            pretended: RefCell::default(),
            finished: RefCell::default(),
            refused: RefCell::default(),
            keep_waiting,
            disturbed: Cell::new(false),
        }
    }

    fn adopt_generation(&self) {
        let present = self.member.membership();
        self.generation.replace(Some(present));
    }

    /// Reads committed offsets in the background: an open transaction may hold them.
    fn look_up(&self, partitions: Vec<Tp>) {
        let (done, found) = oneshot::channel();
        let (link, group) = (self.member.link().clone(), Arc::clone(&self.group));
        let wanted = partitions.clone();
        let is_fanout = self.purpose == "fanout";
        crate::kafka::net::spawn(async move {
            let mut found = look_up(&link, &group, &wanted).await;
            if is_fanout && planted::is("epoch-lost") {
                let all = found.iter_mut().flatten();
                all.for_each(|found| found.metadata.clear());
            }
            // Nobody waits for it when the member has left.
            drop(done.send(found));
        });
        self.assigned.replace(Some((partitions, found)));
    }

    fn assignment_found(&self) -> Result<Option<Vec<Committed>>, Failure> {
        let mut waiting = self.assigned.borrow_mut();
        let Some((partitions, found)) = waiting.as_mut() else {
            return Ok(None);
        };
        let found = match found.try_recv() {
            Ok(found) => found,
            Err(oneshot::error::TryRecvError::Empty) if (self.keep_waiting)() => return Ok(None),
            Err(_) => {
                // The process is stopping.
                self.member.take(partitions);
                *waiting = None;
                return Ok(None);
            }
        };
        let partitions = std::mem::take(partitions);
        *waiting = None;
        match found {
            Ok(found) => Ok(Some(found)),
            Err(_) => {
                drop(waiting);
                self.look_up(partitions);
                Ok(None)
            }
        }
    }

    fn next_event(&self) -> Result<Option<Polled<View>>, Failure> {
        if let Some(found) = self.assignment_found()? {
            return Ok(Some(Polled::Assigned(found)));
        }
        if let Some(gap) = self.gaps.borrow_mut().pop_front() {
            return Ok(Some(Polled::Gap(gap)));
        }
        match self.member.poll() {
            Some(Event::Assigned(partitions)) if partitions.is_empty() => {
                Ok(Some(Polled::Assigned(Vec::new())))
            }
            Some(Event::Assigned(partitions)) => {
                self.adopt_generation();
                self.look_up(partitions);
                Ok(None)
            }
            Some(Event::Revoked { partitions, lost }) => {
                let mut reader = self.reader.borrow_mut();
                for tp in &partitions {
                    reader.stop(tp);
                }
                if planted::is("revocation-ignored") {
                    self.member.give_up(&partitions);
                }
                let lost = lost && !planted::is("lost-as-revoked");
                Ok(Some(Polled::Revoked { partitions, lost }))
            }
            Some(Event::Failed(code)) => {
                let what = format!("the consumer of {}", self.group);
                Err(Failure::from_client(what, plain(code)))
            }
            None => Ok(None),
        }
    }

    /// The position is out of range: reading resumes at the earliest record. Returns whether the range is known.
    async fn find_gap(&self, tp: &Tp) -> bool {
        let link = self.member.link().clone();
        let Ok(leader) = link.leader(tp).await else {
            return false;
        };
        let ask = |spec| {
            let (link, tp) = (link.clone(), tp.clone());
            async move {
                let call = move |cluster: &mut crate::kafka::cluster::Cluster, _| {
                    cluster.offsets(leader, &[(tp, spec)]).into_values().next()
                };
                link.call(leader, Api::Metadata, call).await.ok().flatten()
            }
        };
        let (Some(low), Some(high)) = (ask(Spec::Start).await, ask(Spec::High).await) else {
            link.forget(&tp.topic);
            return false;
        };
        let mut reader = self.reader.borrow_mut();
        let from = reader
            .positions()
            .find(|(at, _)| *at == tp)
            .map(|(_, from)| from);
        let Some(from) = from else { return true };
        let known = reader.known_end(tp);
        let mut gap = Gap::find(tp, Position(from), (low, high), known);
        if let Some(gap) = &mut gap
            && planted::is("held-dropped")
        {
            // As if the log had begun anew.
            gap.from = Position(gap.to.0 + 1);
        }
        let resumed = gap.as_ref().map_or(from, |gap| gap.to.0);
        reader.start(tp, resumed);
        self.gaps.borrow_mut().extend(gap);
        true
    }

    /// Only a topic that is absent from the metadata is deleted.
    async fn find_deleted(&self, tp: &Tp) {
        let link = self.member.link();
        link.forget(&tp.topic);
        if !matches!(link.topic(&tp.topic).await, Ok(None)) {
            return;
        }
        let mut reader = self.reader.borrow_mut();
        let from = reader
            .positions()
            .find(|(at, _)| *at == tp)
            .map(|(_, from)| from);
        let Some(from) = from.filter(|from| *from > 0) else {
            return;
        };
        let gap = Gap::deleted(tp, Position(from), reader.known_end(tp));
        reader.start(tp, 0);
        self.gaps.borrow_mut().push_back(gap);
    }

    /// Whether the commit of a first position is only pretended.
    fn pretends(&self, commits: &[Commit]) -> bool {
        let [commit] = commits else { return false };
        let (net, at) = (&self.member.link().net, &commit.at);
        let is_first = net.with(|cluster, _| matches!(cluster.position(&self.group, at), Ok(None)));
        let mut pretended = self.pretended.borrow_mut();
        if !is_first || pretended.contains_key(at) {
            return false;
        }
        let committed = Committed {
            at: at.clone(),
            position: Some(commit.position),
            metadata: commit.metadata.clone(),
        };
        pretended.insert(at.clone(), Some(committed));
        true
    }

    /// Makes the coverage of a commit one of all that was read, instead of all before its position.
    fn cover_ahead(&self, offset: &mut Offset) {
        let net = &self.member.link().net;
        let (tp, position, place) = (&offset.tp, Position(offset.position), here(&offset.tp));
        let (mut restored, error) = Restored::read(position, &offset.metadata, place);
        let found = net.with(|cluster, _| cluster.peek(tp, position.0));
        let (None, Some(found)) = (error, found) else {
            return;
        };
        let head = net.taken(tp);
        for (_, record) in found.records.iter().filter(|(at, _)| *at < head) {
            let header = record.headers.iter().find(|(name, _)| **name == *HEADER);
            let value = header.and_then(|(_, value)| value.as_deref());
            if let Some(Ok(mark)) = value.map(Mark::parse) {
                restored.coverage.ask(At(position.0 - 1), &mark);
            }
        }
        let Restored { window, coverage } = restored;
        let snapshot = window.snapshot_beside(&coverage, place, Format::V3);
        if snapshot.position == position {
            offset.metadata = Arc::from(snapshot.metadata);
        }
    }

    /// The reader's next event, without waiting for new records.
    #[allow(
        clippy::await_holding_refcell_ref,
        reason = "a member is used by one task"
    )]
    async fn read(&self) -> Option<reader::Event> {
        self.reader.borrow_mut().poll(Duration::ZERO).await
    }

    #[allow(
        clippy::await_holding_refcell_ref,
        reason = "a member is used by one task"
    )]
    async fn wait(&self, rest: Duration) {
        let reader = self.reader.borrow();
        // The background look-up has no signal of its own.
        const LOOK: Duration = Duration::from_millis(10);
        let waits = self.assigned.borrow().is_some();
        let rest = if waits { rest.min(LOOK) } else { rest };
        tokio::select! {
            biased;
            () = self.member.wait(rest) => {}
            () = reader.moved(rest) => {}
        }
    }
}

pub(super) fn to_offsets(commits: &[Commit]) -> Vec<Offset> {
    let each = commits.iter().map(|commit| Offset {
        tp: commit.at.clone(),
        position: commit.position.0,
        metadata: Arc::from(commit.metadata.as_str()),
    });
    each.collect()
}

async fn look_up(link: &Link, group: &Arc<str>, wanted: &[Tp]) -> Found {
    const TRY: Duration = Duration::from_secs(5);
    let found = member::committed(link, group, wanted, TRY).await?;
    let each = wanted.iter().zip(found);
    let each = each.map(|(tp, found)| {
        let (position, metadata) = match found {
            Some((position, _)) if planted::is("metadata-lost") => {
                (Some(Position(position)), String::new())
            }
            Some((position, metadata)) if planted::is("metadata-elsewhere") => {
                (Some(Position(position)), believed(tp, position, &metadata))
            }
            Some((position, metadata))
                if planted::is("coverage-lost") && group.ends_with("deliver") =>
            {
                let position = Position(position);
                let (window, _) = Window::restore(position, &metadata, here(tp));
                let metadata = window.snapshot(here(tp), Format::V2).metadata;
                (Some(position), metadata)
            }
            Some((position, metadata)) => (Some(Position(position)), metadata.to_string()),
            None => (None, String::new()),
        };
        Committed {
            at: tp.clone(),
            position,
            metadata,
        }
    });
    Ok(each.collect())
}

/// A partition of the simulated cluster.
fn here(tp: &Tp) -> Place {
    Place::new("simulated", &tp.topic, tp.partition)
}

/// The id of a cluster from which positions were copied.
pub const ELSEWHERE: &str = "elsewhere";

/// Metadata of the other cluster, as if it were of this one.
fn believed(tp: &Tp, position: i64, metadata: &str) -> String {
    let place = |cluster| Place::new(cluster, &tp.topic, tp.partition);
    match Window::restore(Position(position), metadata, place(ELSEWHERE)) {
        (window, None) if !metadata.is_empty() => {
            window.snapshot(place("simulated"), Format::V2).metadata
        }
        _ => metadata.to_owned(),
    }
}

impl port::Member for SimMember {
    type Generation = Membership;
    type Record<'a> = View;

    async fn poll(&self, timeout: Duration) -> Result<Polled<View>, Failure> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(event) = self.next_event()? {
                return Ok(event);
            }
            match self.read().await {
                Some(reader::Event::Record(tp, offset, record)) => {
                    self.member.link().net.note_taken(&tp, offset);
                    let finished = self.finished.borrow();
                    let is_finished = |window: &Window| window.is_finished(At(offset));
                    let mut view = View::new(tp, offset, record);
                    view.is_unmarked = finished.get(&view.tp).is_some_and(is_finished);
                    return Ok(Polled::Message(view));
                }
                Some(reader::Event::End(..)) => continue,
                Some(reader::Event::Failed(tp, Code::OffsetOutOfRange)) => {
                    if self.find_gap(&tp).await {
                        continue;
                    }
                    // As the product does, which looks for it until all ranges are known.
                    self.reader.borrow_mut().retry(&tp);
                }
                Some(reader::Event::Failed(tp, _)) => self.find_deleted(&tp).await,
                None => {}
            }
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(Polled::Idle);
            }
            self.wait(rest).await;
        }
    }

    fn take(&self, partitions: &[Committed]) -> Result<(), Failure> {
        let all: Vec<_> = partitions.iter().map(|found| found.at.clone()).collect();
        self.take_unread(&all)?;
        if self.purpose == "deliver" && planted::is("finished-unasked") {
            let each = partitions.iter().filter_map(|found| {
                let window = Window::restore(found.position?, &found.metadata, here(&found.at));
                Some((found.at.clone(), window.0))
            });
            self.finished.replace(each.collect());
        }
        let mut reader = self.reader.borrow_mut();
        for found in partitions {
            // The earliest record: below it, the gap is not reported.
            let earliest = || {
                let net = &self.member.link().net;
                let bounds = net.with(|cluster, _| cluster.bounds(&found.at));
                bounds.map_or(0, |bounds| bounds.start)
            };
            let from = found.position.map_or_else(earliest, |position| position.0);
            reader.start(&found.at, from);
        }
        Ok(())
    }

    fn take_unread(&self, partitions: &[Tp]) -> Result<(), Failure> {
        self.member.take(partitions);
        self.adopt_generation();
        Ok(())
    }

    fn give_up(&self, partitions: &[Tp]) -> Result<(), Failure> {
        self.stop_reading(partitions)?;
        self.member.give_up(partitions);
        Ok(())
    }

    fn stop_reading(&self, partitions: &[Tp]) -> Result<(), Failure> {
        let mut reader = self.reader.borrow_mut();
        for tp in partitions {
            reader.stop(tp);
        }
        Ok(())
    }

    fn pause(&self, partitions: &[Tp]) -> Result<(), Failure> {
        let mut reader = self.reader.borrow_mut();
        for tp in partitions {
            reader.pause(tp, true);
        }
        Ok(())
    }

    fn resume(&self, partitions: &[Tp]) -> Result<(), Failure> {
        let mut reader = self.reader.borrow_mut();
        for tp in partitions {
            reader.pause(tp, false);
        }
        Ok(())
    }

    async fn rewind(&self, partitions: &[Tp]) -> Result<(), Failure> {
        if planted::is("no-rewind") {
            return Ok(());
        }
        let found = self.committed(partitions).await?;
        let mut reader = self.reader.borrow_mut();
        for found in found {
            if reader.reads(&found.at) {
                reader.start(&found.at, found.position.map_or(0, |position| position.0));
            }
        }
        Ok(())
    }

    async fn committed(&self, partitions: &[Tp]) -> Result<Vec<Committed>, Failure> {
        loop {
            match look_up(self.member.link(), &self.group, partitions).await {
                Ok(mut found) => {
                    let mut pretended = self.pretended.borrow_mut();
                    for found in &mut found {
                        let instead = pretended.get_mut(&found.at).and_then(Option::take);
                        *found = instead.unwrap_or_else(|| found.clone());
                    }
                    return Ok(found);
                }
                Err(code) if !(self.keep_waiting)() => {
                    let what = format!("reading the committed offsets of {}", self.group);
                    return Err(Failure::from_client(what, plain(code)));
                }
                Err(_) => {}
            }
        }
    }

    fn passed(&self) -> Result<Vec<(Tp, Position)>, Failure> {
        let passed = self.reader.borrow().passed().into_iter();
        Ok(passed.map(|(tp, offset)| (tp, Position(offset))).collect())
    }

    async fn commit(&self, commits: &[Commit]) -> Result<(), ClientError> {
        if commits.is_empty() {
            return Ok(());
        }
        let is_fanout = self.purpose == "fanout";
        if is_fanout && planted::is("fanout-without-positions")
            || is_fanout && planted::is("epoch-uncommitted") && self.pretends(commits)
        {
            return Ok(());
        }
        // As the product's.
        if self.member.has_lost() && !planted::is("lost-as-revoked") {
            return Err(plain(Code::UnknownMemberId));
        }
        let mut offsets = to_offsets(commits);
        if self.purpose == "deliver" && planted::is("position-ahead") {
            offsets.iter_mut().for_each(|offset| offset.position += 1);
        }
        if self.purpose == "deliver" && planted::is("coverage-ahead") {
            offsets
                .iter_mut()
                .for_each(|offset| self.cover_ahead(offset));
        }
        let results = self.member.commit(&offsets).await;
        let results = results.map_err(|trouble| {
            self.disturbed
                .set(self.disturbed.get() || is_lost(trouble.code));
            // As the library reports it, whether or not there was a response.
            error(Trouble {
                ambiguous: true,
                class: Class::Plain,
                ..trouble
            })
        })?;
        let each = commits.iter().zip(results);
        let refused: Vec<_> = each
            .filter_map(|(commit, result)| Some((commit.at.clone(), plain(result.err()?))))
            .collect();
        // The library reports an error only if all were refused.
        let all = refused.len() == commits.len();
        let first = refused.first().map(|(_, error)| error.clone());
        self.refused.borrow_mut().extend(refused);
        match first {
            Some(error) if all => Err(error.ambiguous()),
            _ => Ok(()),
        }
    }

    fn refused_commits(&self) -> Vec<(Tp, ClientError)> {
        self.refused.take()
    }

    fn session(&self) -> Duration {
        self.member.session()
    }

    fn was_disturbed(&self) -> bool {
        let before = self.disturbed.replace(false);
        self.member.was_disturbed() || before
    }

    fn generation(&self) -> Option<Membership> {
        if planted::is("generation-late") {
            return Some(self.member.membership());
        }
        self.generation.borrow().clone()
    }

    async fn renew_generation(&self, anchor: &[Commit]) -> Result<(), ClientError> {
        if anchor.is_empty() {
            return Ok(());
        }
        let present = self.member.membership();
        self.commit(anchor).await?;
        self.generation.replace(Some(present));
        Ok(())
    }

    async fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        tracing::debug!(client = self.purpose, "leaving the group");
        self.member.leave().await;
        ended
    }
}
