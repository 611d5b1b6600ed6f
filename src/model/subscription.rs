//! A subscription: who wants which events, where, and how. Read from its record, whole or not at all.
//!
//! `schemas/subscription.schema.json` is the validator, compiled into the program, so what the documentation shows,
//! what `subscriptions apply` refuses and what the table of a running role keeps out are one thing. What a schema
//! cannot state is checked here after it; all problems are reported at once. No message shows a secret or the
//! value of a header (**Secret**). Whether a URL may be reached is egress's question, not this file's.

pub mod filter;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;

pub use filter::{Filter, TypePattern};

use crate::model::breaker_rules::BreakerOverrides;
use crate::model::event::Format;
use crate::model::tiers::LONGEST_PARK;
use crate::model::units::parse_duration;

/// The JSON Schema (2020-12) of the record's value.
pub const SCHEMA: &str = include_str!("../../schemas/subscription.schema.json");
/// The largest record, bytes: the table of every replica holds all of them in memory.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;
/// Requests at the same time when the subscription does not say.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 8;
/// The shortest timeout of an attempt.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest timeout of an attempt: it bounds draining and the window.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest delay of a retry schedule.
pub const MIN_RETRY_DELAY: Duration = Duration::from_millis(1);
/// The longest delay of a retry schedule; it works by hops, but a longer one is more likely a typing error.
pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 3600);

/// The shortest time from a breaker's opening to its probe; the longest is [`LONGEST_PARK`].
pub const MIN_PROBE: Duration = Duration::from_millis(10);

/// Headers that HTTP, Standard Webhooks or hookstream set; so do all that start with [`RESERVED_PREFIXES`].
const RESERVED_HEADERS: [&str; 13] = [
    "host",
    "content-type",
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "user-agent",
    "traceparent",
];
const RESERVED_PREFIXES: [&str; 3] = ["webhook-", "hookstream-", "proxy-"];
/// A header whose name holds one of these carries a credential.
const CREDENTIAL_WORDS: [&str; 9] = [
    "auth",
    "cookie",
    "token",
    "key",
    "secret",
    "password",
    "passwd",
    "signature",
    "credential",
];

/// A valid subscription.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// Its name, and the key of its record.
    pub id: Box<str>,
    /// Who owns it: the partition key of its commands.
    pub subscriber: Box<str>,
    /// The endpoint; `http` or `https`, with a host, no user info, no fragment.
    pub url: Url,
    /// At least one; any of them suffices.
    pub events: Vec<TypePattern>,
    /// On the event's content.
    pub filter: Filter,
    /// All sign, in this order; none: requests are not signed.
    pub secrets: Vec<SecretSource>,
    /// Of the body.
    pub format: Format,
    /// Further request headers; never a reserved one. Those with a credential are marked sensitive.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Whether commands are sent.
    pub state: State,
    /// Requests at the same time, 1 to 1,024.
    pub max_in_flight: u32,
    /// Over attempts.
    pub rate_limit: Option<RateLimit>,
    /// Of one attempt, 100 ms to 60 s; `None` is the operator's.
    pub timeout: Option<Duration>,
    /// At most 20 delays of 1 ms to 24 h; `None` is the operator's.
    pub retry_schedule: Option<Vec<Duration>>,
    /// Between events.
    pub order: Order,
    /// Where its breaker differs from the operator's.
    pub breaker: BreakerOverrides,
    /// Instead of the default rules.
    pub on_status: StatusRules,
}

/// What happens to a subscription's commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// They are sent.
    #[default]
    Active,
    /// They wait.
    Paused,
    /// They are dead-lettered with reason `disabled`.
    Disabled,
}

impl State {
    /// As in the record.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The order that the events of one subject are delivered in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Events may overtake each other.
    #[default]
    None,
    /// First attempts are made in order and never overlap; one that failed does not hold up the next event.
    PerSubject,
    /// Nothing of an event is sent before the event ahead of it is delivered or a dead letter.
    Strict,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// Attempts a second, 0.001 to 100,000.
    pub per_second: f64,
    /// Attempts at once after a quiet time, 1 to 100,000.
    pub burst: u32,
}

/// Where a signing secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable of the delivering process.
    Env(String),
    /// A file at an absolute path.
    File(PathBuf),
    /// In the record itself: `whsec_…` or `whsk_…`, valid base64 of an allowed length.
    Literal(Redacted),
}

/// A text that neither `Debug` nor `Display` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Redacted(Box<str>);

impl Redacted {
    /// Keeps a text from being shown.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself: only for signing.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

impl fmt::Display for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// What a status means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StatusRule {
    /// Try again by the schedule.
    Retry,
    /// Never again: dead-letter it at once.
    DeadLetter,
    /// As good as a 2xx.
    Delivered,
}

/// A subscription's own rules for response statuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusRules {
    exact: BTreeMap<u16, StatusRule>,
    class: BTreeMap<u16, StatusRule>,
}

impl StatusRules {
    /// The rule for a status, that of its class if it has none itself; `None` is the default rule.
    #[must_use]
    pub fn lookup(&self, status: u16) -> Option<StatusRule> {
        self.exact
            .get(&status)
            .or_else(|| self.class.get(&(status / 100)))
            .copied()
    }

    fn read(map: &Map<String, Value>) -> Self {
        let mut rules = Self::default();
        for (key, value) in map {
            let Some(rule) = deserialized(value) else {
                continue;
            };
            match (key.parse::<u16>(), key.as_bytes().first()) {
                (Ok(status), _) => rules.exact.insert(status, rule),
                (Err(_), Some(digit)) => rules
                    .class
                    .insert(u16::from(digit.saturating_sub(b'0')), rule),
                _ => None,
            };
        }
        rules
    }
}

/// Why a record is not a subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// Over [`MAX_RECORD_BYTES`].
    #[error("the subscription is {0} bytes, the limit is {MAX_RECORD_BYTES} bytes")]
    TooLarge(usize),
    /// Not JSON, or not an object; with the parser's reason and place, never with the text.
    #[error("the subscription is not a JSON object: {0}")]
    NotJson(String),
    /// Each problem names its field.
    #[error("the subscription is invalid: {}", .0.join("; "))]
    Invalid(Vec<String>),
}

impl SubscriptionError {
    /// The problems one by one, for lists.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Invalid(problems) => problems.clone(),
            other => vec![other.to_string()],
        }
    }
}

/// Reads a record; `key` is the record's key, or `None` where there is no record yet (a file to be applied).
///
/// # Errors
/// All problems at once.
pub fn parse(key: Option<&[u8]>, value: &[u8]) -> Result<Subscription, SubscriptionError> {
    let record = read_object(value)?;
    let mut check = Check {
        record: &record,
        problems: Vec::new(),
    };
    check.schema();
    check.key(key);
    let url = check.url();
    let subscription = Subscription {
        id: check.text("id").into(),
        subscriber: check.text("subscriber").into(),
        events: check.events(),
        filter: check.filter(),
        secrets: check.secrets(),
        format: check.enumerated("format"),
        headers: check.headers(),
        state: check.enumerated("state"),
        max_in_flight: check
            .integer("max_in_flight")
            .unwrap_or(DEFAULT_MAX_IN_FLIGHT),
        rate_limit: check.rate_limit(),
        timeout: check.timeout(),
        retry_schedule: check.retry_schedule(),
        order: check.enumerated("order"),
        breaker: check.breaker(),
        on_status: check
            .object("on_status")
            .map(StatusRules::read)
            .unwrap_or_default(),
        url: url.clone().unwrap_or_else(placeholder_url),
    };
    if check.problems.is_empty() && url.is_some() {
        Ok(subscription)
    } else {
        Err(SubscriptionError::Invalid(check.problems))
    }
}

/// The record with another state; every other member keeps its value, unknown ones too.
///
/// # Errors
/// When the value is not a JSON object.
pub fn with_state(value: &[u8], state: State) -> Result<Vec<u8>, SubscriptionError> {
    let mut record = read_object(value)?;
    record.insert("state".to_owned(), Value::from(state.as_str()));
    Ok(Value::Object(record).to_string().into_bytes())
}

/// The record as `list` and `show` print it: literal secrets and the values of headers that carry credentials are
/// replaced; all else, query strings too, is as stored.
///
/// # Errors
/// When the value is not a JSON object.
pub fn redacted(value: &[u8]) -> Result<Value, SubscriptionError> {
    let mut record = read_object(value)?;
    if let Some(Value::Array(secrets)) = record.get_mut("secrets") {
        for secret in secrets {
            *secret = Value::from(redacted_secret(secret.as_str().unwrap_or_default()));
        }
    }
    if let Some(Value::Object(headers)) = record.get_mut("headers") {
        for (name, value) in headers {
            if is_credential(&name.to_ascii_lowercase()) {
                *value = Value::from("(redacted)");
            }
        }
    }
    Ok(Value::Object(record))
}

fn redacted_secret(secret: &str) -> String {
    let kept = |prefix: &str| secret.starts_with(prefix);
    match () {
        () if kept("env:") || kept("file:") => secret.to_owned(),
        () if kept("whsk_") => "whsk_…(redacted)".to_owned(),
        () => "whsec_…(redacted)".to_owned(),
    }
}

fn is_credential(name: &str) -> bool {
    CREDENTIAL_WORDS.iter().any(|word| name.contains(word))
}

fn read_object(value: &[u8]) -> Result<Map<String, Value>, SubscriptionError> {
    if value.len() > MAX_RECORD_BYTES {
        return Err(SubscriptionError::TooLarge(value.len()));
    }
    match serde_json::from_slice(value) {
        Ok(Value::Object(record)) => Ok(record),
        Ok(_) => Err(SubscriptionError::NotJson(
            "it is another kind of value".to_owned(),
        )),
        Err(error) => Err(SubscriptionError::NotJson(error.to_string())),
    }
}

fn deserialized<T: for<'de> Deserialize<'de>>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

/// Stands in an invalid subscription, which is never returned.
fn placeholder_url() -> Url {
    static PLACEHOLDER: OnceLock<Url> = OnceLock::new();
    #[allow(clippy::expect_used, reason = "a constant")]
    PLACEHOLDER
        .get_or_init(|| Url::parse("https://invalid.").expect("the constant is a URL"))
        .clone()
}

fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    #[allow(clippy::expect_used, reason = "the schema is a constant, tested")]
    VALIDATOR.get_or_init(|| {
        let schema = serde_json::from_str(SCHEMA).expect("the embedded schema is JSON");
        jsonschema::draft202012::new(&schema).expect("the embedded schema is a schema")
    })
}

/// Reads one field after the other. A field of the wrong type reads as absent: the schema has reported it.
struct Check<'a> {
    record: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl<'a> Check<'a> {
    fn problem(&mut self, field: &str, problem: impl fmt::Display) {
        self.problems.push(format!("{field}: {problem}"));
    }

    fn text(&self, field: &str) -> &'a str {
        self.record
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn object(&self, field: &str) -> Option<&'a Map<String, Value>> {
        self.record.get(field).and_then(Value::as_object)
    }

    fn strings(&self, field: &str) -> impl Iterator<Item = (usize, &'a str)> + use<'a> {
        let items = self
            .record
            .get(field)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        items
            .iter()
            .enumerate()
            .filter_map(|(at, item)| Some((at, item.as_str()?)))
    }

    fn enumerated<T: for<'de> Deserialize<'de> + Default>(&self, field: &str) -> T {
        self.record
            .get(field)
            .and_then(deserialized)
            .unwrap_or_default()
    }

    fn integer(&self, field: &str) -> Option<u32> {
        self.record.get(field).and_then(whole)
    }

    fn schema(&mut self) {
        let record = Value::Object(self.record.clone());
        for error in validator().iter_errors(&record) {
            let path = error.instance_path().to_string();
            let field = path.trim_start_matches('/').replace('/', ".");
            let problem = schema_problem(&path, &error);
            self.problems.push(if field.is_empty() {
                problem
            } else {
                format!("{field}: {problem}")
            });
        }
    }

    fn key(&mut self, key: Option<&[u8]>) {
        let id = self.text("id");
        if let Some(key) = key.filter(|key| *key != id.as_bytes() && !id.is_empty()) {
            self.problem(
                "id",
                format_args!(
                    "{id:?} differs from the record's key {:?}",
                    String::from_utf8_lossy(key)
                ),
            );
        }
    }

    /// No message shows the URL when it could hold a password.
    fn url(&mut self) -> Option<Url> {
        let text = self.text("url");
        if text.is_empty() {
            return None;
        }
        // The parser would drop some of these silently, and take a backslash for a slash.
        if text
            .chars()
            .any(|letter| letter.is_control() || letter.is_whitespace() || letter == '\\')
        {
            self.problem("url", "holds a blank, a control character or a backslash");
            return None;
        }
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => {
                self.problem("url", format_args!("is not a URL: {error}"));
                return None;
            }
        };
        if !url.username().is_empty()
            || url.password().is_some()
            || text.contains('@') && has_user_info(text)
        {
            self.problem(
                "url",
                "must not hold a user name or password; send credentials in headers",
            );
        } else if !matches!(url.scheme(), "https" | "http") {
            self.problem(
                "url",
                format_args!("the scheme is {:?}, it must be https or http", url.scheme()),
            );
        } else if url.host_str().is_none_or(str::is_empty) {
            self.problem("url", "has no host");
        }
        if url.fragment().is_some() {
            self.problem("url", "must not have a fragment (#…), which is never sent");
        }
        Some(url)
    }

    fn events(&mut self) -> Vec<TypePattern> {
        let mut patterns = Vec::new();
        for (at, text) in self.strings("events") {
            match TypePattern::parse(text) {
                Ok(pattern) => patterns.push(pattern),
                Err(problem) => self.problem(
                    &format!("events.{at}"),
                    format_args!("{}: {problem}", shown(text)),
                ),
            }
        }
        patterns
    }

    fn filter(&mut self) -> Filter {
        let Some(map) = self.object("filter") else {
            return Filter::default();
        };
        match Filter::parse(map) {
            Ok(filter) => filter,
            Err(problems) => {
                problems
                    .iter()
                    .for_each(|problem| self.problem("filter", problem));
                Filter::default()
            }
        }
    }

    fn secrets(&mut self) -> Vec<SecretSource> {
        let mut sources = Vec::new();
        for (at, text) in self.strings("secrets") {
            match secret_source(text) {
                Ok(source) => sources.push(source),
                Err(problem) => self.problem(&format!("secrets.{at}"), problem),
            }
        }
        sources
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        let mut seen = HashSet::new();
        for (name, value) in self.object("headers").into_iter().flatten() {
            let Some(value) = value.as_str() else {
                continue;
            };
            match header(name, value) {
                Ok((name, _)) if !seen.insert(name.clone()) => {
                    self.problem(
                        "headers",
                        format_args!("{:?} is there twice", name.as_str()),
                    );
                }
                Ok(pair) => headers.push(pair),
                Err(problem) => self.problem("headers", format_args!("{} {problem}", shown(name))),
            }
        }
        headers
    }

    fn rate_limit(&self) -> Option<RateLimit> {
        let limit = self.object("rate_limit")?;
        let per_second = limit.get("per_second")?.as_f64()?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the schema bounds it"
        )]
        let burst = limit
            .get("burst")
            .and_then(whole)
            .unwrap_or_else(|| per_second.ceil().max(1.0) as u32);
        Some(RateLimit { per_second, burst })
    }

    fn breaker(&mut self) -> BreakerOverrides {
        let Some(own) = self.object("breaker") else {
            return BreakerOverrides::default();
        };
        let mut time = |field: &str, least, most| {
            let text = own.get(field)?.as_str()?;
            self.duration(&format!("breaker.{field}"), text, least, most)
        };
        let (window, probe, max_probe) = (
            time("window", Duration::from_secs(1), Duration::from_secs(3600)),
            time("probe", MIN_PROBE, LONGEST_PARK),
            time("max_probe", MIN_PROBE, LONGEST_PARK),
        );
        BreakerOverrides {
            failures: own.get("failures").and_then(whole),
            rate: own.get("rate").and_then(Value::as_f64),
            window,
            volume: own.get("volume").and_then(whole),
            probe,
            max_probe,
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let text = self.record.get("timeout")?.as_str()?;
        self.duration("timeout", text, MIN_TIMEOUT, MAX_TIMEOUT)
    }

    fn retry_schedule(&mut self) -> Option<Vec<Duration>> {
        self.record.get("retry_schedule")?.as_array()?;
        let mut delays = Vec::new();
        for (at, text) in self.strings("retry_schedule") {
            delays.extend(self.duration(
                &format!("retry_schedule.{at}"),
                text,
                MIN_RETRY_DELAY,
                MAX_RETRY_DELAY,
            ));
        }
        Some(delays)
    }

    fn duration(
        &mut self,
        field: &str,
        text: &str,
        low: Duration,
        high: Duration,
    ) -> Option<Duration> {
        match parse_duration(text) {
            Ok(duration) if (low..=high).contains(&duration) => return Some(duration),
            Ok(_) => {
                let (low, high) = (
                    humantime::format_duration(low),
                    humantime::format_duration(high),
                );
                self.problem(
                    field,
                    format_args!("{text:?} is out of range; allowed are {low} to {high}"),
                );
            }
            Err(problem) => self.problem(field, problem),
        }
        None
    }
}

fn whole(value: &Value) -> Option<u32> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the schema bounds it"
    )]
    let of_float = || {
        value
            .as_f64()
            .filter(|x| x.fract() == 0.0)
            .map(|x| x as u64)
    };
    u32::try_from(value.as_u64().or_else(of_float)?).ok()
}

/// The validator's sentence, without the value where it may be a secret or long.
fn schema_problem(path: &str, error: &jsonschema::ValidationError<'_>) -> String {
    let private =
        path.starts_with("/secrets") || path.starts_with("/headers") || path.starts_with("/url");
    match error.kind() {
        ValidationErrorKind::Pattern { .. } if path.starts_with("/secrets/") => {
            SECRET_FORMS.to_owned()
        }
        ValidationErrorKind::Pattern { .. } if matches!(path, "/id" | "/subscriber") => {
            format!(
                "{} must be 1 to 200 characters of A-Z a-z 0-9 . _ : -",
                shown(&error.instance().to_string())
            )
        }
        ValidationErrorKind::PropertyNames { .. } if path == "/on_status" => {
            "a key is a status from 200 to 599 or a class from 2xx to 5xx".to_owned()
        }
        ValidationErrorKind::AdditionalProperties { .. } if path.is_empty() => error
            .to_string()
            .replace("Additional properties are not allowed", "unknown fields"),
        _ if private || error.instance().to_string().len() > 200 => error.masked().to_string(),
        _ => error.to_string(),
    }
}

/// A text in a message, cut.
fn shown(text: &str) -> String {
    let cut: String = text.chars().take(100).collect();
    let text = if cut.len() < text.len() {
        format!("{cut}…")
    } else {
        cut
    };
    if text.starts_with('"') {
        text
    } else {
        format!("{text:?}")
    }
}

/// `https://@host/`: the parser drops an empty user name.
fn has_user_info(text: &str) -> bool {
    let authority = text.split_once("//").map_or("", |(_, rest)| {
        rest.split(['/', '?', '#', '\\']).next().unwrap_or("")
    });
    authority.contains('@')
}

const SECRET_FORMS: &str = "must be env:NAME, file:/absolute/path, whsec_… with 24 to 64 bytes in base64, \
                            or whsk_… with 32 or 64 bytes in base64";

fn secret_source(text: &str) -> Result<SecretSource, &'static str> {
    if let Some(name) = text.strip_prefix("env:") {
        return Ok(SecretSource::Env(name.to_owned()));
    }
    if let Some(path) = text.strip_prefix("file:") {
        return Ok(SecretSource::File(PathBuf::from(path)));
    }
    let decoded = |base64: &str| STANDARD.decode(base64).map_or(0, |bytes| bytes.len());
    let valid = match (text.strip_prefix("whsec_"), text.strip_prefix("whsk_")) {
        (Some(key), _) => (24..=64).contains(&decoded(key)),
        (_, Some(key)) => matches!(decoded(key), 32 | 64),
        // The schema's pattern has reported it.
        _ => true,
    };
    if valid {
        Ok(SecretSource::Literal(Redacted::new(text)))
    } else {
        Err(SECRET_FORMS)
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name = HeaderName::try_from(name).map_err(|_| "is not a header name")?;
    let reserved = RESERVED_HEADERS.contains(&name.as_str())
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix));
    if reserved {
        return Err("is reserved: HTTP or hookstream sets it");
    }
    let mut value = HeaderValue::try_from(value)
        .ok()
        .filter(|value| value.as_bytes().is_ascii())
        .ok_or("has a value with characters other than visible ASCII, spaces and tabs")?;
    value.set_sensitive(is_credential(name.as_str()));
    Ok((name, value))
}

#[cfg(test)]
mod tests;
