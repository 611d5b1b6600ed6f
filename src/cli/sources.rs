//! Collects the settings from flags, environment, files and a service binding, at start and again to detect changed
//! credentials.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ArgMatches;
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::exit::{CliError, Exit};
use crate::config::table::{SETTINGS, Setting};
use crate::config::{self, Layers, Settings, Source, TokenSource, is_served_here};
use crate::edge::kafka::credentials;
use crate::edge::kafka::oauth::{self, Tokens};
use crate::edge::small_file::{self, MAX_BUNDLE_BYTES, MAX_SECRET_BYTES};
use crate::model::token::TokenFault;

/// Collects the settings. Errors are kept for [`Settings::check`].
pub(super) fn layers(matches: &ArgMatches) -> Layers {
    let mut layers = Layers::new();
    for setting in SETTINGS {
        if let Some(value) = matches.get_one::<String>(setting.name) {
            layers.give(setting.name, Source::Flag, value);
        }
        give_environment(&mut layers, setting);
    }
    for property in matches.get_many::<String>("x").into_iter().flatten() {
        layers.give_property(property, Source::Flag);
    }
    give_properties(&mut layers);
    let file = match matches.get_one::<String>("config") {
        Some(file) => Ok(Some(file.clone())),
        None => variable("HOOKSTREAM_CONFIG"),
    };
    match file {
        Ok(None) => {}
        Ok(Some(file)) => match small_file::read_text(Path::new(&file), MAX_BUNDLE_BYTES) {
            Ok(text) => layers.give_file(&text, &file),
            Err(error) => layers.refuse_value("config", format!("--config {file}: {error}")),
        },
        Err(mistake) => layers.refuse_value("config", mistake),
    }
    layers.resolve_properties(|path| {
        small_file::read_text(Path::new(path), MAX_SECRET_BYTES).map_err(|error| error.to_string())
    });
    give_binding(&mut layers);
    layers.keep_certificates(|path| match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(None),
        _ => certificate(Path::new(path)).map(Some),
    });
    layers.judge_properties(wrong_property);
    layers
}

/// Tries the connection settings without connecting, and updates the running clients when the files that `matches` name
/// change.
///
/// # Errors
/// [`CliError`] when no client can be made with the settings, or the thread cannot be started.
pub(super) fn follow(
    matches: &ArgMatches,
    layers: &Layers,
    settings: &Settings,
) -> Result<(), CliError> {
    // The check has reported any error.
    let Ok(current) = layers.connection() else {
        return Ok(());
    };
    if !current.properties.is_empty() {
        credentials::try_connection(&current)
            .map_err(|failure| CliError::new(Exit::Usage, failure.to_string()))?;
    }
    let tokens = match current.token_source() {
        Some(source) => Some(fetch_tokens(settings, source)?),
        None => None,
    };
    if !layers.has_files() {
        return Ok(());
    }
    let matches = matches.clone();
    let read = move || self::layers(&matches).connection();
    credentials::watch(&settings.credentials, current, tokens, Box::new(read)).map_err(|error| {
        CliError::new(
            Exit::Failure,
            format!("starting the credentials thread: {error}"),
        )
    })
}

/// Gets the first token. While the token server does not respond, the clients report that they have none.
fn fetch_tokens(settings: &Settings, source: TokenSource) -> Result<Tokens, CliError> {
    let tokens = oauth::start(&settings.credentials, source).map_err(|error| {
        CliError::new(
            Exit::Failure,
            format!("starting the tokens thread: {error}"),
        )
    })?;
    match tokens.first() {
        Err(TokenFault::Refused(reason)) => Err(CliError::new(
            Exit::Usage,
            format!(
                "the token server rejects the login of sasl.oauthbearer.*: {reason}; check -X sasl.oauthbearer.client.id, sasl.oauthbearer.client.secret and sasl.oauthbearer.scope"
            ),
        )),
        // Logged by the thread, which goes on.
        Ok(()) | Err(TokenFault::Failed(_)) => Ok(tokens),
    }
}

/// Takes a setting from its variable, or from the file that its `_FILE` variable names.
fn give_environment(layers: &mut Layers, setting: &Setting) {
    let (name, file) = (setting.variable(), setting.file_variable());
    match value_or_file(&name, &file) {
        Ok(Some(Found::Value(value))) => layers.give(setting.name, Source::Environment, value),
        Ok(Some(Found::File(_, content))) => layers.give_from_file(setting, &content),
        Ok(None) => {}
        Err(mistake) => layers.refuse_value(setting.name, mistake),
    }
}

fn give_properties(layers: &mut Layers) {
    match value_or_file("HOOKSTREAM_X", "HOOKSTREAM_X_FILE") {
        Ok(Some(Found::Value(value))) => {
            let properties = value.split([';', '\n']);
            properties
                .filter(|property| !property.trim().is_empty())
                .for_each(|property| layers.give_property(property, Source::Environment));
        }
        Ok(Some(Found::File(path, content))) => layers.give_property_lines(&path, &content),
        Ok(None) => {}
        Err(mistake) => layers.refuse(mistake),
    }
}

enum Found {
    Value(String),
    /// The path and content of a file.
    File(String, String),
}

fn value_or_file(name: &str, file: &str) -> Result<Option<Found>, String> {
    let (value, path) = (variable(name)?, variable(file)?);
    match (value, path) {
        (Some(_), Some(_)) => Err(format!(
            "{name} and {file} are both in the environment: set only one of them"
        )),
        (Some(value), None) => Ok(Some(Found::Value(value))),
        (None, Some(path)) => match small_file::read_text(Path::new(&path), MAX_SECRET_BYTES) {
            Ok(content) => Ok(Some(Found::File(path, content))),
            Err(error) => Err(format!("{file} {path}: {error}")),
        },
        (None, None) => Ok(None),
    }
}

fn give_binding(layers: &mut Layers) {
    let setting = SETTINGS
        .iter()
        .find(|setting| setting.name == "kafka-binding");
    let place = setting.and_then(|setting| layers.effective(setting));
    let Some((place, _)) = place.filter(|(place, _)| !place.is_empty()) else {
        return;
    };
    let place = place.to_owned();
    match read_binding(Path::new(&place)) {
        Ok(files) => layers.give_binding(&place, &files),
        Err(reason) => layers.refuse(format!("--kafka-binding {place}: {reason}")),
    }
}

/// The files of a directory, by name. In a Kubernetes volume each is a link through `..data`, a link to the directory of
/// one version of the Secret that is replaced atomically: all files are read from its current target.
fn read_binding(place: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let version = place.join("..data");
    let place = match std::fs::canonicalize(&version) {
        Ok(version) => version,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => place.to_owned(),
        Err(error) => return Err(format!("..data: {error}")),
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(&place).map_err(reason)? {
        let entry = entry.map_err(reason)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        // The metadata of the target, not of the link.
        let is_file = std::fs::metadata(&path).is_ok_and(|found| found.is_file());
        if is_file && !name.starts_with('.') {
            let content = small_file::read(&path, MAX_BUNDLE_BYTES)
                .map_err(|error| format!("{name}: {error}"))?;
            files.insert(name, content);
        }
    }
    Ok(files)
}

fn certificate(path: &Path) -> Result<Vec<u8>, String> {
    small_file::read(path, MAX_BUNDLE_BYTES).map_err(|error| error.to_string())
}

fn reason(error: std::io::Error) -> String {
    error.to_string()
}

/// Why librdkafka refuses a property. Checked before a client is created, since the error of a client shows the value, and
/// the value of a mistyped `sasl.password` is secret too.
fn wrong_property(key: &str, value: &str) -> Option<String> {
    if is_served_here(key) {
        // Checked with the login, as one.
        return value
            .contains('\0')
            .then(|| "must not contain NUL".to_owned());
    }
    let mut one = ClientConfig::new();
    one.set(key, value);
    // The client passes both on as C strings, and panics on a NUL.
    if key.contains('\0') || value.contains('\0') {
        return Some("must not contain NUL".to_owned());
    }
    match one.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Some("unknown librdkafka property".to_owned())
        }
        Err(KafkaError::ClientConfig(_, what, ..)) if !config::is_secret(key) => Some(what),
        Err(_) => Some("librdkafka refuses this value".to_owned()),
    }
}

fn variable(name: &str) -> Result<Option<String>, String> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(format!("{name} is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_is_checked_by_librdkafka_without_revealing_secrets() {
        assert_eq!(wrong_property("sasl.password", "hunter2"), None);
        assert_eq!(wrong_property("socket.keepalive.enable", "true"), None);
        let typo = wrong_property("sasl.passwrod", "hunter2").unwrap();
        assert!(!typo.contains("hunter2"), "{typo}");
        let value = wrong_property("security.protocol", "nonsense").unwrap();
        assert!(value.contains("nonsense"), "{value}");
        assert!(wrong_property("client.rack", "a\0b").is_some());
    }

    #[test]
    fn a_binding_is_read_from_one_version_of_the_secret() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let version = |name: &str, user: &str| {
            std::fs::create_dir(place.join(name)).unwrap();
            std::fs::write(place.join(name).join("user"), user).unwrap();
        };
        version("..1", "old");
        std::os::unix::fs::symlink("..1", place.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/user", place.join("user")).unwrap();
        let user = || read_binding(place).map(|files| files["user"].clone());
        assert_eq!(user().unwrap(), b"old");
        version("..2", "new");
        std::os::unix::fs::symlink("..2", place.join("..next")).unwrap();
        std::fs::rename(place.join("..next"), place.join("..data")).unwrap();
        assert_eq!(user().unwrap(), b"new");
        assert_eq!(read_binding(place).unwrap().len(), 1);
        assert!(read_binding(&place.join("none")).is_err());
    }

    #[test]
    fn a_plain_directory_is_a_binding_too() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("type"), "kafka").unwrap();
        std::fs::create_dir(place.path().join("more")).unwrap();
        let files = read_binding(place.path()).unwrap();
        assert_eq!(files.into_keys().collect::<Vec<_>>(), ["type"]);
    }
}
