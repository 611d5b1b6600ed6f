//! Settings: as typed ([`Layers`]), then checked ([`Settings`]).
//!
//! A flag goes before an environment variable, that before a key in the file, that before the service binding, that
//! before the default. All that is wrong is told at once, each by its name, its value, where that came from and what is allowed, so that a rollout
//! does not find one mistake per restart. Pure: `cli.rs` reads the flags, the environment and the file.

mod binding;
mod files;
mod parse;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::delivery::breaker::BreakerRules;
use crate::delivery::window::Format as WindowFormat;
use crate::kafka::credentials::Credentials;
use crate::retry::tier::Tiers;
use crate::units::format_duration;
pub use files::Connection;
use files::{is_file_variable, without_newline};
use table::{OWNED_PROPERTIES, SETTINGS, Setting};

/// How the work of one event or attempt becomes visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Transactions: from event to command, and from attempt to retry or dead letter.
    ExactlyOnce,
    /// For brokers without transactions: a crash may write a command, retry or dead letter twice.
    AtLeastOnce,
}

/// Every setting, checked. Built once at start; see the table of settings for units, defaults and ranges.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bootstrap servers, `host:port`, comma separated.
    pub brokers: String,
    /// librdkafka properties given with `-X`, in order.
    pub properties: Vec<(String, String)>,
    /// What of the brokers and properties may change while the process runs; shared by all clones.
    pub credentials: Credentials,
    /// Names of all topics.
    pub topics: Topics,
    /// Prefix of all consumer groups.
    pub group_prefix: String,
    /// What a crash may do.
    pub guarantee: Guarantee,
    /// Unique and stable per replica; names the transactional ids.
    pub instance: String,
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub http_listen: SocketAddr,
    /// Retry tiers.
    pub tiers: Tiers,
    /// Delays after the first, second, … failed attempt, before jitter.
    pub retry_schedule: Vec<Duration>,
    /// One deadline over connect, headers and body of an attempt.
    pub timeout: Duration,
    /// For attempts in flight at shutdown and revocation.
    pub drain_deadline: Duration,
    /// Whether each attempt is recorded in the log of attempts.
    pub attempt_log: bool,
    /// The format of the commit metadata that delivery writes.
    pub window_format: WindowFormat,
    /// How many subscribers get series of their own, by each rank.
    pub lag_top: usize,
    /// A call into the Kafka client that takes longer, though brokers answer, ends the process.
    pub hang_deadline: Duration,
    /// Where spans go, if anywhere.
    pub otlp: Option<OtlpSettings>,
    /// What endpoints may be reached.
    pub egress: EgressSettings,
    /// Further trusted certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Larger events are invalid, bytes.
    pub max_event_bytes: usize,
    /// Threads that send, each with its own connections; a partition belongs to one.
    pub workers: usize,
    /// Requests in flight per replica, over all subscriptions.
    pub max_in_flight: usize,
    /// Commands held in memory per replica, bytes.
    pub max_queued_bytes: usize,
    /// Commands held in memory per replica.
    pub max_queued_commands: usize,
    /// When to stop sending to an endpoint, where its subscription does not say.
    pub breaker: BreakerRules,
}

/// Where a value comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// In the file given with `--config`.
    File,
    /// In the service binding given with `--kafka-binding`.
    Binding,
    /// The default.
    Default,
}

impl Source {
    /// One word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Binding => "binding",
            Self::Default => "default",
        }
    }
}

/// What was typed, by source: names of settings to text, and librdkafka properties.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    given: BTreeMap<(String, Source), Given>,
    properties: BTreeMap<(String, Source), String>,
    /// What stands in the files that properties name, by property.
    certificates: BTreeMap<String, Vec<u8>>,
    /// Properties that are none: what was meant may be a secret one, so their values are not shown.
    refused: BTreeSet<String>,
    mistakes: Vec<String>,
    /// Some of it stands in files that may change.
    has_files: bool,
}

/// A setting's value.
#[derive(Clone, Debug)]
struct Given {
    text: String,
    /// It stands in a file of its own, which may hold a secret by mistake: it is not quoted.
    is_from_file: bool,
}

impl Layers {
    /// Nothing is given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A setting's value, as typed.
    pub fn give(&mut self, name: &str, source: Source, value: impl Into<String>) {
        let given = Given {
            text: value.into(),
            is_from_file: false,
        };
        self.given.insert((name.to_owned(), source), given);
    }

    /// A `key=value` for librdkafka.
    pub fn give_property(&mut self, text: &str, source: Source) {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.properties
                    .insert((key.trim().to_owned(), source), value.trim().to_owned());
            }
            // What stands there may be a secret with its key forgotten.
            _ => self
                .mistakes
                .push(format!("-X ({}): allowed: key=value", source.name())),
        }
    }

    /// The file's text: TOML, keys as the flags, properties in a table `[x]`.
    pub fn give_file(&mut self, text: &str, path: &str) {
        self.has_files = true;
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // The error's own text quotes the line, which may hold a password.
                let place = line_of(text, error.span().map_or(0, |span| span.start));
                self.mistakes.push(format!(
                    "{path} is not TOML: line {place}: {}",
                    error.message()
                ));
                return;
            }
        };
        for (key, value) in table {
            if key == "x" {
                self.give_file_properties(value);
            } else if SETTINGS.iter().any(|setting| setting.name == key) {
                match as_text(&value) {
                    Some(text) => self.give(&key, Source::File, text),
                    None => self.mistakes.push(format!(
                        "{key} in {path} is a table; allowed: a value or a list of values"
                    )),
                }
            } else {
                self.mistakes.push(format!(
                    "{key} in {path} is no setting; `hookstream config` lists them"
                ));
            }
        }
    }

    fn give_file_properties(&mut self, value: toml::Value) {
        match value {
            toml::Value::Table(properties) => self.give_file_table("", properties),
            _ => self
                .mistakes
                .push("x in the file: allowed: a table of librdkafka properties".to_owned()),
        }
    }

    /// A key with dots and without quotes is a table in a table to TOML, and the same property to librdkafka.
    fn give_file_table(&mut self, prefix: &str, table: toml::Table) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            if let toml::Value::Table(inner) = value {
                self.give_file_table(&format!("{key}."), inner);
            } else if let Some(value) = as_text(&value) {
                self.properties.insert((key, Source::File), value);
            } else {
                self.mistakes
                    .push(format!("x.{key} in the file: allowed: a value"));
            }
        }
    }

    /// Keeps what `judge` says against a property in force, by its key and value.
    ///
    /// Must come before anything is printed: the value of a refused property is treated as a secret.
    pub fn judge_properties(&mut self, judge: impl Fn(&str, &str) -> Option<String>) {
        let judged: Vec<_> = self
            .properties()
            .into_iter()
            .filter_map(|(key, (value, source))| {
                let wrong = judge(key, value)?;
                Some((
                    key.to_owned(),
                    format!("-X {key} ({}): {wrong}", source.name()),
                ))
            })
            .collect();
        for (key, mistake) in judged {
            self.refused.insert(key);
            self.mistakes.push(mistake);
        }
    }

    /// The value in force, and where it comes from; `None` when nothing is given and there is no default.
    #[must_use]
    pub fn effective(&self, setting: &Setting) -> Option<(&str, Source)> {
        let given = self
            .given
            .range((setting.name.to_owned(), Source::Flag)..)
            .next();
        match given {
            Some(((name, source), given)) if name == setting.name => Some((&given.text, *source)),
            _ if setting.default.is_empty() => None,
            _ => Some((setting.default, Source::Default)),
        }
    }

    /// The librdkafka properties in force, and where each comes from.
    #[must_use]
    pub fn properties(&self) -> BTreeMap<&str, (&str, Source)> {
        let mut all = BTreeMap::new();
        for ((key, source), value) in &self.properties {
            all.entry(key.as_str()).or_insert((value.as_str(), *source));
        }
        all
    }
}

/// Counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    1 + before.filter(|&byte| byte == b'\n').count()
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(value) => Some(value.to_string()),
        toml::Value::Datetime(time) => Some(time.to_string()),
        toml::Value::Array(values) => Some(
            values
                .iter()
                .map(as_text)
                .collect::<Option<Vec<_>>>()?
                .join(","),
        ),
        toml::Value::Table(_) => None,
    }
}

/// What the machine says: defaults that no table can hold.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub host_name: String,
    /// Its cores.
    pub cores: usize,
}

impl Settings {
    /// Checks everything.
    ///
    /// # Errors
    /// A line for each mistake.
    pub fn check(layers: &Layers, machine: &Machine) -> Result<Self, Vec<String>> {
        let mut reader = parse::Reader::new(layers);
        let settings = reader.settings(machine);
        let mut mistakes = layers.mistakes.clone();
        mistakes.extend(reader.mistakes);
        mistakes.extend(layers.properties().keys().filter_map(|key| {
            let (_, way) = OWNED_PROPERTIES.iter().find(|(owned, _)| owned == key)?;
            Some(format!("-X {key} cannot be set: {way}"))
        }));
        match settings {
            Some(settings) if mistakes.is_empty() => Ok(settings),
            _ => Err(mistakes),
        }
    }

    /// The same with another way to the brokers.
    #[must_use]
    pub fn with_connection(&self, connection: Connection) -> Self {
        Self {
            brokers: connection.brokers,
            properties: connection.properties.into_iter().collect(),
            ..self.clone()
        }
    }
}

/// Of the names of environment variables, those that look like a setting and are none: mistyped, as a rule.
///
/// They cannot be refused: Kubernetes makes `HOOKSTREAM_SERVICE_HOST`, `HOOKSTREAM_PORT_9400_TCP_ADDR` and the like for
/// a Service that is called hookstream. Those are not even worth a warning.
#[must_use]
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        matches!(name, "HOOKSTREAM_X" | "HOOKSTREAM_CONFIG")
            || is_file_variable(name)
            || SETTINGS.iter().any(|setting| setting.variable() == name)
    };
    let of_a_service = |name: &str| {
        name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.ends_with("_PORT")
            || name.contains("_PORT_")
    };
    let mut unknown: Vec<_> = names
        .into_iter()
        .filter(|name| name.starts_with("HOOKSTREAM_") && !known(name) && !of_a_service(name))
        .collect();
    unknown.sort_unstable();
    unknown
}

/// What stands for a secret when settings are printed.
pub const REDACTED: &str = "***";

/// Whether a librdkafka property holds a credential.
#[must_use]
pub fn is_secret(property: &str) -> bool {
    ["password", "secret", "token", "jaas", "key.pem", "private"]
        .iter()
        .any(|part| property.contains(part))
        || property == "sasl.oauthbearer.config"
}

/// Whether a URL has a part where credentials are put. Such a one is refused, and must not be shown then either.
fn may_hold_credentials(url: &str) -> bool {
    url.contains(['@', '?', '#'])
}

/// One row of `hookstream config`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EffectiveSetting {
    /// The setting.
    pub name: String,
    /// Its value; [`REDACTED`] for a secret.
    pub value: String,
    /// Where it comes from.
    pub source: &'static str,
}

/// All settings in force, secrets redacted (**Secret**).
#[must_use]
pub fn effective(layers: &Layers, machine: &Machine) -> Vec<EffectiveSetting> {
    let row = |name: &str, value: &str, source: Source| EffectiveSetting {
        name: name.to_owned(),
        value: value.to_owned(),
        source: source.name(),
    };
    let wrong = parse::wrong(layers, machine);
    let hidden = |setting: &Setting, source| {
        layers.is_from_file(setting, source) && wrong.contains(setting.name)
    };
    let mut rows: Vec<_> = SETTINGS
        .iter()
        .map(|setting| match (layers.effective(setting), setting.name) {
            (Some((_, source)), name) if hidden(setting, source) => row(name, REDACTED, source),
            (Some((value, source)), "otlp-endpoint") if may_hold_credentials(value) => {
                row("otlp-endpoint", REDACTED, source)
            }
            (Some((value, source)), name) => row(name, value, source),
            (None, "instance") => row("instance", &machine.host_name, Source::Default),
            (None, "workers") => row("workers", &machine.cores.to_string(), Source::Default),
            (None, name) => row(name, "", Source::Default),
        })
        .collect();
    rows.extend(
        layers
            .properties()
            .into_iter()
            .map(|(key, (value, source))| {
                row(
                    &format!("x.{key}"),
                    &if is_secret(key) || layers.refused.contains(key) {
                        REDACTED.to_owned()
                    } else {
                        one_line(value)
                    },
                    source,
                )
            }),
    );
    rows
}

/// A certificate is many lines: its first stands for it.
fn one_line(value: &str) -> String {
    match value.split_once('\n') {
        Some((first, _)) => format!("{first}…"),
        None => value.to_owned(),
    }
}

/// The reference for the README, as a Markdown table.
#[must_use]
pub fn reference() -> String {
    let mut text = "| flag, key in the file | variable | default | what it does; what is allowed |\n|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = if setting.default.is_empty() {
            String::new()
        } else {
            format!("`{}`", setting.default)
        };
        let value = if setting.is_switch() {
            String::new()
        } else {
            format!(" {}", setting.value)
        };
        let line = format!(
            "| `--{}{value}` | `{}` | {default} | {}; {} |",
            setting.name,
            setting.variable(),
            setting.help,
            setting.range,
        );
        // Writing to a string does not fail.
        writeln!(text, "{line}").ok();
    }
    text.push_str("| `-X KEY=VALUE`, table `[x]` | `HOOKSTREAM_X` |  | Any librdkafka property (TLS, SASL, …); repeated, in the variable separated by `;`. A value `@FILE` is what the file holds, `@@` at the beginning a literal `@` |\n");
    text.push_str("| `--config FILE` | `HOOKSTREAM_CONFIG` |  | A TOML file with any of these |\n");
    text.push_str("|  | `HOOKSTREAM_…_FILE` |  | A file with the value of any of these variables except `HOOKSTREAM_CONFIG`; one newline at its end is dropped; for `HOOKSTREAM_X`: one property a line |\n");
    text
}

/// Where spans go.
#[derive(Clone, Debug, PartialEq)]
pub struct OtlpSettings {
    /// The whole URL, without credentials.
    pub endpoint: String,
    /// Of the events that come without a trace, the share that begins one.
    pub sample: f64,
}

/// Egress rules as set by the operator.
#[derive(Clone, Debug, Default)]
pub struct EgressSettings {
    /// Plain `http` URLs are allowed too.
    pub allow_http: bool,
    /// Networks that are allowed although they are not public.
    pub allow_cidrs: Vec<IpNet>,
    /// Networks that are denied although they are public; wins over `allow_cidrs`.
    pub deny_cidrs: Vec<IpNet>,
    /// Ports that may be dialled; empty means any.
    pub ports: Vec<u16>,
}

/// Names of the topics that hookstream reads and writes.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Event topics.
    pub events: Vec<String>,
    /// Prefix of all own topics, with its separator, as in `webhook-`.
    pub prefix: String,
}

impl Topics {
    /// Compacted; key is the subscription's id.
    #[must_use]
    pub fn subscriptions(&self) -> String {
        format!("{}subscriptions", self.prefix)
    }
    /// Keyed by subscriber.
    #[must_use]
    pub fn commands(&self) -> String {
        format!("{}commands", self.prefix)
    }
    /// Of one tier.
    #[must_use]
    pub fn retry(&self, delay: Duration) -> String {
        format!("{}retry-{}", self.prefix, format_duration(delay))
    }
    /// The log of facts.
    #[must_use]
    pub fn dead_letters(&self) -> String {
        format!("{}dead-letters", self.prefix)
    }
    /// The log of attempts, if it is on.
    #[must_use]
    pub fn attempts(&self) -> String {
        format!("{}attempts", self.prefix)
    }
    /// Events that could not be read.
    #[must_use]
    pub fn invalid_events(&self) -> String {
        format!("{}invalid-events", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn machine() -> Machine {
        Machine {
            host_name: "replica-0".to_owned(),
            cores: 2,
        }
    }

    fn layers(given: &[(&str, Source, &str)]) -> Layers {
        let mut layers = Layers::new();
        layers.give("brokers", Source::Flag, "localhost:9092");
        for (name, source, value) in given {
            layers.give(name, *source, *value);
        }
        layers
    }

    fn check(given: &[(&str, Source, &str)]) -> Result<Settings, Vec<String>> {
        Settings::check(&layers(given), &machine())
    }

    #[test]
    fn the_defaults_are_valid() {
        let settings = check(&[]).unwrap();
        assert_eq!(settings.topics.commands(), "webhook-commands");
        assert_eq!(
            settings.topics.retry(settings.tiers.delays()[2]),
            "webhook-retry-2m"
        );
        assert_eq!(settings.retry_schedule.len(), 7);
        assert_eq!(settings.egress.ports, [443, 8443]);
        assert_eq!(
            (settings.instance.as_str(), settings.workers),
            ("replica-0", 2)
        );
        assert_eq!(settings.max_queued_bytes, 64 << 20);
    }

    #[test]
    fn a_longest_time_between_probes_that_is_shorter_than_the_first_is_refused() {
        let both = |probe, most| {
            let given = [("breaker-probe", probe), ("breaker-max-probe", most)];
            check(&given.map(|(name, value)| (name, Source::Flag, value)))
        };
        assert_eq!(both("1s", "1s").unwrap().breaker.max_probe.as_secs(), 1);
        let mistakes = both("2s", "1500ms").unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes[0]
                .starts_with("--breaker-max-probe 1500ms is shorter than --breaker-probe 2s"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
        let all = [
            ("timeout", Source::File, "3s"),
            ("timeout", Source::Environment, "2s"),
            ("timeout", Source::Flag, "1s"),
        ];
        for (count, expected) in [(0, 15), (1, 3), (2, 2), (3, 1)] {
            assert_eq!(
                check(&all[..count]).unwrap().timeout,
                Duration::from_secs(expected)
            );
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_with_name_value_source_and_range() {
        let mistakes = check(&[
            ("timeout", Source::Environment, "15"),
            ("workers", Source::Flag, "0"),
            ("tiers", Source::File, "5s,5s"),
            ("guarantee", Source::Flag, "maybe"),
            ("egress-ports", Source::Flag, "443,http"),
            ("egress-deny-cidr", Source::Flag, "10.0.0.1/33"),
            ("max-event-bytes", Source::Flag, "17MiB"),
            ("instance", Source::Flag, "a b"),
            ("http-listen", Source::Flag, "9400"),
            ("log-format", Source::Flag, "xml"),
        ])
        .unwrap_err();
        assert_eq!(mistakes.len(), 10, "{mistakes:#?}");
        assert_eq!(
            mistakes
                .iter()
                .find(|line| line.starts_with("--timeout"))
                .unwrap(),
            "--timeout is \"15\" (environment HOOKSTREAM_TIMEOUT): allowed: 100ms to 60s"
        );
    }

    #[test]
    fn brokers_are_required() {
        let mistakes = Settings::check(&Layers::new(), &machine()).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        assert!(
            mistakes[0].contains("--brokers") && mistakes[0].contains("HOOKSTREAM_BROKERS"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_file_may_give_lists_numbers_and_properties_and_nothing_unknown() {
        let mut layers = layers(&[]);
        layers.give_file("events = ['a', 'b']\nworkers = 3\negress-allow-http = true\n[x]\n'security.protocol' = 'SSL'\n", "f");
        let settings = Settings::check(&layers, &machine()).unwrap();
        assert_eq!(settings.topics.events, ["a", "b"]);
        assert_eq!(settings.workers, 3);
        assert!(settings.egress.allow_http);
        assert_eq!(
            settings.properties,
            [("security.protocol".to_owned(), "SSL".to_owned())]
        );

        layers.give_file("worker = 3\n[tiers]\na = 1\n", "conf.toml");
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert!(
            mistakes
                .iter()
                .any(|line| line.starts_with("worker in conf.toml is no setting")),
            "{mistakes:?}"
        );
        assert!(
            mistakes
                .iter()
                .any(|line| line.starts_with("tiers in conf.toml")),
            "{mistakes:?}"
        );
    }

    #[test]
    fn what_hookstream_sets_itself_is_refused_by_name() {
        let mut layers = layers(&[]);
        layers.give_property("isolation.level=read_uncommitted", Source::Flag);
        layers.give_property("no-equals-sign", Source::Environment);
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        assert!(mistakes.iter().any(|line| line.contains("isolation.level")));
        assert!(
            !mistakes.iter().any(|line| line.contains("no-equals-sign")),
            "it may be a secret"
        );
    }

    #[test]
    fn secrets_are_not_printed() {
        let mut layers = layers(&[]);
        layers.give_property("sasl.password=hunter2", Source::Environment);
        layers.give_property("sasl.username=me", Source::Environment);
        let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
        assert!(printed.contains(REDACTED) && printed.contains("\"me\""));
    }

    #[test]
    fn a_line_that_is_not_toml_is_named_and_not_quoted() {
        let mut layers = layers(&[]);
        layers.give_file("[x]\nsasl.password = hunter2\n", "conf.toml");
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert!(
            mistakes[0].starts_with("conf.toml is not TOML: line 2: "),
            "{mistakes:?}"
        );
        assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
    }

    #[test]
    fn properties_in_the_file_need_no_quotes_around_their_dots() {
        let mut layers = layers(&[]);
        layers.give_file(
            "[x]\nsecurity.protocol = 'SSL'\nssl.key.location = '/k'\n'ssl.ca.location' = '/c'\n",
            "f",
        );
        let settings = Settings::check(&layers, &machine()).unwrap();
        let keys: Vec<_> = settings
            .properties
            .iter()
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(
            keys,
            ["security.protocol", "ssl.ca.location", "ssl.key.location"]
        );
    }

    #[test]
    fn a_refused_property_keeps_its_value_to_itself() {
        let mut layers = layers(&[]);
        layers.give_property("sasl.passwrod=hunter2", Source::Environment);
        layers.judge_properties(|_, _| Some("it is none".to_owned()));
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert_eq!(mistakes, ["-X sasl.passwrod (environment): it is none"]);
        let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn what_it_reads_is_not_what_it_writes() {
        for (events, part) in [
            ("a,webhook-commands", "webhook-commands"),
            ("webhook-retry-5s", "webhook-retry-5s"),
            ("a,b,a", "named twice"),
        ] {
            let mistakes = check(&[("events", Source::Flag, events)]).unwrap_err();
            assert!(
                mistakes.len() == 1 && mistakes[0].contains(part),
                "{events}: {mistakes:?}"
            );
        }
    }

    #[test]
    fn brokers_are_hosts_with_ports() {
        for good in [
            "b",
            "b:9092,c:9093",
            "SASL_SSL://b.example:9092",
            "[::1]:9092",
        ] {
            assert!(
                check(&[("brokers", Source::Flag, good)]).is_ok(),
                "{good} must be allowed"
            );
        }
        for bad in [
            "http://b:9092",
            "b:99999",
            "b:0",
            ":9092",
            "b/c",
            "b c",
            "::1:9092",
            "u:p@b:1",
        ] {
            assert!(
                check(&[("brokers", Source::Flag, bad)]).is_err(),
                "{bad} must be refused"
            );
        }
    }

    #[test]
    fn a_mistyped_level_is_not_taken_for_a_module() {
        for good in [
            "info",
            "OFF",
            "hookstream=debug,info",
            "warn,hookstream::delivery::worker=error",
        ] {
            assert!(check(&[("log", Source::Flag, good)]).is_ok(), "{good}");
        }
        for bad in ["inof", "hookstream", "info,wran", ""] {
            assert!(check(&[("log", Source::Flag, bad)]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_finer_than_the_names_of_topics_are_refused() {
        assert!(check(&[("tiers", Source::Flag, "10ms,10500us")]).is_err());
    }

    #[test]
    fn a_host_name_that_cannot_name_an_instance_is_told() {
        let machine = Machine {
            host_name: "my laptop".to_owned(),
            cores: 2,
        };
        let mistakes = Settings::check(&layers(&[]), &machine).unwrap_err();
        assert!(
            mistakes[0].starts_with("--instance") && mistakes[0].contains("my laptop"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn only_mistyped_variables_are_unknown() {
        let names = [
            "HOOKSTREAM_TIMEOUT",
            "HOOKSTREAM_TIMEUOT",
            "HOOKSTREAM_X",
            "HOOKSTREAM_CONFIG",
            "HOOKSTREAM_SERVICE_HOST",
            "HOOKSTREAM_PORT_9400_TCP_ADDR",
            "HOOKSTREAM_EGRESS_PORTS",
            "PATH",
        ];
        assert_eq!(
            unknown_variables(names.map(str::to_owned)),
            ["HOOKSTREAM_TIMEUOT"]
        );
    }

    #[test]
    fn spans_go_nowhere_unless_it_is_said_where() {
        assert_eq!(check(&[]).unwrap().otlp, None);
        assert_eq!(
            check(&[("trace-sample", Source::Flag, "1")]).unwrap().otlp,
            None
        );
        assert!(check(&[("trace-sample", Source::Flag, "1.1")]).is_err());
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn the_path_of_the_protocol_is_added_to_the_collectors_url() {
        for (given, whole) in [
            ("http://c:4318", "http://c:4318/v1/traces"),
            (
                "https://c.example/otlp/",
                "https://c.example/otlp/v1/traces",
            ),
            ("http://c:4318/v1/traces", "http://c:4318/v1/traces"),
        ] {
            let otlp = check(&[("otlp-endpoint", Source::Flag, given)])
                .unwrap()
                .otlp
                .unwrap();
            assert_eq!((otlp.endpoint.as_str(), otlp.sample), (whole, 0.0));
        }
        for bad in ["c:4318", "grpc://c:4317", "http://", "/v1/traces"] {
            assert!(
                check(&[("otlp-endpoint", Source::Flag, bad)]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_collectors_url_with_credentials_is_refused_and_not_shown() {
        for url in ["http://me:hunter2@c:4318", "https://c/?key=hunter2"] {
            let given = [("otlp-endpoint", Source::Flag, url)];
            let mistakes = check(&given).unwrap_err();
            assert!(
                mistakes.len() == 1 && mistakes[0].contains("OTEL_EXPORTER_OTLP_HEADERS"),
                "{mistakes:?}"
            );
            assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
            let printed = serde_json::to_string(&effective(&layers(&given), &machine())).unwrap();
            assert!(!printed.contains("hunter2"), "{printed}");
        }
    }

    #[test]
    #[cfg(not(feature = "otlp"))]
    fn a_build_without_the_export_says_how_to_get_it() {
        let given = [("otlp-endpoint", Source::Flag, "http://c:4318")];
        let mistakes = check(&given).unwrap_err();
        assert!(mistakes[0].contains("--features otlp"), "{mistakes:?}");
    }

    #[test]
    fn the_reference_tells_of_every_setting() {
        for setting in SETTINGS {
            assert!(
                reference().contains(&setting.variable()),
                "{} is missing",
                setting.name
            );
        }
    }
}
