//! What `hookstream config` prints, and the reference of all settings.

use std::fmt::Write as _;

use super::files::is_file_variable;
use super::layers::{Layers, Source};
use super::parse;
use super::secrets::{REDACTED, is_secret, may_be_secret};
use super::settings::Machine;
use super::table::{SETTINGS, Setting};

/// Environment variables that look like settings but match none, usually typos.
///
/// They cannot be rejected: Kubernetes sets `HOOKSTREAM_SERVICE_HOST`, `HOOKSTREAM_PORT_9400_TCP_ADDR` and the like for
/// a Service named hookstream. Those do not even deserve a warning.
#[must_use]
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        matches!(name, "HOOKSTREAM_X" | "HOOKSTREAM_CONFIG")
            || is_file_variable(name)
            || SETTINGS.iter().any(|setting| setting.variable() == name)
    };
    let of_a_service = |name: &str| {
        name.ends_with("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.ends_with("_PORT")
            || name.contains("_PORT_")
    };
    let mut unknown: Vec<_> = names
        .into_iter()
        .filter(|name| name.starts_with("HOOKSTREAM_") && !known(name) && !of_a_service(name))
        .collect();
    unknown.sort_unstable();
    unknown
}

/// One row of `hookstream config`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EffectiveSetting {
    /// The setting.
    pub name: String,
    /// Its value; [`REDACTED`] for a secret.
    pub value: String,
    /// Its source.
    pub source: &'static str,
}

/// All effective settings, with secrets redacted (**Secret**).
#[must_use]
pub fn effective(layers: &Layers, machine: &Machine) -> Vec<EffectiveSetting> {
    let row = |name: &str, value: &str, source: Source| EffectiveSetting {
        name: name.to_owned(),
        value: value.to_owned(),
        source: source.name(),
    };
    let wrong = parse::wrong(layers, machine);
    let hidden = |setting: &Setting, source| {
        layers.is_from_file(setting, source) && wrong.contains(setting.name)
    };
    let mut rows: Vec<_> = SETTINGS
        .iter()
        .map(|setting| match (layers.effective(setting), setting.name) {
            (Some((_, source)), name) if hidden(setting, source) => row(name, REDACTED, source),
            (Some((value, source)), name) if may_be_secret(name, value) => {
                row(name, REDACTED, source)
            }
            (Some((value, source)), name) => row(name, value, source),
            (None, "instance") => row("instance", &machine.host_name, Source::Default),
            (None, "workers") => row("workers", &machine.cores.to_string(), Source::Default),
            (None, name) => row(name, "", Source::Default),
        })
        .collect();
    let mappings = layers.mapping_rows();
    rows.extend(mappings.map(|(name, value)| row(&name, &value, Source::File)));
    rows.extend(
        layers
            .properties()
            .into_iter()
            .map(|(key, (value, source))| {
                row(
                    &format!("x.{key}"),
                    &if is_secret(key) || layers.refused.contains(key) {
                        REDACTED.to_owned()
                    } else {
                        one_line(value)
                    },
                    source,
                )
            }),
    );
    rows
}

/// The first line of a value; certificates have many.
fn one_line(value: &str) -> String {
    match value.split_once('\n') {
        Some((first, _)) => format!("{first}…"),
        None => value.to_owned(),
    }
}

/// The settings table of `docs/reference.md`, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = "| flag, key in the file | variable | default | description; allowed values |\n|---|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = if setting.default.is_empty() {
            String::new()
        } else {
            format!("`{}`", setting.default)
        };
        let value = if setting.is_switch() {
            String::new()
        } else {
            format!(" {}", setting.value)
        };
        let line = format!(
            "| `--{}{value}` | `{}` | {default} | {}; {} |",
            setting.name,
            setting.variable(),
            setting.help,
            setting.range,
        );
        // Writing to a string does not fail.
        writeln!(text, "{line}").ok();
    }
    text.push_str("| `-X KEY=VALUE`, table `[x]` | `HOOKSTREAM_X` |  | Any librdkafka property (TLS, SASL, …); repeat the flag, or separate properties by `;` in the variable. The value `@FILE` is read from that file; a leading `@@` is a literal `@` |\n");
    text.push_str(
        "| `--config FILE` | `HOOKSTREAM_CONFIG` |  | A TOML file with any of these settings, and with event mappings, table `[event-mapping.\"TOPIC\"]` |\n",
    );
    text.push_str("|  | `HOOKSTREAM_…_FILE` |  | A file with the value of any of these variables except `HOOKSTREAM_CONFIG`; one trailing newline is dropped; for `HOOKSTREAM_X`, one property per line |\n");
    text
}
