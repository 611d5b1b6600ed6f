//! Which subscriptions a command is about: ids, labels (`-l team=payments`), or all.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::Value;

use super::change::unknown;
use super::stored::Stored;
use crate::cli::exit::{CliError, Exit};

/// Which subscriptions.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct Selection {
    /// Subscription ids
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<String>,
    /// Subscriptions with this label; repeated or separated by commas, all of them
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub(super) selector: Vec<Label>,
    /// All subscriptions
    #[arg(long)]
    pub(super) all: bool,
}

/// A label that a subscription must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    key: String,
    value: String,
}

/// Parses `KEY=VALUE`.
pub(crate) fn parse_label(text: &str) -> Result<Label, String> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| format!("{text:?} is not a label; write KEY=VALUE, as in team=payments"))?;
    Ok(Label {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

/// Whether a subscription's document has all of these labels.
pub(super) fn has_labels(document: &[u8], selector: &[Label]) -> bool {
    let document: Value = serde_json::from_slice(document).unwrap_or_default();
    let labels = document.get("labels");
    selector.iter().all(|wanted| {
        let found = labels.and_then(|labels| labels.get(&wanted.key)?.as_str());
        found == Some(&*wanted.value)
    })
}

/// The ids with these labels.
pub(super) fn with_labels<'a>(stored: &'a Stored, selector: &[Label]) -> BTreeSet<&'a str> {
    let is_selected = |id: &&str| {
        let document = stored.document(id);
        document.is_some_and(|document| has_labels(document, selector))
    };
    stored.ids().filter(is_selected).collect()
}

impl Selection {
    /// Whether single subscriptions are named.
    pub(super) fn is_by_id(&self) -> bool {
        !self.ids.is_empty()
    }

    /// The ids of the selected subscriptions.
    ///
    /// # Errors
    /// An id is unknown, or no subscription has the labels.
    pub(super) fn ids(&self, stored: &Stored) -> Result<BTreeSet<String>, CliError> {
        if self.is_by_id() {
            let ids: BTreeSet<String> = self.ids.iter().cloned().collect();
            let missing = ids.iter().filter(|id| stored.fold.get(id).is_none());
            let missing: Vec<&str> = missing.map(String::as_str).collect();
            return if missing.is_empty() {
                Ok(ids)
            } else {
                Err(unknown(&missing))
            };
        }
        let found = with_labels(stored, &self.selector);
        if found.is_empty() && !self.all {
            return Err(CliError::new(
                Exit::Failure,
                format!("no subscription has {}", shown(&self.selector)),
            ));
        }
        Ok(found.into_iter().map(str::to_owned).collect())
    }
}

/// A selector, for messages.
pub(super) fn shown(selector: &[Label]) -> String {
    let each = selector.iter();
    let each: Vec<String> = each
        .map(|label| format!("{}={}", label.key, label.value))
        .collect();
    format!("the labels {}", each.join(","))
}

/// Rows by id.
pub(super) type Results = BTreeMap<String, &'static str>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_wants_all_of_its_labels() {
        let label = |text: &str| parse_label(text).unwrap();
        let document = br#"{"labels":{"team":"payments","env":"a=b","empty":""}}"#;
        let has = |labels: &[&str]| {
            let selector: Vec<Label> = labels.iter().map(|text| label(text)).collect();
            has_labels(document, &selector)
        };
        assert!(has(&["team=payments"]) && has(&["team=payments", "env=a=b", "empty="]));
        assert!(!has(&["team=orders"]) && !has(&["team=payments", "other=x"]));
        assert!(has(&[]), "none is wanted");
        assert!(!has_labels(br#"{"id":"s"}"#, &[label("team=payments")]));
        for wrong in ["team", "=x", ""] {
            assert!(
                parse_label(wrong).unwrap_err().contains("KEY=VALUE"),
                "{wrong}"
            );
        }
    }
}
