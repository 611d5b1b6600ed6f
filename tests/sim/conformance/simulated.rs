//! The simulated Kafka, by the simulated clients, in virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::real::HELD;
use super::step::{Side, Step, key_value};
use crate::kafka::client::member::{self, Event, Member, committed};
use crate::kafka::client::producer::{self, Producer};
use crate::kafka::client::reader::{self, Reader};
use crate::kafka::client::{Class, Link, Trouble};
use crate::kafka::cluster::{Cluster, Kind, Membership, Offset, Settings, Spec, TopicConfig};
use crate::kafka::log::Record;
use crate::kafka::net::{Api, Net, lock};
use crate::kafka::{Code, Tp};

/// Where virtual time begins, in ms since 1970.
const EPOCH: i64 = 1_800_000_000_000;

const CALL: Duration = Duration::from_secs(20);

/// A simulated broker, seen by one scenario.
pub struct Simulated {
    runtime: Runtime,
    net: Net,
    producers: BTreeMap<&'static str, (Arc<Producer>, usize)>,
    members: BTreeMap<&'static str, Polled>,
    kept: BTreeMap<&'static str, Membership>,
}

/// What the task that polls a member and the scenario share.
#[derive(Default)]
struct Shared {
    hold: bool,
    asked: bool,
    frozen: bool,
    stop: bool,
}

struct Polled {
    member: Arc<Member>,
    shared: Arc<Mutex<Shared>>,
    task: tokio::task::JoinHandle<()>,
    last: BTreeSet<Tp>,
}

fn tp(topic: &str, partition: i32) -> Tp {
    Tp {
        topic: Arc::from(topic),
        partition,
    }
}

fn describe(trouble: &Trouble) -> String {
    let code = trouble.code;
    match trouble.class {
        Class::Fatal => format!("fatal {code:?}"),
        Class::Abort => format!("abort {code:?}"),
        Class::Retry => format!("retry {code:?}"),
        Class::Plain => format!("{code:?}"),
    }
}

fn shown(result: Result<(), Trouble>) -> String {
    result.map_or_else(|trouble| describe(&trouble), |()| "ok".to_owned())
}

fn shown_code(result: Result<(), Code>) -> String {
    result.map_or_else(|code| format!("{code:?}"), |()| "ok".to_owned())
}

/// Polls a member as a role does.
async fn poll(member: Arc<Member>, shared: Arc<Mutex<Shared>>) {
    const OFTEN: Duration = Duration::from_millis(5);
    while !lock(&shared).stop {
        if lock(&shared).frozen {
            tokio::time::sleep(OFTEN).await;
            continue;
        }
        match member.poll() {
            Some(Event::Assigned(partitions)) => member.take(&partitions),
            Some(Event::Revoked { partitions, .. }) => {
                lock(&shared).asked = true;
                while lock(&shared).hold && !lock(&shared).stop {
                    tokio::time::sleep(OFTEN).await;
                }
                member.give_up(&partitions);
            }
            Some(Event::Failed(_)) => {}
            None => member.wait(OFTEN).await,
        }
    }
}

impl Simulated {
    /// One broker, set up as `scripts/kafka` sets up a real one.
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let settings = Settings {
            brokers: 1,
            session: (1_000, 1_800_000),
            transaction_check: 1_000,
            log_check: 300,
            ..Settings::default()
        };
        let net = {
            let _inside = runtime.enter();
            Net::new(Cluster::new(settings, 1, EPOCH), 1, EPOCH)
        };
        Self {
            runtime,
            net,
            producers: BTreeMap::new(),
            members: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    fn open(&mut self, name: &'static str, id: Option<(&str, u32)>) -> String {
        let mut config = producer::Config {
            message_timeout: CALL,
            ..producer::Config::default()
        };
        if let Some((id, timeout)) = id {
            config.id = Some(Arc::from(id));
            config.transaction_timeout = Duration::from_millis(u64::from(timeout));
        }
        let producer = Producer::new(&self.net, name, config);
        let result = shown(self.runtime.block_on(producer.init(CALL)));
        self.producers.insert(name, (Arc::new(producer), 0));
        result
    }

    fn send(
        &mut self,
        name: &str,
        at: Tp,
        (key, value): (Option<&str>, Option<&str>),
        ago: i64,
    ) -> String {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let record = Record {
            key: key.map(bytes),
            value: value.map(bytes),
            headers: Vec::new(),
            timestamp: self.net.now() - ago,
        };
        let (producer, sent) = self.producers.get_mut(name).unwrap();
        *sent += 1;
        shown(self.runtime.block_on(producer.send(at, record, *sent)))
    }

    fn read(&self, at: &Tp, from: i64, committed: bool) -> String {
        let mut reader = Reader::new(&self.net, "reader", committed);
        reader.start(at, from);
        self.runtime.block_on(async {
            let mut seen = Vec::new();
            let until = Instant::now() + CALL;
            while Instant::now() < until {
                match reader.poll(Duration::from_secs(1)).await {
                    Some(reader::Event::Record(_, offset, record)) => {
                        let value = record.value.as_deref().map(String::from_utf8_lossy);
                        seen.push(format!("{offset}={}", value.unwrap_or_default()));
                    }
                    Some(reader::Event::End(..)) => return seen.join(" "),
                    Some(reader::Event::Failed(_, Code::OffsetOutOfRange)) => {
                        return "out of range".to_owned();
                    }
                    Some(reader::Event::Failed(..)) | None => {}
                }
            }
            "nothing".to_owned()
        })
    }

    fn offsets(&self, at: &Tp, of: &[Spec]) -> String {
        let link = Link::new(&self.net, "ends");
        self.runtime.block_on(async {
            let leader = link.leader(at).await.unwrap();
            let mut all = Vec::new();
            for spec in of {
                let (at, spec) = (at.clone(), *spec);
                let ask = move |cluster: &mut Cluster, _| {
                    cluster.offsets(leader, &[(at, spec)]).into_values().next()
                };
                let found = link.call(leader, Api::Metadata, ask).await.unwrap();
                let shown = found.map_or_else(|| "End".to_owned(), |offset| offset.to_string());
                all.push(shown);
            }
            all.join(" ")
        })
    }

    fn join(&mut self, name: &'static str, group: &str, topic: &str, instance: &str) -> String {
        let config = member::Config {
            instance: (!instance.is_empty()).then(|| Arc::from(instance)),
            session: Duration::from_secs(6),
            poll: Duration::from_secs(6),
            heartbeat: Duration::from_millis(200),
            refresh: Duration::from_millis(500),
        };
        let member = Arc::new(Member::join(&self.net, name, group, &[topic], config));
        let shared: Arc<Mutex<Shared>> = Arc::default();
        let task = tokio::spawn(poll(Arc::clone(&member), Arc::clone(&shared)));
        let polled = Polled {
            member,
            shared,
            task,
            last: BTreeSet::new(),
        };
        self.members.insert(name, polled);
        "ok".to_owned()
    }

    fn leave(&mut self, name: &str) -> String {
        let polled = self.members.remove(name).unwrap();
        lock(&polled.shared).stop = true;
        self.runtime.block_on(async {
            polled.task.await.unwrap();
            Arc::into_inner(polled.member).unwrap().leave().await;
        });
        "ok".to_owned()
    }

    fn offset(at: Tp, position: i64, length: usize) -> Offset {
        Offset {
            tp: at,
            position,
            metadata: Arc::from("x".repeat(length)),
        }
    }

    fn commit_alone(&self, group: &str, at: Tp, position: i64) -> String {
        let link = Link::new(&self.net, "alone");
        let who = Membership {
            group: Arc::from(group),
            member: Arc::from(""),
            generation: -1,
        };
        let offset = Self::offset(at, position, 0);
        let key = Arc::clone(&who.group);
        let commit = move |cluster: &mut Cluster, now, node| {
            let results = cluster.commit(now, node, &who, std::slice::from_ref(&offset))?;
            results.into_iter().next().unwrap()
        };
        let sent = link.coordinated(Kind::Group, &key, Api::Offsets, commit);
        shown_code(self.runtime.block_on(sent))
    }

    fn owns(&self, wanted: &[(&'static str, usize)]) -> String {
        let owned = |name: &str| self.members[name].member.owned().len();
        let each = wanted
            .iter()
            .map(|(name, _)| format!("{name}:{}", owned(name)));
        each.collect::<Vec<_>>().join(" ")
    }

    fn wait(&self, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..6_000 {
            if holds(self) {
                return;
            }
            self.sleep(5);
        }
    }

    fn sleep(&self, ms: u64) {
        let sleep = async { tokio::time::sleep(Duration::from_millis(ms)).await };
        self.runtime.block_on(sleep);
    }

    fn administer(&self, step: &Step) -> Option<String> {
        Some(match step {
            Step::Topic(name, partitions, settings) => {
                let mut config = TopicConfig {
                    partitions: *partitions,
                    replication: 1,
                    ..TopicConfig::default()
                };
                for (key, value) in *settings {
                    set(&mut config, key, value);
                }
                shown_code(
                    self.net
                        .with(|cluster, _| cluster.create_topic(name, config)),
                )
            }
            Step::DeleteTopic(name) => {
                shown_code(self.net.with(|cluster, _| cluster.delete_topic(name)))
            }
            Step::Partitions(name, count) => shown_code(
                self.net
                    .with(|cluster, _| cluster.add_partitions(name, *count)),
            ),
            Step::DeleteRecords(name, offset) => {
                let at = tp(name, 0);
                let delete = |cluster: &mut Cluster| cluster.delete_records(1, &at, Some(*offset));
                shown_code(self.net.with(|cluster, _| delete(cluster)).map(|_| ()))
            }
            _ => return None,
        })
    }

    fn produce(&mut self, step: &Step) -> Option<String> {
        Some(match step {
            Step::Open(name, id, timeout) => self.open(name, Some((*id, *timeout))),
            Step::OpenPlain(name) => self.open(name, None),
            Step::Begin(name) => shown(self.producers[name].0.begin()),
            Step::Send(name, topic, partition, records, ago) => {
                let each = records.iter();
                let each: Vec<_> = each
                    .map(|text| self.send(name, tp(topic, *partition), key_value(text), *ago))
                    .collect();
                each.join(" ")
            }
            Step::SendLarge(name, topic, size) => {
                let value = "x".repeat(*size);
                self.send(name, tp(topic, 0), (None, Some(&value)), 0)
            }
            Step::Flush(name) => {
                let mut reports = self.runtime.block_on(self.producers[name].0.flush());
                reports.sort_by_key(|report| report.tag);
                let each = reports.into_iter().map(|report| match report.result {
                    Ok(offset) => offset.to_string(),
                    Err(code) => format!("{code:?}"),
                });
                each.collect::<Vec<_>>().join(" ")
            }
            Step::Offsets(name, kept, topic, position, length) => {
                let offset = Self::offset(tp(topic, 0), *position, *length);
                let producer = &self.producers[name].0;
                let sent =
                    producer.send_offsets(&self.kept[kept], std::slice::from_ref(&offset), CALL);
                shown(self.runtime.block_on(sent))
            }
            Step::Commit(name) => shown(self.runtime.block_on(self.producers[name].0.commit())),
            Step::Abort(name) => shown(self.runtime.block_on(self.producers[name].0.abort())),
            Step::Crash(name) => {
                self.producers.remove(name);
                "ok".to_owned()
            }
            _ => return None,
        })
    }

    fn grouped(&mut self, step: &Step) -> Option<String> {
        Some(match step {
            Step::Join(name, group, topic, instance) => self.join(name, group, topic, instance),
            Step::Own(wanted) => {
                let goal = wanted.iter().map(|(name, count)| format!("{name}:{count}"));
                let goal = goal.collect::<Vec<_>>().join(" ");
                self.wait(|side| side.owns(wanted) == goal);
                self.owns(wanted)
            }
            Step::Kept(name) => {
                let polled = self.members.get_mut(name).unwrap();
                let owned: BTreeSet<_> = polled.member.owned().into_iter().collect();
                let last = std::mem::replace(&mut polled.last, owned.clone());
                (owned.is_subset(&last) || last.is_subset(&owned)).to_string()
            }
            Step::Hold(name, hold) => {
                let mut shared = lock(&self.members[name].shared);
                shared.asked = false;
                shared.hold = *hold;
                "ok".to_owned()
            }
            Step::Asked(name) => {
                self.wait(|side| lock(&side.members[name].shared).asked);
                lock(&self.members[name].shared).asked.to_string()
            }
            Step::Freeze(name, frozen) => {
                lock(&self.members[name].shared).frozen = *frozen;
                "ok".to_owned()
            }
            Step::Leave(name) => self.leave(name),
            Step::Keep(name, kept) => {
                let membership = self.members[name].member.membership();
                self.kept.insert(*kept, membership);
                "ok".to_owned()
            }
            Step::CommitAs(name, topic, partition, position, length) => {
                let offset = Self::offset(tp(topic, *partition), *position, *length);
                let member = &self.members[name].member;
                let sent = member.commit(std::slice::from_ref(&offset));
                match self.runtime.block_on(sent) {
                    Ok(results) => shown_code(results.into_iter().next().unwrap()),
                    Err(trouble) => describe(&trouble),
                }
            }
            _ => return None,
        })
    }
}

/// A topic's setting, by its name.
fn set(config: &mut TopicConfig, key: &str, value: &str) {
    match key {
        "max.message.bytes" => config.largest = value.parse().unwrap(),
        "retention.ms" => config.retention = Some(value.parse().unwrap()),
        "cleanup.policy" => {
            config.compact = value.contains("compact");
            config.delete = value.contains("delete");
        }
        // How a real broker cuts segments, and when it compacts them.
        "segment.ms" | "min.cleanable.dirty.ratio" | "max.compaction.lag.ms" => {}
        other => panic!("{other} is not simulated"),
    }
}

impl Side for Simulated {
    fn act(&mut self, step: &Step) -> String {
        // Outside of it, the clock would be the machine's.
        let runtime = self.runtime.handle().clone();
        let _inside = runtime.enter();
        if let Some(seen) = self.administer(step) {
            return seen;
        }
        if let Some(seen) = self.produce(step) {
            return seen;
        }
        if let Some(seen) = self.grouped(step) {
            return seen;
        }
        match step {
            Step::Read(topic, partition, from, committed) => {
                self.read(&tp(topic, *partition), *from, *committed)
            }
            Step::Ends(topic) => {
                let all = [Spec::Start, Spec::Stable, Spec::High];
                self.offsets(&tp(topic, 0), &all)
            }
            Step::Since(topic, ago) => {
                let at = Spec::Time(self.net.now() - ago);
                self.offsets(&tp(topic, 0), &[at])
            }
            Step::CommitAlone(group, topic, position) => {
                self.commit_alone(group, tp(topic, 0), *position)
            }
            Step::Committed(group, topic, partition) => {
                let link = Link::new(&self.net, "offsets");
                let (group, wanted) = (Arc::from(*group), [tp(topic, *partition)]);
                let read = committed(&link, &group, &wanted, HELD);
                match self.runtime.block_on(read) {
                    Ok(found) => match &found[0] {
                        Some((offset, metadata)) => format!("{offset} {}", metadata.len()),
                        None => "none".to_owned(),
                    },
                    Err(code) => format!("{code:?}"),
                }
            }
            other => panic!("{other:?} is not a step of this side"),
        }
    }

    fn pause(&mut self) {
        self.sleep(50);
    }
}
