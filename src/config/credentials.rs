//! The part of the connection's settings that may change while the process runs.
//!
//! Clients register here for each new login; whoever watches the files (`edge::kafka::credentials`) puts changes in.

use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::files::Connection;

/// What may change while the process runs. Clones share it. The default never changes.
#[derive(Clone, Default)]
pub struct Credentials(Arc<Mutex<State>>);

/// Gives a client a login; `false` when the client is gone.
pub(crate) type GiveLogin = Box<dyn Fn(&Login) -> bool + Send>;

#[derive(Default)]
struct State {
    /// What replaces the user and password in the settings.
    login: Option<Login>,
    /// One for each client.
    clients: Vec<GiveLogin>,
    /// What new clients are to be made with, and when.
    renewal: Option<(Connection, Instant)>,
    /// Whether somebody makes new clients when it is time.
    renews: bool,
}

/// A user and a password. No `Debug`: it is a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: CString,
    pub(crate) password: CString,
}

impl Login {
    /// Of mechanisms that librdkafka takes a new login for.
    pub(crate) fn of(connection: &Connection) -> Option<Self> {
        let property = |name: &str| connection.properties.get(name);
        // The first spelling is an alias; librdkafka takes what is set last, which is the second.
        let mechanism = property("sasl.mechanisms").or_else(|| property("sasl.mechanism"))?;
        let takes = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&mechanism.as_str());
        let text = |name| CString::new(property(name)?.as_str()).ok();
        takes.then_some(())?;
        Some(Self {
            user: text("sasl.username")?,
            password: text("sasl.password")?,
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Credentials {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest login, if it is another one than the settings have.
    pub(crate) fn login(&self) -> Option<Login> {
        self.state().login.clone()
    }

    /// Gives a client every new login until `give` returns `false`.
    pub(crate) fn register(&self, give: GiveLogin) {
        let mut state = self.state();
        // The client may have been made with a login that is no longer the newest.
        if state.login.as_ref().is_none_or(&give) {
            state.clients.push(give);
        }
    }

    /// Gives all clients a new login. Returns how many there are.
    pub(crate) fn replace_login(&self, login: Login) -> usize {
        let mut state = self.state();
        state.clients.retain(|give| give(&login));
        state.login = Some(login);
        state.clients.len()
    }

    /// From now on, somebody asks [`Credentials::due`].
    pub(crate) fn renew(&self) {
        self.state().renews = true;
    }

    /// Whether somebody makes new clients when it is time.
    pub(crate) fn renews(&self) -> bool {
        self.state().renews
    }

    /// New clients are to be made with `connection` at `at`. A second change does not put off the first.
    pub(crate) fn schedule_renewal(&self, connection: Connection, at: Instant) {
        let mut state = self.state();
        let at = state.renewal.take().map_or(at, |(_, earlier)| earlier);
        state.renewal = Some((connection, at));
    }

    /// Changes what new clients are to be made with, if they are to be.
    pub(crate) fn update_renewal(&self, connection: &Connection) {
        if let Some((renewal, _)) = &mut self.state().renewal {
            *renewal = connection.clone();
        }
    }

    /// How many clients are registered.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> usize {
        self.state().clients.len()
    }

    /// What new clients are to be made with, and when.
    #[cfg(test)]
    pub(crate) fn renewal(&self) -> Option<(Connection, Instant)> {
        self.state().renewal.clone()
    }

    /// Whether it is time to make new clients.
    #[must_use]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let due = self.state().renewal.as_ref().map(|(_, at)| *at);
        due.is_some_and(|at| now >= at)
    }

    /// What new clients are to be made with, once, when it is time.
    pub(crate) fn due(&self, now: Instant) -> Option<Connection> {
        if !self.is_due(now) {
            return None;
        }
        self.state()
            .renewal
            .take()
            .map(|(connection, _)| connection)
    }
}
