//! What `hookstream config` prints, and the reference of all settings.

use std::fmt::Write as _;

use super::files::is_file_variable;
use super::layers::{Layers, Source};
use super::parse;
use super::secrets::{REDACTED, is_secret, may_hold_credentials};
use super::settings::Machine;
use super::table::{SETTINGS, Setting};

/// Of the names of environment variables, those that look like a setting and are none: mistyped, as a rule.
///
/// They cannot be refused: Kubernetes makes `HOOKSTREAM_SERVICE_HOST`, `HOOKSTREAM_PORT_9400_TCP_ADDR` and the like for
/// a Service that is called hookstream. Those are not even worth a warning.
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
    /// Where it comes from.
    pub source: &'static str,
}

/// All settings in force, secrets redacted (**Secret**).
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
            (Some((value, source)), "otlp-endpoint") if may_hold_credentials(value) => {
                row("otlp-endpoint", REDACTED, source)
            }
            (Some((value, source)), name) => row(name, value, source),
            (None, "instance") => row("instance", &machine.host_name, Source::Default),
            (None, "workers") => row("workers", &machine.cores.to_string(), Source::Default),
            (None, name) => row(name, "", Source::Default),
        })
        .collect();
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

/// A certificate is many lines: its first stands for it.
fn one_line(value: &str) -> String {
    match value.split_once('\n') {
        Some((first, _)) => format!("{first}…"),
        None => value.to_owned(),
    }
}

/// The settings table of `docs/reference.md`, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = "| flag, key in the file | variable | default | what it does; what is allowed |\n|---|---|---|---|\n".to_owned();
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
    text.push_str("| `-X KEY=VALUE`, table `[x]` | `HOOKSTREAM_X` |  | Any librdkafka property (TLS, SASL, …); repeated, in the variable separated by `;`. A value `@FILE` is what the file holds, `@@` at the beginning a literal `@` |\n");
    text.push_str("| `--config FILE` | `HOOKSTREAM_CONFIG` |  | A TOML file with any of these |\n");
    text.push_str("|  | `HOOKSTREAM_…_FILE` |  | A file with the value of any of these variables except `HOOKSTREAM_CONFIG`; one newline at its end is dropped; for `HOOKSTREAM_X`: one property a line |\n");
    text
}
