//! Topics that are read without a group, and the ends of partitions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hookstream::config::Settings;
use hookstream::edge::port;
use hookstream::edge::port::failure::Failure;
use hookstream::edge::port::records::{Isolation, Range};
use tokio::time::Instant;

use super::{View, client_name, plain};
use crate::kafka::client::Link;
use crate::kafka::client::reader::{Event, Reader};
use crate::kafka::cluster::Spec;
use crate::kafka::net::{Api, Net};
use crate::kafka::planted;
use crate::kafka::{Code, Node, Tp};

/// A reader without a response from any broker for this long fails.
const SILENCE: Duration = Duration::from_secs(30);

/// How often is asked while a leader is missing.
const PAUSE: Duration = Duration::from_millis(200);

/// The offsets that the leaders have; of partitions without a leader none.
pub async fn offsets(link: &Link, of: &[(Tp, Spec)]) -> Result<BTreeMap<Tp, i64>, Code> {
    let mut by_leader: BTreeMap<Node, Vec<(Tp, Spec)>> = BTreeMap::new();
    for (tp, spec) in of {
        match link.leader(tp).await {
            Ok(leader) => by_leader
                .entry(leader)
                .or_default()
                .push((tp.clone(), *spec)),
            Err(Code::LeaderNotAvailable | Code::UnknownTopicOrPartition) => {}
            Err(code) => return Err(code),
        }
    }
    let mut all = BTreeMap::new();
    for (leader, wanted) in by_leader {
        let count = wanted.len();
        let topics: Vec<_> = wanted.iter().map(|(tp, _)| Arc::clone(&tp.topic)).collect();
        let ask =
            move |cluster: &mut crate::kafka::cluster::Cluster, _| cluster.offsets(leader, &wanted);
        let found = link.call(leader, Api::Metadata, ask).await;
        if found.as_ref().map_or(true, |found| found.len() < count) {
            // A leader may have moved.
            for topic in topics {
                link.forget(&topic);
            }
        }
        all.extend(found?);
    }
    Ok(all)
}

/// How often an offset is asked for while the leader of its partition moves.
const TRIES: usize = 50;

/// The ends of partitions.
pub struct SimEnds(Link);

impl SimEnds {
    /// Clients for `purpose`.
    pub fn new(net: &Net, settings: &Settings, purpose: &'static str) -> Self {
        Self(Link::new(net, &client_name(settings, purpose)))
    }

    async fn all(&self, of: &[Tp], spec: Spec) -> Result<BTreeMap<Tp, i64>, Failure> {
        let each: Vec<_> = of.iter().map(|tp| (tp.clone(), spec)).collect();
        let found = offsets(&self.0, &each).await;
        found.map_err(|code| Failure::from_client("reading the ends of partitions", plain(code)))
    }
}

impl port::Ends for SimEnds {
    async fn stable(&self, of: &[Tp]) -> Result<BTreeMap<Tp, i64>, Failure> {
        self.all(of, Spec::Stable).await
    }

    async fn high(&self, of: &[Tp]) -> Result<BTreeMap<Tp, i64>, Failure> {
        self.all(of, Spec::High).await
    }
}

/// A topic opened for reading.
pub struct SimLog {
    link: Link,
    topic: Arc<str>,
    partitions: i32,
    committed: RefCell<Reader>,
    all: RefCell<Reader>,
}

impl SimLog {
    /// Checks that the topic exists.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds within 10 s, or the topic is missing.
    pub async fn open(
        net: &Net,
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> Result<Self, Failure> {
        const ANSWER: Duration = Duration::from_secs(10);
        let name = client_name(settings, purpose);
        let link = Link::new(net, &name);
        let topic: Arc<str> = Arc::from(topic);
        let until = Instant::now() + ANSWER;
        let view = loop {
            match link.topic(&topic).await {
                Ok(Some(view)) => break view,
                Ok(None) => return Err(Failure::TopicMissing(topic.to_string())),
                Err(lost) if Instant::now() >= until => {
                    return Err(Failure::from_client("reading metadata", plain(lost.into())));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        Ok(Self {
            link,
            topic,
            partitions: i32::try_from(view.leaders.len()).unwrap_or(i32::MAX),
            committed: RefCell::new(Reader::new(net, &name, true)),
            all: RefCell::new(Reader::new(net, &name, false)),
        })
    }

    fn tp(&self, partition: i32) -> Tp {
        Tp {
            topic: Arc::clone(&self.topic),
            partition,
        }
    }

    /// One offset of a partition; asked so many times while its leader moves.
    async fn offset(&self, partition: i32, spec: Spec, tries: usize) -> Result<i64, Failure> {
        let tp = self.tp(partition);
        let mut last = Code::LeaderNotAvailable;
        for _ in 0..tries {
            match offsets(&self.link, &[(tp.clone(), spec)]).await {
                Ok(found) => {
                    if let Some(offset) = found.get(&tp) {
                        return Ok(*offset);
                    }
                }
                Err(code) => last = code,
            }
            tokio::time::sleep(PAUSE).await;
        }
        let what = format!("reading the end of {}", self.topic);
        Err(Failure::from_client(what, plain(last)))
    }

    async fn range(&self, partition: i32, end: Spec, tries: usize) -> Result<Range, Failure> {
        Ok(Range {
            partition,
            low: self.offset(partition, Spec::Start, tries).await?,
            end: self.offset(partition, end, tries).await?,
        })
    }
}

impl port::Log for SimLog {
    type Record<'a> = View;

    fn topic(&self) -> &str {
        &self.topic
    }

    async fn stable_ends(&self) -> Result<Vec<Range>, Failure> {
        let mut all = Vec::new();
        for partition in 0..self.partitions {
            all.push(self.range(partition, Spec::Stable, TRIES).await?);
        }
        Ok(all)
    }

    async fn high_watermark(
        &self,
        partition: i32,
        patience: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<(Range, i64), Failure> {
        const BETWEEN: Duration = Duration::from_millis(50);
        let tries = if patience.is_zero() { TRIES / 5 } else { TRIES };
        let wanted = self.range(partition, Spec::High, tries).await?;
        let begun = Instant::now();
        loop {
            let stable = self.offset(partition, Spec::Stable, tries).await?;
            if planted::is("look-ahead-stable") {
                let seen = Range {
                    end: stable,
                    ..wanted
                };
                return Ok((seen, stable));
            }
            if stable >= wanted.end || begun.elapsed() > patience || stop() {
                return Ok((wanted, stable.min(wanted.end)));
            }
            tokio::time::sleep(BETWEEN).await;
        }
    }

    // One reader of this log at a time, as in the product.
    #[allow(
        clippy::await_holding_refcell_ref,
        reason = "a log is read by one task"
    )]
    async fn read(
        &self,
        isolation: Isolation,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(&View),
    ) -> Result<(), Failure> {
        const POLL: Duration = Duration::from_millis(100);
        let mut reader = match isolation {
            Isolation::Committed => self.committed.borrow_mut(),
            Isolation::Uncommitted => self.all.borrow_mut(),
        };
        let open = ranges.iter().filter(|range| range.low < range.end);
        let mut open: BTreeMap<Tp, i64> = open
            .map(|range| (self.tp(range.partition), range.end))
            .collect();
        for range in ranges {
            reader.start(&self.tp(range.partition), range.low);
        }
        let mut heard = Instant::now();
        while !open.is_empty() && !stop() {
            match reader.poll(POLL).await {
                Some(Event::Record(tp, offset, record)) => {
                    heard = Instant::now();
                    let Some(&end) = open.get(&tp) else { continue };
                    if offset < end {
                        let view = View::new(tp.clone(), offset, record);
                        visit(&view);
                    }
                    if offset + 1 >= end {
                        open.remove(&tp);
                    }
                }
                Some(Event::End(tp, _)) => {
                    heard = Instant::now();
                    open.remove(&tp);
                }
                Some(Event::Failed(_, Code::OffsetOutOfRange)) => {
                    let what = format!("reading {}", self.topic);
                    let source = plain(Code::OffsetOutOfRange);
                    return Err(Failure::from_client(what, source));
                }
                Some(Event::Failed(..)) | None if heard.elapsed() > SILENCE => {
                    let what = format!("reading {}", self.topic);
                    let source = plain(Code::OperationTimedOut);
                    return Err(Failure::from_client(what, source));
                }
                Some(Event::Failed(..)) | None => {}
            }
        }
        for range in ranges {
            reader.stop(&self.tp(range.partition));
        }
        Ok(())
    }
}
