//! Validates the record of a subscription: the schema, and the rules that a schema cannot express.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderName;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde::Deserialize;
use serde_json::{Map, Value};
use url::Url;

use super::auth::Auth;
use super::endpoint_url::{self, EndpointUrl};
use super::filter::{Filter, TypePattern};
use super::model::{Overrides, RateLimit, Source, State, StatusRules, Subscription, TlsReferences};
use super::numbers::check_numbers;
use super::record::{SubscriptionError, read_object};
use super::reference::{credential, header_source, signing_secret};
use super::source::{HeaderSource, SigningSecret};
use crate::model::breaker_rules::BreakerOverrides;
use crate::model::expiry::{MAX_MAX_AGE, MIN_MAX_AGE};
use crate::model::tiers::LONGEST_PARK;
use crate::model::units::parse_duration;

/// The JSON Schema (2020-12) of the record's value.
pub const SCHEMA: &str = include_str!("../../../schemas/subscription.schema.json");

/// The default maximum of requests in flight.
pub const DEFAULT_MAX_IN_FLIGHT: u32 = 8;
/// The shortest timeout of an attempt.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest timeout of an attempt: it bounds the drain time and the window.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest delay of a retry schedule.
pub const MIN_RETRY_DELAY: Duration = Duration::from_millis(1);
/// The longest delay of a retry schedule; longer ones would work by hops, but are more likely typing errors.
pub const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 3600);

/// The most bytes of names and values of additional headers: each request carries them.
const MAX_HEADERS_BYTES: usize = 32 * 1024;

/// The shortest delay before a breaker's probe; the longest is [`LONGEST_PARK`].
pub const MIN_PROBE: Duration = Duration::from_millis(10);

/// Headers that HTTP, Standard Webhooks or hookstream set, besides all that start with [`RESERVED_PREFIXES`].
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

/// Parses a record; `key` is the record's key, or `None` if there is no record yet (a file to apply).
///
/// # Errors
/// All problems at once.
pub fn parse(key: Option<&[u8]>, value: &[u8]) -> Result<Subscription, SubscriptionError> {
    let record = Value::Object(read_object(value)?);
    let mut check = Check {
        record: &record,
        problems: Vec::new(),
    };
    let filter = check.object("filter");
    let filter = filter.map_or_else(|| Ok(Filter::default()), Filter::parse);
    check.schema(filter.is_err());
    check.key(key);
    if record.get("filter").is_some_and(has_number) {
        let text = std::str::from_utf8(value).unwrap_or_default();
        check.problems.extend(check_numbers(text).err());
    }
    let url = check.url();
    let state: State = check.enumerated("state");
    let subscription = Subscription {
        id: check.text("id").into(),
        subscriber: check.text("subscriber").into(),
        events: check.events(),
        filter: check.filter(filter),
        secrets: check.secrets(),
        format: check.enumerated("format"),
        state: state.decided(),
        verify: state == State::Pending || check.is_true("verify"),
        source: Source::default(),
        max_in_flight: check
            .integer("max_in_flight")
            .unwrap_or(DEFAULT_MAX_IN_FLIGHT),
        rate_limit: check.rate_limit().map(Box::new),
        order: check.enumerated("order"),
        overrides: check.overrides(url.as_ref()).into(),
        url: url.as_ref().map(EndpointUrl::new).unwrap_or_default(),
    };
    if check.problems.is_empty() && url.is_some() {
        Ok(subscription)
    } else {
        Err(SubscriptionError::Invalid(check.problems))
    }
}

fn deserialized<T: for<'de> Deserialize<'de>>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

pub(super) fn validator() -> &'static Validator {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    #[allow(clippy::expect_used, reason = "the schema is a constant, tested")]
    VALIDATOR.get_or_init(|| {
        let schema = serde_json::from_str(SCHEMA).expect("the embedded schema is JSON");
        jsonschema::draft202012::new(&schema).expect("the embedded schema is a schema")
    })
}

/// Parses one field after the other. A field of the wrong type counts as absent: the schema has reported it.
struct Check<'a> {
    /// An object, as a `Value` because the validator takes one.
    record: &'a Value,
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

    fn is_true(&self, field: &str) -> bool {
        self.record.get(field) == Some(&Value::Bool(true))
    }

    fn integer(&self, field: &str) -> Option<u32> {
        self.record.get(field).and_then(whole)
    }

    /// Without what the filter's own parser reports, where `filter_is_invalid`: it refuses whatever the schema does.
    fn schema(&mut self, filter_is_invalid: bool) {
        // Collecting errors is slower, and almost every record is valid.
        if validator().is_valid(self.record) {
            return;
        }
        for error in validator().iter_errors(self.record) {
            let path = error.instance_path().to_string();
            if path.starts_with("/secrets/") {
                // The reader of secrets reports it, with its reason.
                continue;
            }
            let is_reference = matches!(&*path, "/tls_ca" | "/client_certificate" | "/client_key");
            if is_reference && matches!(error.kind(), ValidationErrorKind::Pattern { .. }) {
                continue;
            }
            if path.starts_with("/auth") {
                // Its reader reports each problem, where the schema says that no alternative matches.
                continue;
            }
            if filter_is_invalid && path.starts_with("/filter") {
                continue;
            }
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

    fn url(&mut self) -> Option<Url> {
        let text = self.text("url");
        if text.is_empty() {
            return None;
        }
        let parsed = endpoint_url::parse(text);
        let problems = parsed.as_ref().err().into_iter().flatten();
        problems.for_each(|problem| self.problem("url", problem));
        parsed.ok()
    }

    fn events(&mut self) -> Arc<[TypePattern]> {
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
        patterns.into()
    }

    fn filter(&mut self, parsed: Result<Filter, Vec<String>>) -> Filter {
        let problems = parsed.as_ref().err().into_iter().flatten();
        problems.for_each(|problem| self.problem("filter", problem));
        parsed.unwrap_or_default()
    }

    fn secrets(&mut self) -> Box<[SigningSecret]> {
        let items = self.record.get("secrets").and_then(Value::as_array);
        let mut secrets = Vec::new();
        for (at, item) in items.into_iter().flatten().enumerate() {
            match signing_secret(item) {
                Ok(secret) => secrets.push(secret),
                Err(problems) => {
                    for (field, problem) in problems {
                        self.problem(&format!("secrets.{at}{field}"), problem);
                    }
                }
            }
        }
        // Otherwise requests would be sent without a signature one day.
        if !secrets.is_empty() && secrets.iter().all(|secret| secret.until.is_some()) {
            self.problem("secrets", "at least one must have no until");
        }
        secrets.into()
    }

    fn overrides(&mut self, url: Option<&Url>) -> Overrides {
        Overrides {
            headers: self.headers(),
            auth: self.auth(),
            tls: self.tls(url),
            timeout: self.timeout(),
            retry_schedule: self.retry_schedule(),
            max_age: self.max_age(),
            breaker: self.breaker(),
            on_status: self
                .object("on_status")
                .map(StatusRules::read)
                .unwrap_or_default(),
        }
    }

    fn headers(&mut self) -> Vec<(HeaderName, HeaderSource)> {
        let mut headers = Vec::new();
        let mut seen = HashSet::new();
        let texts = self.object("headers").into_iter().flatten();
        let bytes: usize = texts
            .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
            .sum();
        if bytes > MAX_HEADERS_BYTES {
            self.problem(
                "headers",
                format_args!("have {bytes} bytes together, the limit is {MAX_HEADERS_BYTES}"),
            );
        }
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

    fn auth(&mut self) -> Option<Auth> {
        let auth = match Auth::read(self.record.get("auth")?, header_name) {
            Ok(auth) => auth,
            Err(problems) => {
                self.problems.extend(problems);
                return None;
            }
        };
        let own = auth.header_name().as_str();
        let headers = self.object("headers").into_iter().flatten();
        let mut names = headers.map(|(name, _)| name);
        if names.any(|name| name.eq_ignore_ascii_case(own)) {
            self.problem(
                "auth",
                format_args!("sets the header {own}, which is in headers too; remove one of them"),
            );
        }
        Some(auth)
    }

    fn tls(&mut self, url: Option<&Url>) -> TlsReferences {
        let mut read = |field: &'static str| {
            let found = credential(self.record.get(field)?.as_str()?);
            if let Err(problem) = &found {
                self.problem(field, problem);
            }
            found.ok()
        };
        let ca = read("tls_ca");
        let (certificate, key) = (read("client_certificate"), read("client_key"));
        let is_there = |field: &str| self.record.get(field).is_some();
        let fields = ["tls_ca", "client_certificate", "client_key"];
        let first = fields.into_iter().find(|field| is_there(field));
        let is_half = is_there("client_certificate") != is_there("client_key");
        if let Some(field) = first.filter(|_| url.is_some_and(|url| url.scheme() == "http")) {
            self.problem(
                field,
                "has no effect on an http URL; use https or remove it",
            );
        }
        if is_half {
            self.problem("client_certificate", "needs client_key, and the reverse");
        }
        TlsReferences {
            ca,
            client: certificate.zip(key),
        }
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

    fn max_age(&mut self) -> Option<Duration> {
        let text = self.record.get("max_age")?.as_str()?;
        self.duration("max_age", text, MIN_MAX_AGE, MAX_MAX_AGE)
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

/// Whether a number is somewhere in a value.
fn has_number(value: &Value) -> bool {
    match value {
        Value::Number(_) => true,
        Value::Array(items) => items.iter().any(has_number),
        Value::Object(members) => members.values().any(has_number),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
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

/// The validator's message, without the value if it may be secret or long.
fn schema_problem(path: &str, error: &jsonschema::ValidationError<'_>) -> String {
    let private = ["/secrets", "/headers", "/url", "/tls_ca", "/client_"]
        .iter()
        .any(|start| path.starts_with(start));
    match error.kind() {
        ValidationErrorKind::Pattern { .. } if matches!(path, "/id" | "/subscriber") => {
            format!(
                "{} must be 1 to 200 characters of A-Z a-z 0-9 . _ : -",
                shown(&error.instance().to_string())
            )
        }
        ValidationErrorKind::PropertyNames { .. } if path == "/on_status" => {
            "a key is a status from 200 to 599 or a class from 2xx to 5xx".to_owned()
        }
        ValidationErrorKind::Enum { options } if !private => {
            let options = options.as_array().map_or(&[][..], Vec::as_slice);
            let options: Vec<_> = options.iter().map(Value::to_string).collect();
            let value = cut(&error.instance().to_string());
            format!("{value} is not one of {}", options.join(", "))
        }
        ValidationErrorKind::AdditionalProperties { .. } if path.is_empty() => error
            .to_string()
            .replace("Additional properties are not allowed", "unknown fields"),
        _ if private || error.instance().to_string().len() > 200 => error.masked().to_string(),
        _ => error.to_string(),
    }
}

/// A text for a message, truncated.
fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(100).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// The same, in quotes.
fn shown(text: &str) -> String {
    let text = cut(text);
    if text.starts_with('"') {
        text
    } else {
        format!("{text:?}")
    }
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderSource), &'static str> {
    let name = header_name(name)?;
    let source = header_source(&name, value)?;
    Ok((name, source))
}

/// The name of a header that a subscription may set.
fn header_name(name: &str) -> Result<HeaderName, &'static str> {
    let name = HeaderName::try_from(name).map_err(|_| "is not a header name")?;
    let reserved = RESERVED_HEADERS.contains(&name.as_str())
        || RESERVED_PREFIXES
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix));
    if reserved {
        return Err("is reserved: HTTP or hookstream sets it");
    }
    Ok(name)
}
