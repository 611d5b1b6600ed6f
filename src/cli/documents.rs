//! Reads subscriptions as people write them: JSON or YAML, one or many.
//!
//! YAML is read without guesses. A plain scalar is what YAML 1.2 makes of it where JSON knows the value too, and text
//! otherwise: `NO` and `y` are texts. Numbers that JSON does not know (`0x1F`, `007`, `+1`) are refused. Within `filter`,
//! where any type may stand, a plain scalar must be JSON; texts are quoted. Errors name line, column and reason, and
//! never repeat the source: secrets stand there.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};
use serde_json::{Map, Value};

use crate::model::subscription::{StrictValue, check_numbers};

/// The largest input, and the most that aliases may make of one, in bytes.
pub(super) const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The deepest nesting of lists and mappings, as in JSON.
const MAX_DEPTH: usize = 127;
/// What a node weighs beside its text, in bytes.
const NODE: usize = 32;

/// Splits an input into documents, each with its place: JSON (one, an array, or several in a row), else YAML (one, a
/// list, or several separated by `---`).
///
/// # Errors
/// What cannot be read, and where.
pub(super) fn documents(text: &str) -> Result<Vec<(String, Value)>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let values: Vec<Value> = if text.trim_start().starts_with(['{', '[']) {
        check_numbers(text)?;
        let stream = serde_json::Deserializer::from_str(text).into_iter();
        stream
            .map(|value| value.map(|StrictValue(value)| value))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("not valid JSON: {error}"))?
    } else {
        yaml(text).map_err(|error| format!("not valid YAML: {error}"))?
    };
    let many = values.len() > 1;
    let mut found = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let place = if many {
            format!("document {}", index + 1)
        } else {
            "the document".to_owned()
        };
        match value {
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                found.extend(
                    items.map(|(item, value)| (format!("{place}, item {}", item + 1), value)),
                );
            }
            // An empty YAML document, such as after a final `---`.
            Value::Null => {}
            value => found.push((place, value)),
        }
    }
    Ok(found)
}

fn yaml(text: &str) -> Result<Vec<Value>, String> {
    let options = granit_parser::options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
    };
    let mut reader = Reader::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| scan_error(text, &error))?;
        reader.take(event, span)?;
    }
    Ok(reader.documents)
}

fn at(span: &Span, reason: impl std::fmt::Display) -> String {
    let start = &span.start;
    format!("line {} column {}: {reason}", start.line(), start.col() + 1)
}

const QUOTE_PATTERN: &str = "a pattern that begins with * must be quoted, as in \"*\"";

fn scan_error(text: &str, error: &ScanError) -> String {
    let marker = error.marker();
    let (line, column) = (marker.line(), marker.col());
    let near = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    let mut before = near.chars().skip(column.saturating_sub(2)).take(3);
    let reason = if before.any(|c| c == '*') {
        QUOTE_PATTERN.to_owned()
    } else {
        error.info()
    };
    format!("line {line} column {}: {reason}", column + 1)
}

/// A list or a mapping that has not ended.
#[derive(Debug)]
struct Open {
    anchor: usize,
    items: Items,
    /// Whether it stands within the filter of a subscription.
    in_filter: bool,
}

#[derive(Debug)]
enum Items {
    List(Vec<Value>),
    Mapping {
        found: Map<String, Value>,
        /// The key whose value comes next.
        key: Option<String>,
        /// The mappings of `<<`: their members count where the mapping has none of that name.
        merged: Vec<Map<String, Value>>,
    },
}

/// The key of a mapping whose members are taken over.
const MERGE: &str = "<<";

/// Builds values from events.
#[derive(Debug, Default)]
struct Reader {
    documents: Vec<Value>,
    open: Vec<Open>,
    /// The nodes that aliases may name, with their weights.
    anchors: HashMap<usize, (Value, usize)>,
    weight: usize,
}

impl Reader {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.weigh(text.len() + NODE, &span)?;
                if self.expects_key() {
                    return self.key(text.into_owned(), &span);
                }
                let plain = style == ScalarStyle::Plain;
                let value = self.scalar(&text, plain, tag.as_deref(), &span)?;
                self.keep(anchor, &value);
                self.value(value, &span)
            }
            Event::Alias(id) => {
                let Some((value, weight)) = self.anchors.get(&id).cloned() else {
                    return Err(at(&span, "the alias names a node that has not ended"));
                };
                self.weigh(weight, &span)?;
                match value {
                    Value::String(text) if self.expects_key() => self.key(text, &span),
                    value => self.value(value, &span),
                }
            }
            Event::UnresolvedAlias(_) => Err(at(&span, QUOTE_PATTERN)),
            Event::SequenceStart(_, anchor, tag) => {
                self.begin(anchor, Items::List(Vec::new()), tag.as_deref(), &span)
            }
            Event::MappingStart(_, anchor, tag) => {
                let items = Items::Mapping {
                    found: Map::new(),
                    key: None,
                    merged: Vec::new(),
                };
                self.begin(anchor, items, tag.as_deref(), &span)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(&span),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn weigh(&mut self, weight: usize, span: &Span) -> Result<(), String> {
        self.weight += weight;
        if self.weight > MAX_BYTES {
            let limit = MAX_BYTES / 1024 / 1024;
            return Err(at(
                span,
                format_args!("the document is larger than {limit} MiB"),
            ));
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        let last = self.open.last().map(|open| &open.items);
        matches!(last, Some(Items::Mapping { key: None, .. }))
    }

    fn in_filter(&self) -> bool {
        self.open.last().is_some_and(|open| {
            let is_filter =
                matches!(&open.items, Items::Mapping { key: Some(key), .. } if key == "filter");
            open.in_filter || (is_filter && self.is_subscription())
        })
    }

    /// Whether the innermost open mapping is a subscription: the document, or an item of its list.
    fn is_subscription(&self) -> bool {
        match &self.open[..] {
            [_] => true,
            [list, _] => matches!(list.items, Items::List(_)),
            _ => false,
        }
    }

    fn key(&mut self, text: String, span: &Span) -> Result<(), String> {
        if let Some(Open {
            items: Items::Mapping { found, key, .. },
            ..
        }) = self.open.last_mut()
        {
            if found.contains_key(&text) {
                return Err(at(span, format_args!("the member {text:?} occurs twice")));
            }
            *key = Some(text);
        }
        Ok(())
    }

    fn scalar(
        &self,
        text: &str,
        plain: bool,
        tag: Option<&Tag>,
        span: &Span,
    ) -> Result<Value, String> {
        match tag {
            Some(tag) if tag.is_yaml_core_schema_tag("str") => return Ok(Value::from(text)),
            Some(_) => return Err(at(span, "tags other than !!str are not supported")),
            None if !plain => return Ok(Value::from(text)),
            None => {}
        }
        let value = serde_json::from_str::<Value>(text).ok();
        let value = value.filter(|value| !value.is_string());
        let in_filter = self.in_filter();
        if let Some(value) = value
            && (!in_filter || serde_json::to_string(&value).is_ok_and(|json| json == text))
        {
            return Ok(value);
        }
        if in_filter {
            return Err(at(
                span,
                "in filter, a value without quotation marks must be a JSON number, true, false or null: quote it",
            ));
        }
        match text {
            "" | "~" | "Null" | "NULL" => Ok(Value::Null),
            "True" | "TRUE" => Ok(Value::Bool(true)),
            "False" | "FALSE" => Ok(Value::Bool(false)),
            text if is_number(text) => Err(at(
                span,
                "a number that JSON does not know: write it as in JSON, or quote it if it is a text",
            )),
            text => Ok(Value::from(text)),
        }
    }

    fn keep(&mut self, anchor: usize, value: &Value) {
        if anchor != 0 {
            self.anchors
                .insert(anchor, (value.clone(), weight_of(value)));
        }
    }

    fn begin(
        &mut self,
        anchor: usize,
        items: Items,
        tag: Option<&Tag>,
        span: &Span,
    ) -> Result<(), String> {
        self.weigh(NODE, span)?;
        if tag.is_some() {
            return Err(at(span, "tags other than !!str are not supported"));
        }
        if self.expects_key() {
            return Err(at(span, "the key of a mapping must be a text"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(at(
                span,
                format_args!("lists and mappings are nested deeper than {MAX_DEPTH} levels"),
            ));
        }
        let in_filter = self.in_filter();
        self.open.push(Open {
            anchor,
            items,
            in_filter,
        });
        Ok(())
    }

    fn end(&mut self, span: &Span) -> Result<(), String> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.items {
            Items::List(items) => Value::Array(items),
            Items::Mapping {
                mut found, merged, ..
            } => {
                for (name, value) in merged.into_iter().flatten() {
                    found.entry(name).or_insert(value);
                }
                Value::Object(found)
            }
        };
        self.keep(open.anchor, &value);
        self.value(value, span)
    }

    fn value(&mut self, value: Value, span: &Span) -> Result<(), String> {
        match self.open.last_mut().map(|open| &mut open.items) {
            None => self.documents.push(value),
            Some(Items::List(items)) => items.push(value),
            Some(Items::Mapping { found, key, merged }) => {
                let Some(name) = key.take() else {
                    return Err(at(span, "the key of a mapping must be a text"));
                };
                match value {
                    value if name != MERGE => {
                        found.insert(name, value);
                    }
                    Value::Object(members) => merged.push(members),
                    _ => return Err(at(span, "<< must name a mapping")),
                }
            }
        }
        Ok(())
    }
}

/// Whether YAML 1.1 or 1.2 takes a text for a number.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = unsigned.strip_prefix('.').unwrap_or(unsigned);
    let special =
        matches!(digits.to_ascii_lowercase().as_str(), "inf" | "nan") && unsigned.starts_with('.');
    let of_number = |c: char| {
        c.is_ascii_hexdigit() || matches!(c, '_' | '.' | 'x' | 'X' | 'o' | 'O' | '+' | '-')
    };
    let is_hex = unsigned.starts_with("0x") || unsigned.starts_with("0X");
    let is_octal = unsigned.starts_with("0o") || unsigned.starts_with("0O");
    let is_decimal = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.parse::<f64>().is_ok()
        || (digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.chars().all(|c| c.is_ascii_digit() || c == '_'));
    special || ((is_hex || is_octal) && unsigned.chars().all(of_number)) || is_decimal
}

fn weight_of(value: &Value) -> usize {
    NODE + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(weight_of).sum(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| name.len() + weight_of(value))
            .sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Value {
        let mut found = documents(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(found.len(), 1, "{text}");
        found.remove(0).1
    }

    fn refusal(text: &str) -> String {
        documents(text).expect_err(text)
    }

    #[test]
    fn yaml_is_read_without_guesses() {
        assert_eq!(
            one(
                "id: NO\nsubscriber: y\nurl: ~\na: [1, 1.5, -2, true, False, null, 2026-01-01, 12:30:45, on]\n200: x\nb: '1'\nc: !!str 7\n"
            ),
            json!({
                "id": "NO", "subscriber": "y", "url": null,
                "a": [1, 1.5, -2, true, false, null, "2026-01-01", "12:30:45", "on"],
                "200": "x", "b": "1", "c": "7",
            })
        );
        for text in [
            "a: 0x1F", "a: 007", "a: +1", "a: 1_000", "a: .5", "a: .inf", "a: 0o17", "a: 5.",
        ] {
            assert!(
                refusal(text).contains("a number that JSON does not know"),
                "{text}"
            );
        }
        assert!(refusal("a: !!int 7").contains(": tags other than"));
        assert!(refusal("? [a]\n: b").contains("key of a mapping"));
    }

    #[test]
    fn in_a_filter_whatever_is_not_json_must_be_quoted() {
        for value in [
            "NO",
            "SE",
            "y",
            "01234",
            "1.10x",
            "~",
            "True",
            "0x1F",
            "2026-01-01",
            ".",
        ] {
            for text in [
                format!("filter: {{data.country: [{value}]}}"),
                format!("filter:\n  data.country:\n    - prefix: {value}\n"),
                format!("- id: a\n  filter: {{data.country: [{value}]}}"),
            ] {
                let error = refusal(&text);
                assert!(
                    error.contains("quote it") && error.contains("line "),
                    "{text}: {error}"
                );
            }
        }
        // 1.10 is a JSON number, but not what its text says.
        assert!(refusal("filter: {a: [1.10]}").contains("quote it"));
        assert_eq!(
            one("filter: {data.a: [1, 1.5, true, null, 'NO', \"y\", {numeric: ['>=', 100]}]}"),
            json!({"filter": {"data.a": [1, 1.5, true, null, "NO", "y", {"numeric": [">=", 100]}]}})
        );
        assert_eq!(
            one("headers: {filter: NO}"),
            json!({"headers": {"filter": "NO"}})
        );
    }

    #[test]
    fn members_that_occur_twice_are_refused_in_both_notations() {
        for text in [
            r#"{"id":"a","filter":{},"filter":{}}"#,
            r#"[{"id":"a","secrets":[],"secrets":[]}]"#,
            "id: a\nfilter: {}\nfilter: {}\n",
            "- id: a\n  'id': b\n",
        ] {
            let error = refusal(text);
            assert!(
                error.contains("occurs twice") && error.contains("line"),
                "{error}"
            );
        }
    }

    #[test]
    fn an_error_never_repeats_the_source() {
        for text in [
            "id: a\nsecrets: [\"whsec_c2VjcmV0\"\nheaders: {authorization: \"Bearer topsecret\"}\n",
            "secrets: [whsec_c2VjcmV0",
            "secrets: \"whsec_c2VjcmV0\n",
            "a: &whsec_c2VjcmV0 [\n",
            "authorization: topsecret: x: [",
            "\ttopsecret: @",
            "{\"secrets\":[\"whsec_c2VjcmV0\", topsecret]}",
        ] {
            let error = refusal(text);
            assert!(
                !error.contains("c2VjcmV0") && !error.contains("topsecret"),
                "{text}: {error}"
            );
            assert!(
                error.contains("line ") && error.contains("column "),
                "{error}"
            );
        }
    }

    #[test]
    fn a_pattern_that_begins_with_an_asterisk_must_be_quoted() {
        for text in [
            "events: [*]",
            "events: [**]",
            "events: [ * ]",
            "events:\n  - *\n",
            "events:\n  - **\n",
            "events: [*.created]",
            "events: [order.paid, *.created]",
            "events: *",
        ] {
            assert!(
                refusal(text).contains("must be quoted"),
                "{text}: {}",
                refusal(text)
            );
        }
        assert_eq!(
            one("events: ['*', \"**\", order.*]"),
            json!({"events": ["*", "**", "order.*"]})
        );
    }

    #[test]
    fn large_inputs_are_read_up_to_the_stated_limit() {
        let many = "---\nid: a\n".repeat(1_025);
        assert_eq!(documents(&many).unwrap().len(), 1_025);
        let list = "- id: a\n".repeat(20_000);
        assert_eq!(documents(&list).unwrap().len(), 20_000);
        let aliases = format!("- &s {{x: [1, 2]}}\n{}", "- *s\n".repeat(200));
        assert_eq!(documents(&aliases).unwrap().len(), 201);
        // A thousand times a thousand times a thousand.
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &(b'b'..=b'j')
                .map(|name| {
                    let (name, before) = (name as char, (name - 1) as char);
                    format!(
                        "{name}: &{name} [{}]\n",
                        vec![format!("*{before}"); 10].join(",")
                    )
                })
                .collect::<String>();
        assert!(refusal(&bomb).contains("larger than 64 MiB"));
        let deep = format!("a: {}{}", "[".repeat(200), "]".repeat(200));
        assert!(refusal(&deep).contains("deeper than 127"));
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        assert_eq!(
            one("base: &base {url: u, order: none}\n<<: *base\norder: strict\n"),
            json!({"base": {"url": "u", "order": "none"}, "url": "u", "order": "strict"})
        );
        assert!(refusal("a: &a [*a]").contains("has not ended"));
    }
}
