//! A subscription with another endpoint, for a replay to it.
//!
//! `replay --to-endpoint` never sends anything itself: `deliver` does, with its egress rules, limits and retries. So the
//! commands are for a subscription of their own, derived from that of the dead letters. It matches no event. Its name
//! follows from the original's and the endpoint, so a replay that is repeated uses the same one.

use serde_json::{Map, Value, json};

use super::change::unknown;
use super::document::{Document, applied, effect};
use super::stored::{Stored, write};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::kafka::subscription_log::Freshness;
use crate::model::subscription::NO_EVENT;

/// The label that names the original.
const LABEL: &str = "hookstream-replay-of";

/// What is taken over: not the credentials, certificates and headers, which are for the original's endpoint only.
const TAKEN: [&str; 9] = [
    "subscriber",
    "secrets",
    "format",
    "max_in_flight",
    "rate_limit",
    "timeout",
    "retry_schedule",
    "max_age",
    "verify",
];

/// The document of the derived subscription.
fn derived(original: &Map<String, Value>, id: &str, url: &str) -> Map<String, Value> {
    let taken = TAKEN
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), original.get(*name)?.clone())));
    let mut derived: Map<String, Value> = taken.collect();
    derived.insert("id".to_owned(), name(id, url).into());
    derived.insert("url".to_owned(), url.into());
    derived.insert("events".to_owned(), json!([NO_EVENT]));
    derived.insert("labels".to_owned(), json!({LABEL: id}));
    derived
}

/// Its id.
fn name(id: &str, url: &str) -> String {
    format!("{id}.to-{:08x}", crc32fast::hash(url.as_bytes()))
}

/// Checks, and unless `dry_run` applies, the subscription for a replay of `id` to `url`. Returns its id.
///
/// # Errors
/// [`CliError`]: there is no such subscription, the URL is invalid or denied by the egress rules, or the topic cannot be
/// read or written.
pub(crate) fn apply_elsewhere(
    settings: &Settings,
    id: &str,
    url: &str,
    dry_run: bool,
) -> Result<String, CliError> {
    let stored = Stored::read(settings, Freshness::Latest)?;
    let original = stored.document(id).ok_or_else(|| unknown(&[id]))?;
    let failed = |error: String| CliError::new(Exit::Failure, error);
    let original: Map<String, Value> = serde_json::from_slice(original)
        .map_err(|error| failed(format!("the subscription {id:?}: {error}")))?;
    let derived = derived(&original, id, url);
    let json = serde_json::to_vec(&derived).map_err(|error| failed(error.to_string()))?;
    let document = Document::parse(None, json).map_err(|error| {
        CliError::new(
            Exit::Usage,
            format!("--to-endpoint: {}", error.problems().join("; ")),
        )
    })?;
    // Deliver checks it too, each time that it sends.
    EgressPolicy::new(&settings.egress)
        .check_url(&document.parsed.url.to_url())
        .map_err(|denied| {
            let message = format!(
                "--to-endpoint: {denied} (by the egress settings of this command, which should be those of deliver)"
            );
            CliError::new(Exit::Usage, message)
        })?;
    let name = document.id().to_owned();
    if !dry_run && effect(&stored, &document) != "unchanged" {
        write(settings, &applied(&stored, document, clock::now()))?;
        print::note(&format!(
            "the webhooks go to {url} by way of the subscription {name}; `hookstream subscriptions delete {name} --drain` deletes it when they are sent"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_with_their_endpoint() {
        let original = json!({
            "id": "orders", "subscriber": "acme", "url": "https://a.example/", "events": ["**"],
            "secrets": ["env:S"], "headers": {"authorization": "Bearer env:T"}, "auth": {"type": "bearer", "token": "env:T"},
            "client_key": "file:/k", "client_certificate": "file:/c", "filter": {"data.n": [1]}, "state": "disabled",
            "timeout": "3s",
        });
        let url = "https://b.example/x";
        let derived = derived(original.as_object().unwrap(), "orders", url);
        let names: Vec<&str> = derived.keys().map(String::as_str).collect();
        let expected = [
            "events",
            "id",
            "labels",
            "secrets",
            "subscriber",
            "timeout",
            "url",
        ];
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        let json = serde_json::to_vec(&derived).unwrap();
        let document = Document::parse(None, json).unwrap();
        assert_eq!(document.id(), name("orders", url));
        assert_ne!(name("orders", "https://c.example/"), name("orders", url));
    }
}
