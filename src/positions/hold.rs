//! Holds on a broker: roles look for one, a command keeps one (see [`crate::model::hold`]).
//!
//! A hold is the commit metadata of `webhook-commands` partition 0 in the group of readers that never join. Every role may
//! describe that group already, and an operator may commit to it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::{Client, GroupRole, client, client_of, commit, members};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::credentials::keep_current;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{committed_offsets, readers_group};
use crate::edge::kafka::member::{Commit, TopicPartition};
use crate::model::hold::{HeldRoles, LEASE, LOOK_EVERY, Watch, text};
use crate::model::units::Position;
use crate::runtime::hold::Holds;
use crate::runtime::shutdown::Stop;

/// How long one look waits for a broker: a process that stops waits for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks for holds until told to stop. A look that fails changes nothing: a hold ends with its lease.
///
/// # Errors
/// [`Failure`] when no client can be created.
pub fn watch(settings: &Settings, holds: &Holds, stop: &Stop) -> Result<(), Failure> {
    let client: Client = consumer_config(settings, "holds", &readers_group(settings))
        .create_with_context(LoggedConsumer(LogContext::new("holds")))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    let client = Arc::new(client);
    keep_current(&settings.credentials, &client, |client| client.client());
    let topic = settings.topics.commands();
    let mut watch = Watch::default();
    while !stop.is_requested() {
        match look(&client, &topic) {
            Ok(found) => watch.saw(found.as_deref(), clock::instant(), clock::now()),
            // The roles report brokers that are away.
            Err(failure) => tracing::debug!("looking for holds: {failure}"),
        }
        holds.set(watch.held(clock::instant()));
        stop.wait(LOOK_EVERY);
    }
    Ok(())
}

fn look(client: &Client, topic: &str) -> Result<Option<String>, Failure> {
    let mut asked = TopicPartitionList::new();
    asked.add_partition(topic, 0);
    let what = || "looking for holds".to_owned();
    let found = committed_offsets(client, &asked, PATIENCE, what)?;
    let element = found.find_partition(topic, 0);
    let text = element.map(|element| element.metadata().to_owned());
    Ok(text.filter(|text| !text.is_empty()))
}

/// A hold of this process: renewed by a thread of its own until it is dropped, which ends it.
pub struct Keeper {
    change: Option<Sender<HeldRoles>>,
    renewed: Arc<Mutex<Result<Instant, String>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Begins a hold.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be written.
    pub fn begin(settings: &Settings, roles: HeldRoles) -> Result<Self, Failure> {
        let writer = Writer::open(settings)?;
        writer.write(roles, 0)?;
        let (change, changes) = channel();
        let renewed = Arc::new(Mutex::new(Ok(clock::instant())));
        let own = Arc::clone(&renewed);
        let thread = std::thread::Builder::new()
            .name("hold".to_owned())
            .spawn(move || keep(&writer, roles, &changes, &own))
            .map_err(|error| Failure::Internal(format!("starting a thread: {error}")))?;
        Ok(Self {
            change: Some(change),
            renewed,
            thread: Some(thread),
        })
    }

    /// Holds other roles from now on.
    pub fn change(&self, roles: HeldRoles) {
        if let Some(change) = &self.change {
            // The thread lives as long as its keeper.
            change.send(roles).ok();
        }
    }

    /// Why the roles may have started again: the hold could not be renewed for half of its lease.
    #[must_use]
    pub fn lapsed(&self) -> Option<String> {
        let renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        match &*renewed {
            Ok(at) if clock::instant() - *at < LEASE / 2 => None,
            Ok(_) => Some("no broker has acknowledged its renewal in time".to_owned()),
            Err(why) => Some(why.clone()),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.change.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the thread of the hold panicked; the hold ends within 30 s");
        }
    }
}

struct Writer {
    client: Client,
    group: String,
    topic: Arc<str>,
}

impl Writer {
    fn open(settings: &Settings) -> Result<Self, Failure> {
        let group = readers_group(settings);
        Ok(Self {
            client: client_of(settings, &group)?,
            topic: Arc::from(settings.topics.commands()),
            group,
        })
    }

    fn write(&self, roles: HeldRoles, number: u64) -> Result<(), Failure> {
        let at = TopicPartition {
            topic: Arc::clone(&self.topic),
            partition: 0,
        };
        let hold = Commit {
            at,
            position: Position(0),
            metadata: text(roles, number, clock::now()),
        };
        commit(&self.client, &self.group, &[hold])
    }
}

fn keep(
    writer: &Writer,
    mut roles: HeldRoles,
    changes: &Receiver<HeldRoles>,
    renewed: &Mutex<Result<Instant, String>>,
) {
    for number in 1.. {
        let ends = match changes.recv_timeout(LOOK_EVERY) {
            Ok(new) => {
                roles = new;
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        let began = clock::instant();
        let written = writer.write(if ends { HeldRoles::NONE } else { roles }, number);
        if ends {
            if let Err(failure) = written {
                tracing::warn!("the hold ends by itself within 30 s: {failure}");
            }
            return;
        }
        let mut renewed = renewed.lock().unwrap_or_else(PoisonError::into_inner);
        match written {
            Ok(()) => *renewed = Ok(began),
            // One that fails now may succeed next time.
            Err(failure) if failure.is_unreachable() => {}
            Err(failure) => *renewed = Err(failure.to_string()),
        }
    }
}

/// Shows the members of the groups.
pub struct Members {
    clients: Vec<(GroupRole, String, Client)>,
}

impl Members {
    /// Of the groups of these roles.
    ///
    /// # Errors
    /// [`Failure`] when no client can be created.
    pub fn of(settings: &Settings, roles: &[GroupRole]) -> Result<Self, Failure> {
        let each = roles.iter().map(|&role| {
            let client = client(settings, role)?;
            Ok((role, role.group(settings), client))
        });
        Ok(Self {
            clients: each.collect::<Result<_, Failure>>()?,
        })
    }

    /// The members of a role's group, by client id and host.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds, or permission is denied.
    pub fn list(&self, role: GroupRole) -> Result<Vec<String>, Failure> {
        let mut found = self.clients.iter();
        match found.find(|(of, ..)| *of == role) {
            Some((_, group, client)) => members(client, group),
            None => Err(Failure::Internal(format!(
                "no client of the group of {}",
                role.as_str()
            ))),
        }
    }
}
