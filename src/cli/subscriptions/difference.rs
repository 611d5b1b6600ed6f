//! What `apply --dry-run` prints: the difference between the stored and the new documents, without secrets. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::model::subscription::redacted;

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// This is gone.
    Removed(String),
    /// This is new.
    Added(String),
    /// This has changed, and is not shown.
    Hidden(String),
}

impl Line {
    /// The line, in colour for a terminal.
    pub(super) fn text(&self, in_colour: bool) -> String {
        let (colour, sign, text) = match self {
            Self::Removed(text) => (31, '-', text),
            Self::Added(text) => (32, '+', text),
            Self::Hidden(text) => (33, '~', text),
        };
        if in_colour {
            format!("\x1b[{colour}m  {sign} {text}\x1b[0m")
        } else {
            format!("  {sign} {text}")
        }
    }
}

fn object(document: Option<&[u8]>) -> Map<String, Value> {
    let parsed = document.and_then(|document| serde_json::from_slice(document).ok());
    match parsed {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The same without secrets.
fn shown(document: Option<&[u8]>) -> Map<String, Value> {
    let shown = document.and_then(|document| redacted(document).ok());
    match shown {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

/// The fields that differ, in the order of their names.
pub(super) fn difference(before: Option<&[u8]>, after: Option<&[u8]>) -> Vec<Line> {
    let (before_shown, after_shown) = (shown(before), shown(after));
    let (before, after) = (object(before), object(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut lines = Vec::new();
    for name in names {
        if before.get(name) == after.get(name) {
            continue;
        }
        let (old, new) = (before_shown.get(name), after_shown.get(name));
        if old == new {
            lines.push(Line::Hidden(format!("{name}: changed (redacted)")));
            continue;
        }
        let text = |value: &Value| format!("{name}: {value}");
        lines.extend(old.map(|old| Line::Removed(text(old))));
        lines.extend(new.map(|new| Line::Added(text(new))));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(before: Option<&str>, after: Option<&str>) -> Vec<String> {
        let of = |text: Option<&str>| text.map(|text| text.as_bytes().to_vec());
        let found = difference(of(before).as_deref(), of(after).as_deref());
        found.iter().map(|line| line.text(false)).collect()
    }

    #[test]
    fn only_what_differs_is_printed_and_no_secret() {
        let before = r#"{"id":"a","url":"https://a.example/","max_in_flight":8,"secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}"#;
        let after = r#"{"secrets":["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],"id":"a","url":"https://b.example/","events":["**"]}"#;
        assert_eq!(
            lines(Some(before), Some(after)),
            [
                r#"  + events: ["**"]"#,
                "  - max_in_flight: 8",
                "  ~ secrets: changed (redacted)",
                r#"  - url: "https://a.example/""#,
                r#"  + url: "https://b.example/""#,
            ]
        );
        assert!(lines(Some(before), Some(before)).is_empty());
        assert_eq!(lines(None, Some(r#"{"id":"a"}"#)), [r#"  + id: "a""#]);
        assert_eq!(lines(Some(r#"{"id":"a"}"#), None), [r#"  - id: "a""#]);
        let all = lines(Some(before), None).join("") + &lines(None, Some(after)).join("");
        assert!(!all.contains("MfKQ9r8") && !all.contains("C2FVsB"), "{all}");
    }

    #[test]
    fn a_terminal_gets_colours() {
        let line = Line::Added("x: 1".to_owned());
        assert_eq!(line.text(true), "\u{1b}[32m  + x: 1\u{1b}[0m");
        assert_eq!(line.text(false), "  + x: 1");
    }
}
