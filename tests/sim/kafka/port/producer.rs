//! A producer of batches, as the roles use it. After a failure the client is replaced, as in the product.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use hookstream::config::{Guarantee, Settings};
use hookstream::edge::kafka::client::{PRODUCER_QUEUE_KIB, TRANSACTION_TIMEOUT};
use hookstream::edge::port;
use hookstream::edge::port::failure::{BatchError, Failure, Refused};
use hookstream::edge::port::records::{Commit, Record};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{ProducerKind, WRITE_DEADLINE};
use hookstream::model::partitioner::{key_hash, partition};
use hookstream::model::source::{HEADER, Mark, Point};
use tokio::time::Instant;

use super::member::to_offsets;
use super::{SimHeaders, client_name, error, largest, plain};
use crate::kafka::client::producer::{Config, Producer, Report};
use crate::kafka::client::{Class, Link, Trouble};
use crate::kafka::cluster::Membership;
use crate::kafka::net::{Net, lock};
use crate::kafka::planted;
use crate::kafka::{Code, Tp};

/// Alternative transactional ids, beside a producer's own.
const IDS: usize = 16;

/// How a client is made.
#[derive(Clone)]
struct Recipe {
    net: Net,
    settings: Arc<Settings>,
    keep_waiting: KeepWaiting,
    purpose: &'static str,
    kind: ProducerKind,
    turn: usize,
}

impl Recipe {
    fn is_transactional(&self) -> bool {
        self.kind != ProducerKind::Copier && self.settings.guarantee == Guarantee::ExactlyOnce
    }

    fn id(&self) -> Option<Arc<str>> {
        if !self.is_transactional() {
            return None;
        }
        let id = self.kind.transactional_id(&self.settings, self.purpose);
        Some(match self.turn {
            0 => Arc::from(id),
            turn => Arc::from(format!("{id}-{turn}")),
        })
    }

    fn client(&self) -> Producer {
        let deadline = match self.kind {
            // Without a limit.
            ProducerKind::Copier => Duration::from_secs(365 * 86_400),
            ProducerKind::Writer | ProducerKind::Probe(_) => WRITE_DEADLINE,
        };
        let largest = largest(&self.settings);
        let config = Config {
            id: self.id(),
            transaction_timeout: TRANSACTION_TIMEOUT,
            message_timeout: deadline,
            largest,
            queue: (PRODUCER_QUEUE_KIB * 1024).max(2 * largest),
            ..Config::default()
        };
        let name = client_name(&self.settings, self.purpose);
        Producer::new(&self.net, &name, config)
    }

    /// A client with transactions started.
    async fn make(&mut self) -> Result<Producer, Failure> {
        const TRY: Duration = Duration::from_secs(10);
        loop {
            let client = self.client();
            loop {
                let Err(trouble) = client.init(TRY).await else {
                    return Ok(client);
                };
                let may_wait = !matches!(self.kind, ProducerKind::Probe(_));
                if trouble.code == Code::ConcurrentTransactions && may_wait {
                    break;
                }
                if !(self.keep_waiting)() || !may_wait || trouble.class != Class::Retry {
                    let what = format!("starting transactions of {}", self.purpose);
                    return Err(Failure::from_client(what, error(trouble)));
                }
            }
            // The last transaction of this id does not end: another id does not wait for it.
            self.turn = (self.turn + 1) % IDS;
        }
    }
}

/// A producer of batches.
pub struct SimProducer {
    recipe: Recipe,
    client: Producer,
    link: Link,
    begun: bool,
    /// When this producer was fenced lately.
    fenced: Vec<Instant>,
    /// Records of the batch that were refused, as known so far.
    refused: Mutex<Vec<Refused>>,
    /// How many records of each tag were acknowledged, of a copier.
    written: Mutex<Vec<(usize, u32)>>,
    counts: BTreeMap<Arc<str>, i32>,
    /// Of a planted bug: the last command to each partition and the one before it.
    last: BTreeMap<Tp, (Point, Option<Point>)>,
}

impl SimProducer {
    /// A producer for `purpose`.
    ///
    /// # Errors
    /// [`Failure`] when the coordinator rejects it.
    pub async fn open(
        net: &Net,
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        kind: ProducerKind,
    ) -> Result<Self, Failure> {
        let recipe = Recipe {
            net: net.clone(),
            settings: Arc::new(settings.clone()),
            keep_waiting: Arc::clone(keep_waiting),
            purpose,
            kind,
            turn: 0,
        };
        Self::from_recipe(recipe, Vec::new()).await
    }

    async fn from_recipe(mut recipe: Recipe, fenced: Vec<Instant>) -> Result<Self, Failure> {
        let client = recipe.make().await?;
        let link = Link::new(&recipe.net, &client_name(&recipe.settings, recipe.purpose));
        Ok(Self {
            recipe,
            client,
            link,
            begun: false,
            fenced,
            refused: Mutex::default(),
            written: Mutex::default(),
            counts: BTreeMap::new(),
            last: BTreeMap::new(),
        })
    }

    fn transactional(&self) -> bool {
        self.recipe.is_transactional()
    }

    fn is_fenced(&self) -> bool {
        let fatal = self.client.fatal();
        fatal.is_some_and(|trouble| trouble.code == Code::Fenced)
    }

    fn sort(&self, tag: usize, trouble: Trouble) -> BatchError {
        if trouble.code == Code::MessageSizeTooLarge {
            return BatchError::TooLarge {
                tag,
                at_once: false,
            };
        }
        BatchError::Aborted(error(trouble))
    }

    fn begin(&mut self) -> Result<(), BatchError> {
        if self.transactional() && !self.begun {
            self.client
                .begin()
                .map_err(|trouble| self.sort(0, trouble))?;
        }
        self.begun = true;
        Ok(())
    }

    /// Two processes that fence each other end, after some tries.
    fn note_fencing(&mut self) -> Result<(), Failure> {
        const RECENT: Duration = Duration::from_secs(60);
        let now = Instant::now();
        self.fenced.retain(|&before| now - before < RECENT);
        self.fenced.push(now);
        let random = self.recipe.net.random(4);
        let limit = 3 + 2 * usize::try_from(random).unwrap_or(0);
        if self.fenced.len() < limit {
            return Ok(());
        }
        let what = format!("the producer of {}", self.recipe.purpose);
        Err(Failure::Fenced {
            what,
            source: plain(Code::Fenced),
        })
    }

    async fn choose(&mut self, record: &Record<'_, SimHeaders>) -> Tp {
        let topic: Arc<str> = Arc::from(record.topic);
        let is_lost = planted::is("wrong-partition") && record.topic.ends_with("commands");
        let number = match record.partition {
            Some(number) if !is_lost => number,
            _ => {
                let count = self.count(&topic).await.unwrap_or(1);
                let hash = record.key.filter(|_| !is_lost).map(key_hash);
                let random = || u32::try_from(self.recipe.net.random(1 << 31)).unwrap_or(0);
                partition(hash.unwrap_or_else(random), count).unwrap_or(0)
            }
        };
        Tp {
            topic,
            partition: number,
        }
    }

    async fn count(&mut self, topic: &Arc<str>) -> Option<i32> {
        if let Some(count) = self.counts.get(topic) {
            return Some(*count);
        }
        let view = self.link.topic(topic).await.ok()??;
        let count = i32::try_from(view.leaders.len()).ok()?;
        self.counts.insert(Arc::clone(topic), count);
        Some(count)
    }

    fn note(&self, reports: Vec<Report>) {
        let mut reports = reports;
        if self.recipe.kind == ProducerKind::Copier {
            if planted::is("acknowledged-early") {
                reports.retain(|report| report.result.is_err());
            }
            if planted::is("refusal-ignored") {
                reports.iter_mut().for_each(|report| report.result = Ok(0));
            }
            let written = reports.iter().filter(|report| report.result.is_ok());
            lock(&self.written).extend(written.map(|report| (report.tag, 1)));
        }
        let refused = reports.into_iter().filter_map(|report| {
            Some(Refused {
                tag: report.tag,
                partition: Some(report.tp.partition),
                error: plain(report.result.err()?),
            })
        });
        lock(&self.refused).extend(refused);
    }

    /// What a planted bug makes of where a command comes from.
    fn mark_wrongly(&mut self, tp: &Tp, record: &mut crate::kafka::log::Record) {
        let Some(at) = record
            .headers
            .iter()
            .position(|(name, _)| **name == *HEADER)
        else {
            return;
        };
        if planted::is("source-missing") {
            record.headers.remove(at);
            return;
        }
        let value = record.headers[at].1.as_deref().unwrap_or_default();
        let Ok(mut mark) = Mark::parse(value) else {
            return;
        };
        if planted::is("predecessor-missing") {
            mark.previous = None;
        }
        if planted::is("same-hash") {
            mark.at.subscription = 0;
            let last = self.last.get(tp).copied();
            // Of the event before.
            mark.previous = match last {
                Some((place, previous)) if place == mark.at => previous,
                last => last
                    .map(|(place, _)| place)
                    .filter(|place| *place < mark.at),
            };
            self.last.insert(tp.clone(), (mark.at, mark.previous));
        }
        record.headers[at].1 = Some(Bytes::from(mark.to_text()));
    }

    async fn abort(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        tokio::time::timeout(PATIENCE, self.client.abort())
            .await
            .ok();
    }
}

/// What a planted bug makes of a record.
fn falsified(topic: &str, record: crate::kafka::log::Record) -> crate::kafka::log::Record {
    let mut record = record;
    if !topic.contains("retry") {
        return record;
    }
    let mut set = |name: &str, change: &dyn Fn(&str) -> String| {
        for (at, value) in &mut record.headers {
            if **at == *name {
                let text = String::from_utf8_lossy(value.as_deref().unwrap_or_default());
                *value = Some(Bytes::from(change(&text)));
            }
        }
    };
    let attempt = |text: &str| text.parse::<u32>().unwrap_or(0);
    if planted::is("webhook-id") {
        set("webhook-id", &|text| format!("{text}x"));
    }
    if planted::is("attempt-reset") {
        set("hs-attempt", &|_| "0".to_owned());
    }
    if planted::is("attempt-skipped") {
        set("hs-attempt", &|text| (attempt(text) + 1).to_string());
    }
    if planted::is("early") {
        let due = |text: &str| text.parse::<i64>().unwrap_or(0);
        set("hs-due", &|text| (due(text) - 60_000).to_string());
    }
    if planted::is("body") {
        record.value = record.value.map(|value| [&*value, b" "].concat().into());
    }
    record
}

impl port::Producer for SimProducer {
    type Generation = Membership;
    type Headers = SimHeaders;

    async fn send(&mut self, record: Record<'_, SimHeaders>) -> Result<(), BatchError> {
        self.begin()?;
        let tp = self.choose(&record).await;
        let purpose = self.recipe.purpose;
        if purpose == "deliver" && planted::sometimes("outcome-lost", 20) {
            return Ok(());
        }
        if purpose == "fanout" && planted::sometimes("command-lost", 50) {
            lock(&self.written).push((record.tag, 1));
            return Ok(());
        }
        let copy = crate::kafka::log::Record {
            key: record.key.map(Bytes::copy_from_slice),
            value: record.value.map(Bytes::copy_from_slice),
            headers: record.headers.0,
            timestamp: self.recipe.net.now(),
        };
        let tag = record.tag;
        let mut copy = falsified(record.topic, copy);
        if purpose == "fanout" {
            self.mark_wrongly(&tp, &mut copy);
        }
        if purpose == "deliver" && planted::sometimes("outcome-twice", 20) {
            self.client.send(tp.clone(), copy.clone(), tag).await.ok();
        }
        if self.recipe.kind == ProducerKind::Copier && planted::is("acknowledged-early") {
            lock(&self.written).push((tag, 1));
        }
        let sent = self.client.send(tp, copy, tag).await;
        sent.map_err(|trouble| match self.sort(tag, trouble) {
            BatchError::TooLarge { tag, .. } => BatchError::TooLarge { tag, at_once: true },
            other => other,
        })
    }

    async fn offer<'a>(
        &mut self,
        record: Record<'a, SimHeaders>,
    ) -> Result<Option<Record<'a, SimHeaders>>, BatchError> {
        if !self.client.has_room() {
            return Ok(Some(record));
        }
        self.send(record).await.map(|()| None)
    }

    fn reports(&self) -> Result<Vec<(usize, u32)>, BatchError> {
        self.note(self.client.reports());
        let first = std::mem::take(&mut *lock(&self.refused)).into_iter().next();
        if let Some(refused) = first {
            let purpose = self.recipe.purpose;
            return Err(BatchError::of_record(purpose, refused.tag, refused.error));
        }
        Ok(std::mem::take(&mut *lock(&self.written)))
    }

    async fn acknowledged(&self) -> Result<(), BatchError> {
        self.note(self.client.flush().await);
        let first = std::mem::take(&mut *lock(&self.refused)).into_iter().next();
        let Some(refused) = first else { return Ok(()) };
        if refused.error.is_too_large() {
            return Err(BatchError::TooLarge {
                tag: refused.tag,
                at_once: false,
            });
        }
        Err(BatchError::Aborted(refused.error))
    }

    async fn acknowledged_within(&self, time: Duration) -> Option<Vec<Refused>> {
        let reports = tokio::time::timeout(time, self.client.flush()).await.ok()?;
        self.note(reports);
        Some(std::mem::take(&mut *lock(&self.refused)))
    }

    async fn finish(
        &mut self,
        commits: &[Commit],
        generation: Option<&Membership>,
    ) -> Result<(), BatchError> {
        const OFFSETS: Duration = Duration::from_secs(10);
        if !self.transactional() {
            self.acknowledged().await?;
            self.begun = false;
            return Ok(());
        }
        self.begin()?;
        self.acknowledged().await?;
        let purpose = self.recipe.purpose;
        let skipped = purpose == "release" && planted::is("release-without-positions");
        if !commits.is_empty() && !skipped {
            let Some(generation) = generation else {
                let what = "offsets to commit without a consumer group".to_owned();
                return Err(Failure::Internal(what).into());
            };
            let mut offsets = to_offsets(commits);
            if planted::is("transaction-ahead") {
                offsets.iter_mut().for_each(|offset| offset.position += 1);
            }
            let nobody = Membership {
                group: Arc::clone(&generation.group),
                member: Arc::from(""),
                generation: -1,
            };
            let zombie = planted::is("zombie");
            let generation = if zombie { &nobody } else { generation };
            let sent = self.client.send_offsets(generation, &offsets, OFFSETS);
            let sent = sent.await;
            if sent.is_err() && planted::is("abort-as-commit") {
                self.abort().await;
                self.begun = false;
                return Ok(());
            }
            sent.map_err(|trouble| self.sort(0, trouble))?;
        }
        let committed = self.client.commit().await;
        committed.map_err(|trouble| self.sort(0, trouble))?;
        self.begun = false;
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        if self.recipe.purpose == "deliver" && planted::is("abort-repeats") {
            return Err(Failure::Stuck("planted"));
        }
        if self.is_fenced() {
            self.note_fencing()?;
        } else if self.transactional() && self.begun {
            self.abort().await;
        }
        self.client = self.recipe.make().await?;
        lock(&self.refused).clear();
        lock(&self.written).clear();
        self.last.clear();
        self.begun = false;
        Ok(())
    }

    async fn successor(&mut self, keep_waiting: &KeepWaiting) -> Result<Self, Failure> {
        if self.is_fenced() {
            self.note_fencing()?;
        }
        let mut recipe = self.recipe.clone();
        recipe.keep_waiting = Arc::clone(keep_waiting);
        recipe.turn = (recipe.turn + 1) % IDS;
        Self::from_recipe(recipe, std::mem::take(&mut self.fenced)).await
    }

    async fn abandon(self) {
        if self.transactional() && self.begun && !self.is_fenced() {
            self.abort().await;
        }
    }

    async fn partitions(&self, topic: &str) -> Option<i32> {
        const ANSWER: Duration = Duration::from_secs(2);
        let topic = Arc::from(topic);
        self.link.forget(&topic);
        let view = tokio::time::timeout(ANSWER, self.link.topic(&topic)).await;
        let view = view.ok()?.ok()??;
        i32::try_from(view.leaders.len())
            .ok()
            .filter(|&count| count > 0)
    }
}
