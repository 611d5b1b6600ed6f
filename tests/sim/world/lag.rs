//! An observer of the backlog: the reader of the role `lag`, on the simulated Kafka, beside everything that goes on.
//!
//! Its figures never exceed what exists, and when everything is settled nothing is pending and what is dead is dead.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hookstream::config::Settings;
use hookstream::edge::kafka::cluster::ClusterId;
use hookstream::edge::port::failure::Failure;
use hookstream::lag::figures::Figures;
use hookstream::lag::port::{Bound, Fed, Feed, Group, Kafka};
use hookstream::lag::reader::Reader as Backlog;
use tokio::time::{Instant, sleep};

use super::port::CLUSTER;
use crate::kafka::client::Link;
use crate::kafka::client::reader::{Event, Reader};
use crate::kafka::cluster::{Cluster, Kind, Spec};
use crate::kafka::log::Ms;
use crate::kafka::net::{Api, Net};
use crate::kafka::planted;
use crate::kafka::port::log::offsets;
use crate::kafka::port::{View, plain};
use crate::kafka::{Code, Tp};

const NAME: &str = "lag-observer";
/// How often figures are made.
const EVERY: Duration = Duration::from_secs(1);
/// How long the observer sleeps when there is nothing to read.
const IDLE: Duration = Duration::from_millis(250);
/// A reader that has failed for this long is replaced, as in the role.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the reader needs of the simulated Kafka.
struct Outside {
    link: Link,
    prefix: String,
}

impl Outside {
    fn new(net: &Net, settings: &Settings) -> Self {
        Self {
            link: Link::new(net, NAME),
            prefix: settings.group_prefix.clone(),
        }
    }
}

fn failed(what: &str) -> impl Fn(Code) -> Failure {
    move |code| Failure::from_client(what.to_owned(), plain(code))
}

impl Kafka for Outside {
    type Feed = Topic;

    fn serve(&self) {}

    async fn cluster(&self) -> Result<ClusterId, Failure> {
        Ok(ClusterId::new(CLUSTER))
    }

    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, Failure> {
        self.link.forget(topic);
        let view = self.link.topic(&Arc::from(topic)).await;
        let view = view.map_err(|lost| failed("reading the metadata")(lost.into()))?;
        let count = view.map_or(0, |view| view.leaders.len());
        Ok((0..i32::try_from(count).unwrap_or(0)).collect())
    }

    async fn offsets(&self, of: &[Tp], which: Bound) -> Result<Vec<Option<i64>>, Failure> {
        let failed = failed("reading offsets");
        let spec = match which {
            Bound::First => Spec::Start,
            Bound::Stable => Spec::Stable,
            Bound::High => Spec::High,
        };
        let asked: Vec<_> = of.iter().map(|tp| (tp.clone(), spec)).collect();
        let mut found = offsets(&self.link, &asked).await.map_err(&failed)?;
        let each = of.iter().map(|tp| {
            let found = found.remove(tp).ok_or(Code::LeaderNotAvailable);
            found.map(Some).map_err(&failed)
        });
        each.collect()
    }

    async fn committed(
        &self,
        group: Group,
        of: &[Tp],
    ) -> Result<Vec<Option<(i64, String)>>, Failure> {
        if group == Group::Release && planted::is("backlog-stale") {
            return Ok(vec![None; of.len()]);
        }
        let role = match group {
            Group::Deliver => "deliver",
            Group::Release => "release",
        };
        let group: Arc<str> = Arc::from(format!("{}{role}", self.prefix));
        let (name, wanted) = (Arc::clone(&group), of.to_vec());
        // An open transaction is not waited for.
        let read = move |cluster: &mut Cluster, now: Ms, node| {
            let found = cluster.committed(now, node, &name, &wanted, false)?;
            found.into_iter().collect::<Result<Vec<_>, _>>()
        };
        let asked = self
            .link
            .coordinated(Kind::Group, &group, Api::Offsets, read);
        let found = asked.await.map_err(failed("reading committed offsets"))?;
        let each = found.into_iter();
        let each = each.map(|found| found.map(|(at, metadata)| (at, metadata.to_string())));
        Ok(each.collect())
    }

    fn feed(&self, topic: &str) -> Result<Topic, Failure> {
        Ok(Topic {
            topic: Arc::from(topic),
            reader: RefCell::new(Reader::new(&self.link.net, NAME, true)),
        })
    }
}

/// One topic.
struct Topic {
    topic: Arc<str>,
    reader: RefCell<Reader>,
}

impl Topic {
    fn start(&self, reader: &mut Reader, tp: &Tp, from: Option<i64>) {
        let net = &reader.link().net;
        let first = || net.with(|cluster, _| cluster.bounds(tp)).map(|it| it.start);
        let from = from.or_else(first).unwrap_or(0);
        reader.start(tp, from);
    }
}

impl Feed for Topic {
    type Record<'a> = View;

    fn read_from(&self, partition: i32, from: Option<i64>) -> Result<(), Failure> {
        let tp = Tp {
            topic: Arc::clone(&self.topic),
            partition,
        };
        self.start(&mut self.reader.borrow_mut(), &tp, from);
        Ok(())
    }

    #[allow(
        clippy::await_holding_refcell_ref,
        reason = "a topic is read by one task"
    )]
    async fn poll(&self, patience: Duration) -> Result<Fed<View>, Failure> {
        let mut reader = self.reader.borrow_mut();
        loop {
            match reader.poll(patience).await {
                None => return Ok(Fed::Idle),
                Some(Event::Record(tp, offset, record)) => {
                    return Ok(Fed::Record(View::new(tp, offset, record)));
                }
                Some(Event::End(tp, _)) => return Ok(Fed::End(tp.partition)),
                // `auto.offset.reset` is `earliest`.
                Some(Event::Failed(tp, Code::OffsetOutOfRange)) => {
                    self.start(&mut reader, &tp, None);
                }
                Some(Event::Failed(_, code)) => return Err(failed("reading the backlog")(code)),
            }
        }
    }
}

/// The last figures.
pub type Latest = Rc<RefCell<Option<Figures>>>;

/// Makes figures again and again, as the role does; `check` sees each.
pub async fn observe(net: Net, settings: Settings, check: impl Fn(&Figures), latest: Latest) {
    loop {
        let opened = Backlog::new(&settings, Outside::new(&net, &settings)).await;
        let Ok(mut reader) = opened else {
            sleep(EVERY).await;
            continue;
        };
        let (mut next, mut failing) = (Instant::now(), None);
        loop {
            let is_due = Instant::now() >= next;
            let turned = match reader.turn().await {
                Ok(_) if is_due => reader.tick().await,
                Ok(_) => Ok(()),
                Err(failure) => Err(failure),
            };
            match turned {
                Ok(()) if is_due => {
                    failing = None;
                    next = Instant::now() + EVERY;
                    let (_, figures) = reader.figures();
                    check(&figures);
                    latest.replace(Some(figures));
                }
                Ok(()) => {}
                Err(_) => {
                    let since: Instant = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() >= PATIENCE {
                        break;
                    }
                    sleep(EVERY).await;
                }
            }
            sleep(IDLE).await;
        }
    }
}
