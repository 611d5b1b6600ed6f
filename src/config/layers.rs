//! Settings as they are typed, by source, before they are checked.

use std::collections::{BTreeMap, BTreeSet};

use super::table::{SETTINGS, Setting};

/// Where a value comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// On the command line.
    Flag,
    /// In the environment.
    Environment,
    /// In the file given with `--config`.
    File,
    /// In the service binding given with `--kafka-binding`.
    Binding,
    /// The default.
    Default,
}

impl Source {
    /// One word.
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

/// What was typed, by source: names of settings to text, and librdkafka properties.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    pub(super) given: BTreeMap<(String, Source), Given>,
    pub(super) properties: BTreeMap<(String, Source), String>,
    /// What stands in the files that properties name, by property.
    pub(super) certificates: BTreeMap<String, Vec<u8>>,
    /// Properties that are none: what was meant may be a secret one, so their values are not shown.
    pub(super) refused: BTreeSet<String>,
    pub(super) mistakes: Vec<String>,
    /// Some of it stands in files that may change.
    pub(super) has_files: bool,
}

/// A setting's value.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) text: String,
    /// It stands in a file of its own, which may hold a secret by mistake: it is not quoted.
    pub(super) is_from_file: bool,
}

impl Layers {
    /// Nothing is given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A setting's value, as typed.
    pub fn give(&mut self, name: &str, source: Source, value: impl Into<String>) {
        let given = Given {
            text: value.into(),
            is_from_file: false,
        };
        self.given.insert((name.to_owned(), source), given);
    }

    /// A `key=value` for librdkafka.
    pub fn give_property(&mut self, text: &str, source: Source) {
        match text.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                self.properties
                    .insert((key.trim().to_owned(), source), value.trim().to_owned());
            }
            // What stands there may be a secret with its key forgotten.
            _ => self
                .mistakes
                .push(format!("-X ({}): allowed: key=value", source.name())),
        }
    }

    /// The file's text: TOML, keys as the flags, properties in a table `[x]`.
    pub fn give_file(&mut self, text: &str, path: &str) {
        self.has_files = true;
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // The error's own text quotes the line, which may hold a password.
                let place = line_of(text, error.span().map_or(0, |span| span.start));
                self.mistakes.push(format!(
                    "{path} is not TOML: line {place}: {}",
                    error.message()
                ));
                return;
            }
        };
        for (key, value) in table {
            if key == "x" {
                self.give_file_properties(value);
            } else if SETTINGS.iter().any(|setting| setting.name == key) {
                match as_text(&value) {
                    Some(text) => self.give(&key, Source::File, text),
                    None => self.mistakes.push(format!(
                        "{key} in {path} is a table; allowed: a value or a list of values"
                    )),
                }
            } else {
                self.mistakes.push(format!(
                    "{key} in {path} is no setting; `hookstream config` lists them"
                ));
            }
        }
    }

    fn give_file_properties(&mut self, value: toml::Value) {
        match value {
            toml::Value::Table(properties) => self.give_file_table("", properties),
            _ => self
                .mistakes
                .push("x in the file: allowed: a table of librdkafka properties".to_owned()),
        }
    }

    /// A key with dots and without quotes is a table in a table to TOML, and the same property to librdkafka.
    fn give_file_table(&mut self, prefix: &str, table: toml::Table) {
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            if let toml::Value::Table(inner) = value {
                self.give_file_table(&format!("{key}."), inner);
            } else if let Some(value) = as_text(&value) {
                self.properties.insert((key, Source::File), value);
            } else {
                self.mistakes
                    .push(format!("x.{key} in the file: allowed: a value"));
            }
        }
    }

    /// Keeps what `judge` says against a property in force, by its key and value.
    ///
    /// Must come before anything is printed: the value of a refused property is treated as a secret.
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

    /// The value in force, and where it comes from; `None` when nothing is given and there is no default.
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

    /// The librdkafka properties in force, and where each comes from.
    #[must_use]
    pub fn properties(&self) -> BTreeMap<&str, (&str, Source)> {
        let mut all = BTreeMap::new();
        for ((key, source), value) in &self.properties {
            all.entry(key.as_str()).or_insert((value.as_str(), *source));
        }
        all
    }
}

/// Counted from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.bytes().take(at);
    1 + before.filter(|&byte| byte == b'\n').count()
}

fn as_text(value: &toml::Value) -> Option<String> {
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
