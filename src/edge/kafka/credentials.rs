//! Credential rotation: credentials that change on disk, and the clients that must use them.
//!
//! One thread rereads the files every few seconds, since change notifications do not work with every kind of mount. A new
//! user or password of PLAIN and SCRAM, and every new token ([`oauth`]), is passed to the running clients; existing
//! connections stay until a broker closes them or requests reauthentication (KIP-368). librdkafka reads certificates only
//! when a client is created, so any other change makes the service drain, commit and restart with new clients
//! ([`Credentials`]), after a random delay, so that replicas do not restart all at once. Settings that are unreadable or
//! yield no client change nothing.

use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::BaseConsumer;

use super::oauth::{self, Tokens};
use super::sasl;
use crate::config::credentials::{Credentials, Login};
use crate::config::{Connection, TokenSource, concerns_tokens_only, is_served_here};
use crate::edge::clock;
use crate::edge::kafka::error::Failure;

/// How often the files are reread.
const EVERY: Duration = Duration::from_secs(3);
/// Maximum delay of the restart after a change.
const JITTER: Duration = Duration::from_secs(20);

/// Rereads all connection settings.
pub type Read = Box<dyn Fn() -> Result<Connection, Vec<String>> + Send + Sync>;

/// The connection without what clients log in with.
fn without_login(connection: &Connection) -> Connection {
    let mut rest = connection.clone();
    if connection.token_source().is_some() {
        rest.properties
            .retain(|property, _| !concerns_tokens_only(property));
        rest.certificates
            .retain(|property, _| !concerns_tokens_only(property));
    } else {
        rest.properties.remove("sasl.username");
        rest.properties.remove("sasl.password");
    }
    rest
}

/// Replaces the user and password that the process started with by the latest.
pub(super) fn apply(credentials: &Credentials, config: &mut ClientConfig) {
    if let Some(Login::Password { user, password }) = credentials.login() {
        config.set("sasl.username", user.to_string_lossy());
        config.set("sasl.password", password.to_string_lossy());
    }
}

/// Passes the current login to a client that is used only for a moment: a token cannot be part of its settings.
pub(crate) fn give_once<C: ClientContext>(credentials: &Credentials, client: &Client<C>) {
    if let Some(login) = credentials.login() {
        sasl::set_login(client, &login);
    }
}

/// Passes every new login to `client` while it is in use.
pub(crate) fn keep_current<T, C>(
    credentials: &Credentials,
    client: &Arc<T>,
    inner: fn(&T) -> &Client<C>,
) where
    T: Send + Sync + 'static,
    C: ClientContext + 'static,
{
    let known: Weak<T> = Arc::downgrade(client);
    let give = move |login: &Login| {
        let Some(client) = known.upgrade() else {
            return false;
        };
        sasl::set_login(inner(&client), login);
        if let Some(last) = Arc::into_inner(client) {
            // The owner dropped it meanwhile; closing may block, so it happens on another thread.
            std::thread::spawn(move || drop(last));
        }
        true
    };
    credentials.register(Box::new(give));
}

/// Rereads the files every few seconds until the process ends; `current` is the connection of the settings, and `tokens`
/// fetches its tokens, if it has any.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(
    credentials: &Credentials,
    current: Connection,
    tokens: Option<Tokens>,
    read: Read,
) -> std::io::Result<()> {
    let mut watch = Watch {
        credentials: credentials.clone(),
        read,
        current,
        tokens,
        problem: None,
    };
    std::thread::Builder::new()
        .name("credentials".to_owned())
        .spawn(move || {
            loop {
                std::thread::sleep(EVERY);
                watch.look();
            }
        })
        .map(drop)
}

/// The state of the watch.
struct Watch {
    credentials: Credentials,
    read: Read,
    current: Connection,
    tokens: Option<Tokens>,
    /// The current problem, so that it is logged once.
    problem: Option<String>,
}

impl Watch {
    fn look(&mut self) {
        let found = (self.read)().map_err(|mistakes| mistakes.join("; "));
        match found.and_then(|found| self.take(found)) {
            Ok(()) => {
                if self.problem.take().is_some() {
                    tracing::info!("connection settings are readable again");
                }
            }
            Err(problem) => {
                if self.problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        "changed connection settings rejected, keeping the previous ones: {problem}"
                    );
                    self.problem = Some(problem);
                }
            }
        }
    }

    fn take(&mut self, found: Connection) -> Result<(), String> {
        if found == self.current {
            return Ok(());
        }
        let (source, former) = (found.token_source(), self.current.token_source());
        let needs_clients = without_login(&found) != without_login(&self.current)
            || Login::of(&found).is_none() && source.is_none();
        if needs_clients {
            try_connection(&found).map_err(|failure| failure.to_string())?;
        }
        if let Some(login) = Login::of(&found)
            && Login::of(&self.current).as_ref() != Some(&login)
        {
            let clients = self.credentials.replace_login(login);
            tracing::info!(
                clients,
                "SASL user or password changed; new connections use it"
            );
        }
        if let Some(source) = source
            && former.as_ref() != Some(&source)
        {
            self.fetch_from(source)?;
        }
        if needs_clients && self.credentials.renews() {
            let after = JITTER.mul_f64(fastrand::f64());
            tracing::info!(
                changed = changed(&self.current, &found).join(", "),
                "connection settings changed; making new clients within {JITTER:?}"
            );
            self.credentials
                .schedule_renewal(found.clone(), clock::instant() + after);
        } else if needs_clients {
            tracing::warn!(
                changed = changed(&self.current, &found).join(", "),
                "connection settings changed; this command continues with the previous ones"
            );
        } else {
            self.credentials.update_renewal(&found);
        }
        self.current = found;
        Ok(())
    }

    /// Fetches the tokens from another source, or with other credentials, from now on.
    fn fetch_from(&mut self, source: TokenSource) -> Result<(), String> {
        match &self.tokens {
            Some(tokens) => {
                tracing::info!("settings of the token server changed; fetching a new token");
                tokens.change(source);
            }
            None => {
                let started = oauth::start(&self.credentials, source);
                self.tokens = Some(started.map_err(|error| error.to_string())?);
            }
        }
        Ok(())
    }
}

/// The names of changed settings, never their values.
fn changed(before: &Connection, after: &Connection) -> Vec<String> {
    let mut names = Vec::new();
    if before.brokers != after.brokers {
        names.push("brokers".to_owned());
    }
    let keys = before.properties.keys().chain(after.properties.keys());
    names.extend(
        keys.filter(|key| before.properties.get(*key) != after.properties.get(*key))
            .cloned(),
    );
    let files = before.certificates.keys().chain(after.certificates.keys());
    names.extend(
        files
            .filter(|key| before.certificates.get(*key) != after.certificates.get(*key))
            .cloned(),
    );
    names.sort_unstable();
    names.dedup();
    names
}

/// Creates a client, which loads and matches certificates and keys, without connecting.
///
/// # Errors
/// [`Failure`] with the client's reason, without secret values.
pub fn try_connection(connection: &Connection) -> Result<(), Failure> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &connection.brokers);
    for (key, value) in &connection.properties {
        if !is_served_here(key) {
            config.set(key, value);
        }
    }
    let made: Result<BaseConsumer, _> = config.create();
    made.map(drop)
        .map_err(|error| Failure::from_client("creating a client", error))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::sync::Mutex;

    use super::*;

    fn connection(properties: &[(&str, &str)]) -> Connection {
        Connection {
            brokers: "127.0.0.1:1".to_owned(),
            properties: properties
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Connection::default()
        }
    }

    fn scram(user: &str, password: &str) -> Connection {
        connection(&[
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", user),
            ("sasl.password", password),
        ])
    }

    type Found = Result<Connection, Vec<String>>;

    /// A watch whose files hold what the test puts there.
    fn watch(current: &Connection) -> (Watch, Arc<Mutex<Found>>) {
        let files = Arc::new(Mutex::new(Ok(current.clone())));
        let read = Arc::clone(&files);
        let watch = Watch {
            credentials: Credentials::default(),
            read: Box::new(move || read.lock().unwrap().clone()),
            current: current.clone(),
            tokens: None,
            problem: None,
        };
        (watch, files)
    }

    fn configured(credentials: &Credentials) -> Option<String> {
        let mut config = ClientConfig::new();
        apply(credentials, &mut config);
        config.get("sasl.password").map(str::to_owned)
    }

    #[test]
    fn a_new_password_reaches_running_and_later_clients() {
        let (mut watch, files) = watch(&scram("me", "old"));
        let credentials = watch.credentials.clone();
        let client: BaseConsumer = ClientConfig::new().create().unwrap();
        let client = Arc::new(client);
        keep_current(&credentials, &client, |client| {
            rdkafka::consumer::Consumer::client(client)
        });
        watch.look();
        assert_eq!(configured(&credentials), None, "nothing has changed");

        *files.lock().unwrap() = Ok(scram("me", "new"));
        watch.look();
        assert_eq!(configured(&credentials).as_deref(), Some("new"));
        assert_eq!(credentials.clients(), 1);
        assert!(credentials.renewal().is_none());
        assert!(!format!("{credentials:?}").contains("new"));

        drop(client);
        *files.lock().unwrap() = Ok(scram("me", "newer"));
        watch.look();
        assert!(
            credentials.clients() == 0,
            "a client that is gone is forgotten"
        );
    }

    #[test]
    fn a_client_made_with_the_previous_password_gets_the_new_one_when_it_is_known() {
        let credentials = Credentials::default();
        let given = Arc::new(Mutex::new(Vec::new()));
        let add = || {
            let given = Arc::clone(&given);
            credentials.register(Box::new(move |login| {
                let Login::Password { password, .. } = login else {
                    return false;
                };
                given.lock().unwrap().push(password.clone());
                true
            }));
        };
        let replace = |password| {
            let login = Login::of(&scram("me", password));
            credentials.replace_login(login.unwrap())
        };
        add();
        assert!(
            given.lock().unwrap().is_empty(),
            "it has what it was made with"
        );
        assert_eq!(replace("new"), 1);
        add();
        assert_eq!(replace("newer"), 2);
        let expected = ["new", "new", "newer", "newer"].map(|text| CString::new(text).unwrap());
        assert_eq!(*given.lock().unwrap(), expected);
    }

    #[test]
    fn unreadable_or_unusable_settings_change_nothing() {
        let (mut watch, files) = watch(&scram("me", "old"));
        let credentials = watch.credentials.clone();
        credentials.renew();
        *files.lock().unwrap() = Err(vec!["the file is empty".to_owned()]);
        watch.look();
        assert!(watch.problem.is_some());
        let mut broken = scram("me", "old");
        broken
            .properties
            .insert("ssl.ca.pem".to_owned(), "no PEM".to_owned());
        broken
            .properties
            .insert("security.protocol".to_owned(), "SASL_SSL".to_owned());
        *files.lock().unwrap() = Ok(broken);
        watch.look();
        let problem = watch.problem.clone().unwrap();
        assert!(problem.contains("ssl.ca.pem"), "{problem}");
        assert_eq!(configured(&credentials), None);
        assert!(credentials.renewal().is_none());

        *files.lock().unwrap() = Ok(scram("me", "old"));
        watch.look();
        assert_eq!(watch.problem, None);
    }

    #[test]
    fn any_change_but_a_login_needs_new_clients_at_a_random_time() {
        let (mut watch, files) = watch(&scram("me", "old"));
        let credentials = watch.credentials.clone();
        credentials.renew();
        let mut moved = scram("me", "new");
        moved.brokers = "127.0.0.1:2".to_owned();
        *files.lock().unwrap() = Ok(moved);
        watch.look();
        let at = credentials.renewal().map(|(_, at)| at);
        assert!(at.unwrap() <= clock::instant() + JITTER);
        assert_eq!(
            configured(&credentials).as_deref(),
            Some("new"),
            "the login does not wait"
        );

        // A later password goes with it, and does not put it off.
        let mut later = scram("me", "newer");
        later.brokers = "127.0.0.1:2".to_owned();
        *files.lock().unwrap() = Ok(later.clone());
        watch.look();
        let state = credentials.renewal().unwrap();
        assert!(state.0 == later && Some(state.1) == at);
    }

    #[test]
    fn a_command_that_does_not_renew_clients_keeps_the_old_ones() {
        let (mut watch, files) = watch(&scram("me", "old"));
        let mut moved = scram("me", "old");
        moved.brokers = "127.0.0.1:2".to_owned();
        *files.lock().unwrap() = Ok(moved);
        watch.look();
        assert!(watch.credentials.due(clock::instant()).is_none());
    }

    #[test]
    fn changed_settings_are_named_without_values() {
        let mut after = scram("me", "hunter2");
        after.brokers = "b:2".to_owned();
        after
            .certificates
            .insert("ssl.ca.location".to_owned(), vec![1]);
        assert_eq!(
            changed(&scram("me", "old"), &after),
            ["brokers", "sasl.password", "ssl.ca.location"]
        );
    }
}
