//! A subscription's document, and what applying it writes.

use serde_json::{Map, Value};

use super::stored::{Stored, Write};
use crate::cli::exit::{CliError, Exit};
use crate::edge::egress::EgressPolicy;
use crate::model::secret_rules::SecretRules;
use crate::model::subscription;
use crate::model::subscription::{Auth, Decision, State, Subscription, SubscriptionError, Version};
use crate::model::units::EpochMs;

/// The fields of a stored document.
pub(super) fn read_record(json: &[u8]) -> Result<Map<String, Value>, CliError> {
    serde_json::from_slice(json).map_err(|error| CliError::new(Exit::Failure, error.to_string()))
}

/// A valid subscription with its JSON.
pub(super) struct Document {
    pub(super) parsed: Subscription,
    pub(super) json: Vec<u8>,
}

impl Document {
    pub(super) fn parse(key: Option<&[u8]>, json: Vec<u8>) -> Result<Self, SubscriptionError> {
        Ok(Self {
            parsed: subscription::parse(key, &json)?,
            json,
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.parsed.id
    }

    /// What is valid and probably a mistake.
    pub(super) fn doubts(&self, policy: &EgressPolicy, rules: &SecretRules) -> Vec<String> {
        let denied = policy.check_url(&self.parsed.url.to_url()).err();
        let denied = denied.map(|denied| {
            format!(
                "url: {denied} (by the egress settings of this command, which should be those of deliver)"
            )
        });
        let token_denied = match &self.parsed.overrides.auth {
            Some(Auth::OAuth2(oauth)) => policy.check_url(&oauth.token_url).err(),
            _ => None,
        };
        let token_denied = token_denied.map(|denied| {
            format!(
                "auth.token_url: {denied} (by the egress settings of this command, which should be those of deliver)"
            )
        });
        let secrets = rules.problems(&self.parsed);
        let secrets = secrets.map(|problem| {
            format!("{problem} (by the settings of this command, which should be those of deliver)")
        });
        let in_filter = self.parsed.filter.doubts();
        let in_filter = in_filter.map(|doubt| format!("filter: {doubt}"));
        let all = denied
            .into_iter()
            .chain(token_denied)
            .chain(secrets)
            .chain(in_filter);
        all.map(|doubt| format!("{:?}: {doubt}", self.id()))
            .collect()
    }

    /// A note if the URL is used in another form than it was typed. It never shows the query, which may be a credential.
    pub(super) fn normal_url(&self) -> Option<String> {
        let record: Value = serde_json::from_slice(&self.json).ok()?;
        let typed = record.get("url")?.as_str()?;
        let mut used = self.parsed.url.to_url();
        if typed == used.as_str() {
            return None;
        }
        let typed_query = typed.split_once('?').map(|(_, query)| query);
        let query = match used.query() {
            None => "",
            Some(query) if Some(query) == typed_query => "?…",
            Some(_) => "?… (the query is percent-encoded)",
        };
        used.set_query(None);
        Some(format!("{:?}: the url is used as {used}{query}", self.id()))
    }

    /// Whether both are equal, apart from the order of fields.
    pub(super) fn equals(&self, json: &[u8]) -> bool {
        let value = |json: &[u8]| serde_json::from_slice::<Value>(json).ok();
        self.json == json || value(&self.json) == value(json)
    }
}

/// The result of applying a document. If the latest record is invalid, the document is written again even if it is
/// unchanged: compaction removes the earlier, valid record.
pub(super) fn effect(stored: &Stored, document: &Document) -> &'static str {
    match stored.document(document.id()) {
        None => "created",
        Some(known)
            if document.equals(known) && !stored.invalid.contains_key(document.id().as_bytes()) =>
        {
            "unchanged"
        }
        Some(_) => "updated",
    }
}

/// The records of a changed document: itself, distinct from all earlier ones, and the time of the resume if it ends a
/// pause.
pub(super) fn applied(stored: &Stored, document: Document, now: EpochMs) -> Vec<Write> {
    let header = format!("{}-{:08x}", now.0, fastrand::u32(..));
    let mut parsed = document.parsed;
    let known = stored.fold.get(&parsed.id);
    parsed.source.applied = Version::of_applied(&document.json, Some(header.as_bytes()));
    parsed.source.partition = known.and_then(|known| known.source.partition);
    let resumes =
        parsed.state == State::Active && known.is_some_and(|known| known.state != State::Active);
    let decision = Decision::by_operator(&parsed, State::Active, now);
    let resume = resumes.then(|| Write::decision(&parsed, &decision));
    let write = Write {
        key: parsed.id.as_bytes().to_vec(),
        value: Some(document.json),
        applied: Some(header),
        partition: parsed.source.partition,
    };
    [write].into_iter().chain(resume).collect()
}
