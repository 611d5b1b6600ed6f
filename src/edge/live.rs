//! The product's side of the port: librdkafka, hyper and threads.
//!
//! Most calls block their thread: each future is ready at once. `kafka` has the clients.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::message::OwnedHeaders;
use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::task::AbortHandle;

use super::http::{Drained, HttpClient, HttpOptions, HttpSetupError, Reply, Request, Rest};
use super::kafka::cluster::ClusterId;
use super::kafka::ends::Ends;
use super::kafka::log_reader::{Log, positions_of};
use super::kafka::member::Member;
use super::kafka::producer::Producer;
use super::kafka::wait;
use super::kafka::watchdog;
use super::port::failure::Failure;
use super::port::records::TopicPartition;
use super::port::task::{KeepWaiting, block_on, block_within};
use super::port::{Http, Port, ProducerKind, Task};
use crate::config::Settings;
use crate::model::units::Position;

mod kafka;

/// The outside of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Live;

impl Port for Live {
    type Generation = Arc<ConsumerGroupMetadata>;
    type Member = Member;
    type Headers = OwnedHeaders;
    type Producer = Producer;
    type Log = Log;
    type Ends = Ends;
    type Http = HttpClient;
    type Task = Thread;

    async fn join(
        &self,
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        extra: &[(&str, &str)],
    ) -> Result<Member, Failure> {
        Member::join(settings, keep_waiting, purpose, group, topics, extra)
    }

    async fn producer(
        &self,
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        kind: ProducerKind,
    ) -> Result<Producer, Failure> {
        Producer::of_kind(settings, keep_waiting, purpose, kind)
    }

    async fn log(
        &self,
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> Result<Log, Failure> {
        Log::open(settings, topic, purpose)
    }

    async fn positions(
        &self,
        settings: &Settings,
        group: &str,
        purpose: &'static str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Position>>, Failure> {
        const PATIENCE: Duration = Duration::from_secs(2);
        positions_of(settings, group, purpose, partitions, PATIENCE)
    }

    fn ends(&self, settings: &Settings, purpose: &'static str) -> Result<Ends, Failure> {
        Ends::new(settings, purpose)
    }

    async fn wait_for_topics(
        &self,
        settings: &Settings,
        purpose: &'static str,
        topics: &[String],
        stop: &dyn Fn() -> bool,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Option<ClusterId>, Failure> {
        wait::wait_for_topics(settings, purpose, topics, stop, waiting)
    }

    fn outage(&self, now: Instant) -> Option<Instant> {
        watchdog::brokers(now).outage
    }

    fn http(&self, options: HttpOptions) -> Result<HttpClient, HttpSetupError> {
        HttpClient::new(options)
    }

    fn spawn<F, T>(&self, name: String, make: F) -> Result<Thread, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let failed = not_started(&name);
        let run = move || block_on(make());
        let thread = std::thread::Builder::new().name(name).spawn(run);
        Ok(Thread {
            thread: thread.map_err(failed)?,
            runtime: None,
        })
    }

    fn spawn_worker<F, T>(&self, name: String, make: F) -> Result<Thread, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let failed = not_started(&name);
        let (started, starts) = channel();
        let run = move || work(make, &started);
        let thread = std::thread::Builder::new().name(name).spawn(run);
        let thread = thread.map_err(&failed)?;
        let ended = || Err(io::Error::other("its thread has ended"));
        let runtime = starts.recv().unwrap_or_else(|_| ended()).map_err(&failed)?;
        Ok(Thread {
            thread,
            runtime: Some(runtime),
        })
    }

    fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        tokio::task::spawn_local(task).abort_handle()
    }

    async fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }

    async fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        block_within(time, future)
    }

    fn seed(&self) -> u64 {
        fastrand::u64(..)
    }
}

fn not_started(name: &str) -> impl Fn(io::Error) -> Failure + use<> {
    let name = name.to_owned();
    move |error| Failure::Internal(format!("cannot start the thread {name}: {error}"))
}

/// Runs a worker's thread. The runtime never leaves the thread, so that its tasks need no queue besides the runtime's.
fn work<T: Future<Output = ()>>(
    make: impl FnOnce() -> T,
    started: &Sender<io::Result<RuntimeMetrics>>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            // The thread that starts a worker waits for this.
            started.send(Err(error)).ok();
            return;
        }
    };
    started.send(Ok(runtime.metrics())).ok();
    runtime.block_on(make());
}

/// A thread.
#[derive(Debug)]
pub struct Thread {
    thread: JoinHandle<()>,
    /// Of a worker.
    runtime: Option<RuntimeMetrics>,
}

impl Task for Thread {
    async fn join(self) -> bool {
        self.thread.join().is_ok()
    }

    fn busy(&self) -> Duration {
        let worker = self.runtime.as_ref();
        worker.map_or(Duration::ZERO, |runtime| {
            runtime.worker_total_busy_duration(0)
        })
    }
}

impl Http for HttpClient {
    type Rest = Rest;

    async fn post_until_processed(
        &self,
        build: impl Fn() -> Request,
        deadline: tokio::time::Instant,
    ) -> Reply {
        HttpClient::post_until_processed(self, build, deadline).await
    }

    async fn exchange(
        &self,
        method: http::Method,
        request: Request,
        deadline: tokio::time::Instant,
    ) -> Reply {
        HttpClient::exchange(self, method, request, deadline).await
    }

    async fn drain(rest: Rest, deadline: tokio::time::Instant) -> Drained {
        rest.drain(deadline).await
    }

    async fn read_snippet(rest: Rest, deadline: tokio::time::Instant) -> (Vec<u8>, Drained) {
        rest.read_snippet(deadline).await
    }
}

impl super::port::Ends for Ends {
    async fn stable(
        &self,
        of: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        Ends::stable(self, of)
    }

    async fn high(&self, of: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        Ends::high(self, of)
    }
}
