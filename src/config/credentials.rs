//! The part of the connection settings that may change while the process runs.
//!
//! Clients register here to receive new logins; the file watcher (`edge::kafka::credentials`) publishes them.

use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::files::Connection;

/// The credentials in use, shared by all clones. The default value never changes.
#[derive(Clone, Default)]
pub struct Credentials(Arc<Mutex<State>>);

/// Passes a login to a client; returns `false` once the client is gone.
pub(crate) type GiveLogin = Box<dyn Fn(&Login) -> bool + Send>;

#[derive(Default)]
struct State {
    /// Replaces the user and password of the settings.
    login: Option<Login>,
    /// One per client.
    clients: Vec<GiveLogin>,
    /// The connection for new clients, and when to create them.
    renewal: Option<(Connection, Instant)>,
    /// Whether a role replaces its clients when a renewal is due.
    renews: bool,
}

/// What a client logs in with. No `Debug`, since it is a secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// PLAIN and SCRAM.
    Password {
        /// The user.
        user: CString,
        /// The password.
        password: CString,
    },
    /// OAUTHBEARER.
    Token(Token),
    /// OAUTHBEARER, while there is no token: why not.
    NoToken(CString),
}

/// A token and what goes with it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) value: CString,
    /// When it expires, milliseconds since the epoch.
    pub(crate) expires_ms: i64,
    /// The id of the client that it was issued to; brokers do not see it.
    pub(crate) principal: CString,
    /// Names and values for the brokers, in pairs.
    pub(crate) extensions: Vec<CString>,
}

impl Login {
    /// The user and password of a connection, if librdkafka can change the login of its mechanism at run time.
    pub(crate) fn of(connection: &Connection) -> Option<Self> {
        let property = |name: &str| connection.properties.get(name);
        // `sasl.mechanism` is an alias; librdkafka uses the one set last, which is `sasl.mechanisms`.
        let mechanism = property("sasl.mechanisms").or_else(|| property("sasl.mechanism"))?;
        let takes = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"].contains(&mechanism.as_str());
        let text = |name| CString::new(property(name)?.as_str()).ok();
        takes.then_some(())?;
        Some(Self::Password {
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

    /// The latest login, if it differs from the settings.
    pub(crate) fn login(&self) -> Option<Login> {
        self.state().login.clone()
    }

    /// Passes every new login to a client, until `give` returns `false`.
    pub(crate) fn register(&self, give: GiveLogin) {
        let mut state = self.state();
        // The client may have been created with an outdated login.
        if state.login.as_ref().is_none_or(&give) {
            state.clients.push(give);
        }
    }

    /// Passes a new login to all clients and returns their number.
    pub(crate) fn replace_login(&self, login: Login) -> usize {
        let mut state = self.state();
        state.clients.retain(|give| give(&login));
        state.login = Some(login);
        state.clients.len()
    }

    /// Declares that a role polls [`Credentials::due`] from now on.
    pub(crate) fn renew(&self) {
        self.state().renews = true;
    }

    /// Whether a role polls [`Credentials::due`].
    pub(crate) fn renews(&self) -> bool {
        self.state().renews
    }

    /// Schedules new clients with `connection` at `at`. A later change does not postpone an earlier one.
    pub(crate) fn schedule_renewal(&self, connection: Connection, at: Instant) {
        let mut state = self.state();
        let at = state.renewal.take().map_or(at, |(_, earlier)| earlier);
        state.renewal = Some((connection, at));
    }

    /// Updates the connection of a scheduled renewal, if there is one.
    pub(crate) fn update_renewal(&self, connection: &Connection) {
        if let Some((renewal, _)) = &mut self.state().renewal {
            *renewal = connection.clone();
        }
    }

    /// The number of registered clients.
    #[cfg(test)]
    pub(crate) fn clients(&self) -> usize {
        self.state().clients.len()
    }

    /// The scheduled renewal.
    #[cfg(test)]
    pub(crate) fn renewal(&self) -> Option<(Connection, Instant)> {
        self.state().renewal.clone()
    }

    /// Whether a renewal is due.
    #[must_use]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let due = self.state().renewal.as_ref().map(|(_, at)| *at);
        due.is_some_and(|at| now >= at)
    }

    /// The connection for new clients, returned once when the renewal is due.
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
