//! The outside of one simulated process: the port on the simulated Kafka and the simulated endpoints.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hookstream::config::Settings;
use hookstream::edge::http::{HttpOptions, HttpSetupError};
use hookstream::edge::kafka::cluster::ClusterId;
use hookstream::edge::port::failure::Failure;
use hookstream::edge::port::records::TopicPartition;
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{Port, ProducerKind, Task};
use hookstream::model::units::Position;
use tokio::task::{AbortHandle, JoinHandle};

use super::endpoints::{Client, Endpoints};
use super::machine::Machine;
use crate::kafka::cluster::Membership;
use crate::kafka::net::{Net, lock};
use crate::kafka::port::log::{SimEnds, SimLog};
use crate::kafka::port::member::SimMember;
use crate::kafka::port::producer::SimProducer;
use crate::kafka::port::{self, SimHeaders};

/// The id of the simulated cluster.
pub const CLUSTER: &str = "simulated";

/// The outside of one process.
#[derive(Clone)]
pub struct Outside {
    /// The Kafka network.
    pub net: Net,
    /// The machine that it runs on.
    pub machine: Arc<Machine>,
    /// The endpoints.
    pub endpoints: Endpoints,
    /// Its name.
    pub instance: Arc<str>,
    /// Since when no broker is reachable.
    pub away: Arc<Mutex<Option<Instant>>>,
}

impl Port for Outside {
    type Generation = Membership;
    type Member = SimMember;
    type Headers = SimHeaders;
    type Producer = SimProducer;
    type Log = SimLog;
    type Ends = SimEnds;
    type Http = Client;
    type Task = Started;

    async fn join(
        &self,
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        _extra: &[(&str, &str)],
    ) -> Result<SimMember, Failure> {
        Ok(SimMember::join(
            &self.net,
            settings,
            keep_waiting,
            purpose,
            group,
            topics,
        ))
    }

    async fn producer(
        &self,
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        kind: ProducerKind,
    ) -> Result<SimProducer, Failure> {
        SimProducer::open(&self.net, settings, keep_waiting, purpose, kind).await
    }

    async fn log(
        &self,
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> Result<SimLog, Failure> {
        SimLog::open(&self.net, settings, topic, purpose).await
    }

    async fn positions(
        &self,
        settings: &Settings,
        group: &str,
        purpose: &'static str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Position>>, Failure> {
        port::positions(&self.net, settings, group, purpose, partitions).await
    }

    fn ends(&self, settings: &Settings, purpose: &'static str) -> Result<SimEnds, Failure> {
        Ok(SimEnds::new(&self.net, settings, purpose))
    }

    async fn wait_for_topics(
        &self,
        settings: &Settings,
        purpose: &'static str,
        topics: &[String],
        stop: &dyn Fn() -> bool,
        waiting: &mut dyn FnMut(&str),
    ) -> Result<Option<ClusterId>, Failure> {
        let found = port::wait_for_topics(&self.net, settings, purpose, topics, stop, waiting);
        Ok(found.await?.then(|| ClusterId::new(CLUSTER)))
    }

    fn outage(&self, now: Instant) -> Option<Instant> {
        let client: Arc<str> = Arc::from(format!("deliver-{}", self.instance));
        let mut away = lock(&self.away);
        *away = port::outage(&self.net, &client, *away, now);
        *away
    }

    fn http(&self, _options: HttpOptions) -> Result<Client, HttpSetupError> {
        Ok(Client {
            endpoints: self.endpoints.clone(),
            instance: Arc::clone(&self.instance),
        })
    }

    fn spawn<F, T>(&self, _name: String, make: F) -> Result<Started, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        Ok(Started(self.machine.start(make())))
    }

    fn spawn_worker<F, T>(&self, name: String, make: F) -> Result<Started, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        self.spawn(name, make)
    }

    fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        self.machine.start(task).abort_handle()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(time, future).await.ok()
    }

    fn seed(&self) -> u64 {
        self.endpoints.random()
    }
}

/// A task of a machine.
pub struct Started(JoinHandle<()>);

impl Task for Started {
    async fn join(self) -> bool {
        self.0.await.is_ok()
    }

    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}
