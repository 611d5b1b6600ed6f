//! Parses and validates settings: the ranges of the table, in code.

mod egress;
mod schema_registry;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::credentials::Credentials;
use super::layers::{Layers, Source};
use super::login;
use super::secrets::may_hold_credentials;
use super::settings::{Guarantee, Machine, OtlpSettings, Settings, StartAt, Topics};
use super::table::{OWNED_PROPERTIES, SETTINGS, Setting};
use crate::model::breaker_rules::BreakerRules;
use crate::model::expiry::{MAX_MAX_AGE, MIN_MAX_AGE};
use crate::model::secret_rules::{self, SecretRules};
use crate::model::subscription::is_id;
use crate::model::tiers::Tiers;
use crate::model::units::{EpochMs, format_duration, parse_duration};
use crate::model::window::Format as WindowFormat;

const MIB: usize = 1024 * 1024;

/// Reads settings and collects all problems.
pub(super) struct Reader<'a> {
    pub(super) layers: &'a Layers,
    pub(super) mistakes: Vec<String>,
    /// Settings with an invalid value.
    wrong: BTreeSet<&'static str>,
}

/// Settings with an invalid value.
pub(super) fn wrong(layers: &Layers, machine: &Machine) -> BTreeSet<&'static str> {
    let mut reader = Reader::new(layers);
    drop(reader.settings(machine));
    reader.wrong
}

impl<'a> Reader<'a> {
    pub(super) fn new(layers: &'a Layers) -> Self {
        Self {
            layers,
            mistakes: Vec::new(),
            wrong: BTreeSet::new(),
        }
    }

    /// `None` if any setting is invalid.
    pub(super) fn settings(&mut self, machine: &Machine) -> Option<Settings> {
        let brokers = self.required("brokers", |text| {
            list(text, broker)
                .filter(|all| !all.is_empty())
                .map(|all| all.join(","))
        });
        let events = self.read("events", |text| {
            list(text, topic).filter(|all| !all.is_empty())
        });
        let start_at = self.start_at();
        let prefix = self.read("topic-prefix", name);
        let group_prefix = self.read("group-prefix", name);
        let guarantee = self.read("guarantee", |text| match text {
            "exactly-once" => Some(Guarantee::ExactlyOnce),
            "at-least-once" => Some(Guarantee::AtLeastOnce),
            _ => None,
        });
        let instance = self.computed("instance", name, || machine.host_name.clone());
        let instance = instance.filter(|instance| self.can_name(instance));
        let http_listen = self.read("http-listen", |text| text.parse().ok());
        let file = |text: &str| Some(Some(text.into()));
        let http_token_file = self.computed("http-token-file", file, || None);
        let http_certificate = self.computed("http-certificate", file, || None);
        let http_key = self.computed("http-key", file, || None);
        let http_tls = self.both("http-certificate", http_certificate, "http-key", http_key);
        let certificate = self.computed("client-certificate", file, || None);
        let key = self.computed("client-key", file, || None);
        let client_certificate = self.both("client-certificate", certificate, "client-key", key);
        let tiers = self.read("tiers", |text| {
            let delays = times(
                text,
                Duration::from_millis(10),
                Duration::from_secs(7 * 86_400),
            )?;
            if (1..=16).contains(&delays.len()) {
                Tiers::new(delays).ok()
            } else {
                None
            }
        });
        let retry_schedule = self.read("retry-schedule", |text| {
            times(text, Duration::ZERO, Duration::from_secs(86_400)).filter(|all| all.len() <= 20)
        });
        let max_age = self.computed(
            "max-age",
            |text| time(text, MIN_MAX_AGE, MAX_MAX_AGE).map(Some),
            || None,
        );
        let timeout = self.read("timeout", |text| {
            time(text, Duration::from_millis(100), Duration::from_secs(60))
        });
        let drain_deadline = self.read("drain-deadline", |text| {
            time(text, Duration::ZERO, Duration::from_secs(300))
        });
        let hang_deadline = self.read("hang-deadline", |text| {
            time(text, Duration::from_secs(5), Duration::from_secs(3600))
        });
        let notice_after = self.read("notice-after", |text| {
            time(
                text,
                Duration::from_secs(1),
                Duration::from_secs(7 * 86_400),
            )
        });
        let disable_after = self.computed(
            "disable-after",
            |text| {
                let (least, most) = (Duration::from_secs(60), Duration::from_secs(90 * 86_400));
                time(text, least, most).map(Some)
            },
            || None,
        );
        let operator_subscriber = self.computed(
            "operator-subscriber",
            |text| is_id(text).then(|| Some(text.to_owned())),
            || None,
        );
        let require_verification = self.read("require-verification", |text| text.parse().ok());
        let verification_origin = self.read("verification-origin", |text| {
            is_id(text).then(|| text.to_owned())
        });
        let attempt_log = self.read("attempt-log", |text| text.parse().ok());
        let window_format = self.read("window-format", |text| match text {
            "1" => Some(WindowFormat::V1),
            "2" => Some(WindowFormat::V2),
            "3" => Some(WindowFormat::V3),
            "4" => Some(WindowFormat::V4),
            _ => None,
        });
        let lag_top = self.read("lag-top", |text| number(text, 1, 10_000));
        let max_event_bytes = self.read("max-event-bytes", |text| size(text, 1024, 16 * MIB));
        let max_in_flight = self.read("max-in-flight", |text| number(text, 1, 65_536));
        let max_queued_bytes =
            self.read("max-queued-bytes", |text| size(text, MIB, 16 * 1024 * MIB));
        let max_queued_commands =
            self.read("max-queued-commands", |text| number(text, 512, 100_000_000));
        let breaker = self.breaker();
        let workers = self.computed(
            "workers",
            |text| number(text, 1, 64),
            || machine.cores.clamp(1, 64),
        );
        let egress = self.egress();
        let secret_dirs = self.computed(
            "secret-dirs",
            |text| secret_rules::parse_dirs(text).map(Some),
            || None,
        );
        let secret_prefixes = self.computed(
            "secret-env-prefix",
            |text| secret_rules::parse_prefixes(text).map(Some),
            || None,
        );
        let kek_file = self.computed("kek-file", |text| Some(Some(text.into())), || None);
        let otlp = self.otlp();
        let schema_registry = self.schema_registry();
        let ca_file = self.computed("ca-file", |text| Some(Some(text.into())), || None);
        self.read("log", log_filter);
        self.read("log-format", |text| {
            matches!(text, "text" | "json").then_some(())
        });
        let properties = self.layers.properties();
        let property = |key: &str| properties.get(key).map(|(value, _)| *value);
        self.mistakes.extend(login::mistakes(property));
        let event_mappings = self.event_mappings(events.as_deref());
        let topics = match (events, prefix, &tiers) {
            (Some(events), Some(prefix), Some(tiers)) => {
                self.separate(Topics { events, prefix }, tiers)
            }
            _ => None,
        };
        Some(Settings {
            brokers: brokers?,
            properties: properties
                .into_iter()
                .map(|(key, (value, _))| (key.to_owned(), value.to_owned()))
                .collect(),
            credentials: Credentials::default(),
            topics: topics?,
            event_mappings: event_mappings?,
            start_at: start_at?,
            group_prefix: group_prefix?,
            guarantee: guarantee?,
            instance: instance?,
            http_listen: http_listen?,
            http_token_file: http_token_file?,
            http_tls,
            client_certificate,
            tiers: tiers?,
            retry_schedule: retry_schedule?,
            max_age: max_age?,
            timeout: timeout?,
            drain_deadline: drain_deadline?,
            hang_deadline: hang_deadline?,
            attempt_log: attempt_log?,
            window_format: window_format?,
            lag_top: lag_top?,
            otlp: otlp?,
            schema_registry: schema_registry?,
            egress: egress?,
            secret_rules: SecretRules::new(secret_dirs?, secret_prefixes?),
            kek_file: kek_file?,
            ca_file: ca_file?,
            max_event_bytes: max_event_bytes?,
            workers: workers?,
            max_in_flight: max_in_flight?,
            max_queued_bytes: max_queued_bytes?,
            max_queued_commands: max_queued_commands?,
            breaker: breaker?,
            notice_after: notice_after?,
            disable_after: disable_after?,
            operator_subscriber: operator_subscriber?,
            require_verification: require_verification?,
            verification_origin: verification_origin?,
        })
    }

    /// A certificate and its key.
    fn both(
        &mut self,
        name: &str,
        certificate: Option<Option<PathBuf>>,
        key_name: &str,
        key: Option<Option<PathBuf>>,
    ) -> Option<(PathBuf, PathBuf)> {
        match (certificate.flatten(), key.flatten()) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                self.mistakes
                    .push(format!("--{name} and --{key_name} need each other"));
                None
            }
        }
    }

    /// `Some(None)` for `now` by default: some decisions need an explicit one.
    fn start_at(&mut self) -> Option<Option<StartAt>> {
        let parsed = self.read("start-at", |text| match text {
            "now" => Some(StartAt::Now),
            "earliest" => Some(StartAt::Earliest),
            _ => {
                let time = text.parse::<jiff::Timestamp>().ok()?;
                Some(StartAt::Time(EpochMs(time.as_millisecond())))
            }
        })?;
        let (_, source) = self.layers.effective(setting("start-at")?)?;
        let is_default = source == Source::Default && parsed == StartAt::default();
        Some((!is_default).then_some(parsed))
    }

    fn breaker(&mut self) -> Option<BreakerRules> {
        let second = Duration::from_secs(1);
        let failures = self.read("breaker-failures", |text| number(text, 0, 100_000));
        let rate = self.read("breaker-rate", |text| {
            text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate))
        });
        let window = self.read("breaker-window", |text| time(text, second, 3600 * second));
        let volume = self.read("breaker-volume", |text| number(text, 1, 100_000));
        let probe = self.read("breaker-probe", |text| {
            time(text, second / 100, 600 * second)
        });
        let max_probe = self.read("breaker-max-probe", |text| {
            time(text, second / 100, 600 * second)
        });
        let (probe, max_probe) = (probe?, max_probe?);
        if max_probe < probe {
            self.mistakes.push(format!(
                "--breaker-max-probe {} is shorter than --breaker-probe {}; must be at least as long",
                format_duration(max_probe),
                format_duration(probe),
            ));
            return None;
        }
        Some(BreakerRules {
            failures: failures?,
            rate: rate?,
            window: window?,
            volume: volume?,
            probe,
            max_probe,
        })
    }

    /// The host name is the default instance name, and is not checked against the table's range before this.
    fn can_name(&mut self, instance: &str) -> bool {
        let can = name(instance).is_some();
        if !can {
            self.mistakes.push(format!(
                "--instance is required: the host name {instance:?} is not a valid instance name; allowed: {}",
                setting("instance").map_or("", |setting| setting.range)
            ));
        }
        can
    }

    /// Event topics and own topics must not overlap: a topic that is both read and written would loop.
    fn separate(&mut self, topics: Topics, tiers: &Tiers) -> Option<Topics> {
        let mut own = vec![
            topics.subscriptions(),
            topics.commands(),
            topics.dead_letters(),
            topics.status(),
            topics.notices(),
            topics.attempts(),
            topics.invalid_events(),
        ];
        own.extend(tiers.delays().iter().map(|&delay| topics.retry(delay)));
        let before = self.mistakes.len();
        for (index, topic) in topics.events.iter().enumerate() {
            if own.contains(topic) {
                self.mistakes.push(format!(
                    "--events contains {topic}, which hookstream writes itself; use another topic or another --topic-prefix"
                ));
            }
            if topics.events[..index].contains(topic) {
                self.mistakes
                    .push(format!("--events contains {topic} twice"));
            }
        }
        (self.mistakes.len() == before).then_some(topics)
    }

    /// `Some(None)` when no collector is configured.
    fn otlp(&mut self) -> Option<Option<OtlpSettings>> {
        let sample = self.read("trace-sample", |text| {
            text.parse()
                .ok()
                .filter(|share| (0.0..=1.0).contains(share))
        });
        let given = self.layers.effective(setting("otlp-endpoint")?);
        let Some((text, source)) = given else {
            return Some(None);
        };
        if may_hold_credentials(text) {
            self.mistakes.push(format!(
                "--otlp-endpoint ({}): must not contain user info, a query or a fragment; set credentials in OTEL_EXPORTER_OTLP_HEADERS",
                source.name()
            ));
            return None;
        }
        if !cfg!(feature = "otlp") {
            self.mistakes.push(format!(
                "--otlp-endpoint ({}): this build cannot export spans; rebuild with --features otlp",
                source.name()
            ));
            return None;
        }
        let endpoint = self.read("otlp-endpoint", collector)?;
        let sample = sample?;
        Some(Some(OtlpSettings { endpoint, sample }))
    }

    /// Reports an invalid value.
    pub(super) fn refuse(&mut self, setting: &'static Setting, value: &str, source: Source) {
        self.wrong.insert(setting.name);
        let what = match source {
            Source::Environment if self.layers.is_from_file(setting, source) => {
                format!(": invalid value in the file of {}", setting.file_variable())
            }
            Source::Environment => {
                format!(
                    ": invalid value {value:?} (environment {})",
                    setting.variable()
                )
            }
            Source::Binding => {
                let binding = self::setting("kafka-binding");
                let place = binding.and_then(|binding| self.layers.effective(binding));
                let place = place.map_or("", |(place, _)| place);
                format!(": invalid value {value:?} (binding {place})")
            }
            other => format!(": invalid value {value:?} ({})", other.name()),
        };
        self.mistakes.push(format!(
            "--{}{what}; allowed: {}",
            setting.name, setting.range
        ));
    }

    fn read<T>(&mut self, name: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let setting = setting(name)?;
        let (value, source) = self.layers.effective(setting)?;
        let parsed = parse(value.trim());
        if parsed.is_none() {
            self.refuse(setting, value, source);
        }
        parsed
    }

    fn computed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
        default: impl FnOnce() -> T,
    ) -> Option<T> {
        match self.layers.effective(setting(name)?) {
            Some(_) => self.read(name, parse),
            None => Some(default()),
        }
    }

    fn required<T: Debug>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (setting, binding) = (setting(name)?, setting("kafka-binding")?);
        if self.layers.effective(setting).is_none() {
            // A problem in the binding, or with a file that may have the value, is reported separately.
            let is_unread = self.layers.unread.contains("config");
            if !is_unread && self.layers.effective(binding).is_none() {
                self.mistakes.push(format!(
                    "--{name} is required (or {}, {name} in the file, or --kafka-binding); allowed: {}",
                    setting.variable(),
                    setting.range
                ));
            }
            return None;
        }
        self.read(name, parse)
    }
}

pub(super) fn setting(name: &str) -> Option<&'static Setting> {
    let found = SETTINGS.iter().find(|setting| setting.name == name);
    debug_assert!(found.is_some(), "{name} is not in the table of settings");
    found
}

/// Parses a comma-separated list. Blanks around items and an empty text are allowed; empty items are not.
fn list<'t, T>(text: &'t str, parse: impl Fn(&'t str) -> Option<T>) -> Option<Vec<T>> {
    if text.trim().is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(str::trim)
        .map(|part| if part.is_empty() { None } else { parse(part) })
        .collect()
}

fn name(text: &str) -> Option<String> {
    topic(text).filter(|text| text.len() <= 100)
}

/// `host`, `host:port` or `[IPv6]:port`, optionally with a protocol prefix as in librdkafka.
fn broker(text: &str) -> Option<&str> {
    const PROTOCOLS: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
    let address = match text.split_once("://") {
        Some((protocol, rest)) => PROTOCOLS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(protocol))
            .then_some(rest)?,
        None => text,
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            ("in-brackets", port)
        }
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    let letter = |letter: char| letter.is_alphanumeric() || matches!(letter, '.' | '_' | '-');
    (!host.is_empty() && host.chars().all(letter) && is_port(port)).then_some(text)
}

/// The traces URL for the base URL of a collector.
fn collector(text: &str) -> Option<String> {
    const PATH: &str = "/v1/traces";
    let url = url::Url::parse(text).ok()?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return None;
    }
    let base = url.as_str().trim_end_matches('/');
    Some(format!("{}{PATH}", base.strip_suffix(PATH).unwrap_or(base)))
}

/// Empty, or a colon and a port number.
fn is_port(text: &str) -> bool {
    let port = text
        .strip_prefix(':')
        .and_then(|port| number(port, 1, u16::MAX));
    text.is_empty() || port.is_some()
}

/// The library takes a word without a level as a module name, so a mistyped level would silence the whole log.
fn log_filter(text: &str) -> Option<()> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let sound = |part: &str| {
        part.contains(['=', '[']) || LEVELS.iter().any(|level| part.eq_ignore_ascii_case(level))
    };
    if !text.split(',').map(str::trim).all(sound) {
        return None;
    }
    tracing_subscriber::EnvFilter::try_new(text).ok().map(drop)
}

fn topic(text: &str) -> Option<String> {
    let allowed =
        |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    (!matches!(text, "" | "." | "..") && text.len() <= 249 && text.chars().all(allowed))
        .then(|| text.to_owned())
}

fn time(text: &str, least: Duration, most: Duration) -> Option<Duration> {
    parse_duration(text)
        .ok()
        .filter(|time| (least..=most).contains(time))
        // Topic names and records have a resolution of 1 ms.
        .filter(|time| time.subsec_nanos() % 1_000_000 == 0)
}

fn times(text: &str, least: Duration, most: Duration) -> Option<Vec<Duration>> {
    list(text, |part| time(part, least, most))
}

fn number<N: FromStr + PartialOrd>(text: &str, least: N, most: N) -> Option<N> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
}

/// A number of bytes, optionally with a unit: `64MiB`, `1 GiB`, `512k`.
fn size(text: &str, least: usize, most: usize) -> Option<usize> {
    let digits = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let factor = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => 1024 * MIB,
        _ => return None,
    };
    text[..digits]
        .parse::<usize>()
        .ok()?
        .checked_mul(factor)
        .filter(|size| (least..=most).contains(size))
}

impl Settings {
    /// Validates all settings.
    ///
    /// # Errors
    /// One line per problem.
    pub fn check(layers: &Layers, machine: &Machine) -> Result<Self, Vec<String>> {
        let mut reader = Reader::new(layers);
        let settings = reader.settings(machine);
        let mut mistakes = layers.mistakes.clone();
        let others = reader.mistakes.into_iter();
        mistakes.extend(others.filter(|mistake| !layers.may_follow_from_unread(mistake)));
        mistakes.extend(layers.properties().keys().filter_map(|key| {
            let (_, way) = OWNED_PROPERTIES.iter().find(|(owned, _)| owned == key)?;
            Some(format!("-X {key} cannot be set: {way}"))
        }));
        match settings {
            Some(settings) if mistakes.is_empty() => Ok(settings),
            _ => Err(mistakes),
        }
    }
}
