//! A subscription as `list` and `show` print it.

use serde::Serialize;
use serde_json::Value;

use crate::cli::print::Row;
use crate::edge::clock;
use crate::model::standing::Standing;

/// A subscription as listed: the redacted document, and how it stands.
#[derive(Serialize)]
pub(super) struct Listed {
    #[serde(flatten)]
    pub(super) document: Value,
    #[serde(flatten)]
    pub(super) standing: Standing,
}

impl Listed {
    fn text(&self, name: &str, default: &str) -> String {
        self.document
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or(default)
            .to_owned()
    }
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &[
        "ID",
        "SUBSCRIBER",
        "STATE",
        "EVENTS",
        "URL",
        "LAST SUCCESS",
        "LAST FAILURE",
    ];

    fn cells(&self) -> Vec<String> {
        let events = self.document.get("events").and_then(Value::as_array);
        let events: Vec<_> = events
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        vec![
            self.text("id", ""),
            self.text("subscriber", ""),
            self.standing.state_text(),
            events.join(" "),
            self.text("url", ""),
            self.standing.last_success.clone().unwrap_or_default(),
            self.standing.failure_text(clock::now()),
        ]
    }
}
