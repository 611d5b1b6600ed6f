//! Settings as given, by source, before validation.

use std::collections::{BTreeMap, BTreeSet};

use super::table::{EVENT_MAPPING, SETTINGS, Setting};

/// The source of a value, highest precedence first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// The file given with `--config`.
    File,
    /// The service binding given with `--kafka-binding`.
    Binding,
    /// The default.
    Default,
}

impl Source {
    /// The name used in messages and in `hookstream config`.
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

/// Settings and librdkafka properties as given, by source. No `Debug`, since any of them may be a secret by mistake.
#[derive(Clone, Default)]
pub struct Layers {
    pub(super) given: BTreeMap<(String, Source), Given>,
    pub(super) properties: BTreeMap<(String, Source), String>,
    /// Fields of event mappings in the file, by topic and field.
    pub(super) mappings: BTreeMap<(String, String), Vec<String>>,
    /// Contents of the files that properties name, by property.
    pub(super) certificates: BTreeMap<String, Vec<u8>>,
    /// Unknown properties. The intended property may be a secret, so their values are never shown.
    pub(super) refused: BTreeSet<String>,
    /// Settings with a value that could not be read.
    pub(super) unread: BTreeSet<String>,
    pub(super) mistakes: Vec<String>,
    /// Whether any value comes from a file that may change.
    pub(super) has_files: bool,
}

/// A setting's value.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) text: String,
    /// The value comes from its own file, which may hold a secret by mistake, so messages do not quote it.
    pub(super) is_from_file: bool,
}

impl Layers {
    /// No settings given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a setting's value as given.
    pub fn give(&mut self, name: &str, source: Source, value: impl Into<String>) {
        let given = Given {
            text: value.into(),
            is_from_file: false,
        };
        self.given.insert((name.to_owned(), source), given);
    }

    /// Adds a `key=value` property for librdkafka.
    pub fn give_property(&mut self, text: &str, source: Source) {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.properties
                    .insert((key.trim().to_owned(), source), value.trim().to_owned());
            }
            // The text may be a secret without its key, so it is not quoted.
            _ => self
                .mistakes
                .push(format!("-X ({}): not a key=value pair", source.name())),
        }
    }

    /// Adds the settings of a TOML file: keys are named as the flags, properties are in the table `[x]`.
    pub fn give_file(&mut self, text: &str, path: &str) {
        self.has_files = true;
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // The error's `Display` quotes the line, which may contain a password.
                let place = line_of(text, error.span().map_or(0, |span| span.start));
                self.mistakes.push(format!(
                    "{path} is not valid TOML: line {place}: {}",
                    error.message()
                ));
                return;
            }
        };
        for (key, value) in table {
            if key == "x" {
                self.give_file_properties(value);
            } else if let (EVENT_MAPPING, toml::Value::Table(topics)) = (&*key, &value) {
                self.give_mappings("", topics);
            } else if SETTINGS.iter().any(|setting| setting.name == key) {
                match as_text(&value) {
                    Some(text) => self.give(&key, Source::File, text),
                    None => self.refuse_value(
                        &key,
                        format!("{key} in {path} is a table; must be a value or a list of values"),
                    ),
                }
            } else {
                self.mistakes.push(format!(
                    "unknown setting {key} in {path}; run `hookstream config` to list all settings"
                ));
            }
        }
    }

    fn give_file_properties(&mut self, value: toml::Value) {
        match value {
            toml::Value::Table(properties) => self.give_file_table("", properties),
            _ => self
                .mistakes
                .push("x in the file must be a table of librdkafka properties".to_owned()),
        }
    }

    /// TOML reads an unquoted key with dots as nested tables; librdkafka has one property of that name.
    fn give_file_table(&mut self, prefix: &str, table: toml::Table) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            if let toml::Value::Table(inner) = value {
                self.give_file_table(&format!("{key}."), inner);
            } else if let Some(value) = as_text(&value) {
                self.properties.insert((key, Source::File), value);
            } else {
                self.mistakes
                    .push(format!("x.{key} in the file must be a value"));
            }
        }
    }

    /// Validates every effective property: `judge` returns what is wrong with a key and value.
    ///
    /// Must run before anything is printed: the value of a rejected property is treated as a secret.
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

    /// The value from this source.
    pub(super) fn given(&self, setting: &Setting, source: Source) -> Option<&str> {
        let given = self.given.get(&(setting.name.to_owned(), source));
        given.map(|given| given.text.as_str())
    }

    /// The effective value and its source; `None` when neither a value nor a default exists.
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

    /// The effective librdkafka properties with their sources.
    #[must_use]
    pub fn properties(&self) -> BTreeMap<&str, (&str, Source)> {
        let mut all = BTreeMap::new();
        for ((key, source), value) in &self.properties {
            all.entry(key.as_str()).or_insert((value.as_str(), *source));
        }
        all
    }
}

/// The line number of a byte offset, from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    1 + before.filter(|&byte| byte == b'\n').count()
}

pub(super) fn as_text(value: &toml::Value) -> Option<String> {
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
