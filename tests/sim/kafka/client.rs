//! The clients, as the program's use of librdkafka behaves: retries, time-outs and classes of errors are those of the
//! library, simplified where no role can see the difference (one batch of a partition is in flight at a time).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::cluster::{Cluster, Kind, TopicView};
use super::log::Ms;
use super::net::{Api, Lost, Net, lock};
use super::{Code, Node, Tp};

pub mod member;
pub mod producer;
pub mod reader;

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Call again.
    Retry,
    /// Abort the transaction.
    Abort,
    /// Replace the client.
    Fatal,
    /// Of a call that is not part of a transaction.
    Plain,
}

/// An error of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The library's code.
    pub code: Code,
    /// What to do.
    pub class: Class,
    /// The request may have taken effect nevertheless.
    pub ambiguous: bool,
}

impl Trouble {
    fn new(class: Class, code: Code) -> Self {
        Self {
            code,
            class,
            ambiguous: false,
        }
    }
}

impl From<Lost> for Code {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Broken => Self::BrokerTransportFailure,
            Lost::TimedOut => Self::OperationTimedOut,
        }
    }
}

/// How long a client waits before it repeats a request.
const BACKOFF: Duration = Duration::from_millis(100);

/// A connection to the cluster, with what it knows of leaders and coordinators.
#[derive(Clone)]
pub struct Link {
    /// The network.
    pub net: Net,
    /// The client's name.
    pub name: Arc<str>,
    /// `socket.timeout.ms`.
    pub timeout: Duration,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    topics: BTreeMap<Arc<str>, TopicView>,
    coordinators: BTreeMap<(Kind, Arc<str>), Node>,
}

impl Link {
    /// A client of this name, which knows nothing yet.
    pub fn new(net: &Net, name: &str) -> Self {
        Self {
            net: net.clone(),
            name: Arc::from(name),
            timeout: Duration::from_secs(12),
            known: Arc::default(),
        }
    }

    /// Sends a request to one broker.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn call<T: Send + 'static>(
        &self,
        node: Node,
        api: Api,
        handle: impl FnOnce(&mut Cluster, Ms) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        self.net
            .call(&self.name, node, api, self.timeout, handle)
            .await
    }

    /// Sends a request to any broker.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn ask<T: Send + 'static>(
        &self,
        handle: impl FnOnce(&mut Cluster, Ms) -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let Some(node) = self.net.bootstrap(&self.name) else {
            tokio::time::sleep(BACKOFF).await;
            return Err(Lost::Broken);
        };
        self.call(node, Api::Metadata, handle).await
    }

    /// A topic; `None` if there is none.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn topic(&self, name: &Arc<str>) -> Result<Option<TopicView>, Lost> {
        let known = lock(&self.known).topics.get(name).cloned();
        if known.is_some() {
            return Ok(known);
        }
        let wanted = Arc::clone(name);
        let found = self
            .ask(move |cluster, _| cluster.describe(&wanted))
            .await?;
        if let Some(view) = &found {
            let mut known = lock(&self.known);
            known.topics.insert(Arc::clone(name), view.clone());
        }
        Ok(found)
    }

    /// The leader of a partition.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`, `LEADER_NOT_AVAILABLE`, those of a lost response.
    pub async fn leader(&self, tp: &Tp) -> Result<Node, Code> {
        let view = self.topic(&tp.topic).await?;
        let view = view.ok_or(Code::UnknownTopicOrPartition)?;
        let at = usize::try_from(tp.partition).ok();
        let leader = at.and_then(|at| view.leaders.get(at));
        let Some(leader) = leader else {
            self.forget(&tp.topic);
            return Err(Code::UnknownTopicOrPartition);
        };
        if leader.is_none() {
            self.forget(&tp.topic);
        }
        leader.ok_or(Code::LeaderNotAvailable)
    }

    /// What is known of a topic may be outdated.
    pub fn forget(&self, topic: &str) {
        lock(&self.known).topics.remove(topic);
    }

    /// The coordinator of a group or a transactional id.
    ///
    /// # Errors
    /// `COORDINATOR_NOT_AVAILABLE`, those of a lost response.
    pub async fn coordinator(&self, kind: Kind, key: &Arc<str>) -> Result<Node, Code> {
        let at = (kind, Arc::clone(key));
        if let Some(node) = lock(&self.known).coordinators.get(&at) {
            return Ok(*node);
        }
        let wanted = Arc::clone(key);
        let found = self
            .ask(move |cluster, _| cluster.coordinator(kind, &wanted))
            .await??;
        lock(&self.known).coordinators.insert(at, found);
        Ok(found)
    }

    /// The coordinator may be another one.
    pub fn forget_coordinator(&self, kind: Kind, key: &Arc<str>) {
        let at = (kind, Arc::clone(key));
        lock(&self.known).coordinators.remove(&at);
    }

    /// Sends a request to a coordinator. Where that has moved, the next call looks for it again.
    ///
    /// # Errors
    /// The coordinator's, those of a lost response.
    pub async fn coordinated<T: Send + 'static>(
        &self,
        kind: Kind,
        key: &Arc<str>,
        api: Api,
        handle: impl FnOnce(&mut Cluster, Ms, Node) -> Result<T, Code> + Send + 'static,
    ) -> Result<T, Code> {
        let node = self.coordinator(kind, key).await?;
        let called = self
            .call(node, api, move |cluster, now| handle(cluster, now, node))
            .await;
        let result = called.map_err(Code::from).and_then(|result| result);
        if let Err(code) = &result
            && (is_lost(*code) || *code == Code::NotCoordinator)
        {
            self.forget_coordinator(kind, key);
        }
        result
    }
}

/// Whether there was no response, so that the request may have taken effect.
pub fn is_lost(code: Code) -> bool {
    matches!(code, Code::BrokerTransportFailure | Code::OperationTimedOut)
}

/// Whether a coordinator is missing, moving or out of reach.
pub fn is_moving(code: Code) -> bool {
    is_lost(code)
        || matches!(
            code,
            Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress
        )
}
