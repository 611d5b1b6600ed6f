//! Values read from files: a setting (`HOOKSTREAM_<FLAG>_FILE`), a property (`@FILE`), or a whole service binding. Any
//! such file may hold a secret, so no message quotes its content.
//!
//! Pure: the caller reads the files, and reads them again to detect changes ([`Connection`]).

use std::collections::BTreeMap;

use super::binding::{self, Binding, without_newline};
use super::layers::{Given, Layers, Source};
use super::oauth::TokenSource;
use super::secrets::is_secret;
use super::table::{SETTINGS, Setting};

/// The connection settings that files may change. No `Debug`, since it holds secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// The bootstrap servers.
    pub brokers: String,
    /// Effective librdkafka properties.
    pub properties: BTreeMap<String, String>,
    /// Contents of the files that librdkafka reads itself, by property.
    pub certificates: BTreeMap<String, Vec<u8>>,
}

impl Connection {
    /// Where its tokens come from, if it logs in with tokens of a server.
    pub(crate) fn token_source(&self) -> Option<TokenSource> {
        TokenSource::of(&self.properties)
    }
}

/// Properties that name a file that librdkafka reads when a client is created.
const CERTIFICATES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
    "https.ca.location",
];

impl Setting {
    /// The environment variable that names a file with the value.
    ///
    /// A setting's own variable takes precedence: `HOOKSTREAM_CA_FILE` is `--ca-file`, not the file of a `--ca`.
    #[must_use]
    pub fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable())
    }
}

/// Whether the environment variable `name` names a file with a setting's value.
pub(super) fn is_file_variable(name: &str) -> bool {
    name == "HOOKSTREAM_X_FILE"
        || SETTINGS
            .iter()
            .any(|setting| setting.file_variable() == name)
}

impl Layers {
    /// Whether any value comes from a file and may change.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.has_files
    }

    /// Adds a problem found by the caller.
    pub fn refuse(&mut self, mistake: impl Into<String>) {
        self.mistakes.push(mistake.into());
    }

    /// Adds a problem with a value that could not be read: of a setting, or of the whole file with `config`.
    pub fn refuse_value(&mut self, name: &str, mistake: impl Into<String>) {
        self.unread.insert(name.to_owned());
        self.refuse(mistake);
    }

    /// Whether a problem names a setting whose value could not be read: it may be gone when that is fixed.
    pub(super) fn may_follow_from_unread(&self, mistake: &str) -> bool {
        let mut flags = mistake.match_indices("--").map(|(at, _)| {
            let flag = &mistake[at + 2..];
            let end = flag.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
            &flag[..end.unwrap_or(flag.len())]
        });
        flags.any(|flag| self.unread.contains(flag))
    }

    /// Adds a setting's value from the file that its environment variable names.
    pub fn give_from_file(&mut self, setting: &Setting, content: &str) {
        self.has_files = true;
        let given = Given {
            text: without_newline(content).to_owned(),
            is_from_file: true,
        };
        self.given
            .insert((setting.name.to_owned(), Source::Environment), given);
    }

    /// Whether the value from `source` comes from its own file.
    pub(super) fn is_from_file(&self, setting: &Setting, source: Source) -> bool {
        let given = self.given.get(&(setting.name.to_owned(), source));
        given.is_some_and(|given| given.is_from_file)
    }

    /// Adds the properties of the file that `HOOKSTREAM_X_FILE` names: one `key=value` per line; empty lines and lines
    /// that start with `#` are skipped.
    pub fn give_property_lines(&mut self, path: &str, text: &str) {
        self.has_files = true;
        let lines = text.lines().map(str::trim);
        let lines: Vec<_> = lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .collect();
        if lines.is_empty() {
            // A file that is being replaced must not count as one without properties.
            self.refuse(format!(
                "HOOKSTREAM_X_FILE {path} is empty; must contain lines of key=value"
            ));
        }
        for line in lines {
            self.give_property(line, Source::Environment);
        }
    }

    /// Replaces `@FILE` with the content of the file, and a leading `@@` with a literal `@`, in all effective properties.
    pub fn resolve_properties(&mut self, read: impl Fn(&str) -> Result<String, String>) {
        let in_force: Vec<_> = self
            .properties()
            .into_iter()
            .filter(|(_, (value, _))| value.starts_with('@'))
            .map(|(key, (value, source))| (key.to_owned(), source, value[1..].to_owned()))
            .collect();
        for (key, source, rest) in in_force {
            let value = if rest.starts_with('@') {
                rest
            } else {
                self.has_files = true;
                match read(&rest) {
                    Ok(content) if without_newline(&content).is_empty() => {
                        self.refuse(reference_mistake(&key, source, &rest, "the file is empty"));
                        continue;
                    }
                    Ok(content) => without_newline(&content).to_owned(),
                    Err(reason) => {
                        self.refuse(reference_mistake(&key, source, &rest, &reason));
                        continue;
                    }
                }
            };
            self.properties.insert((key, source), value);
        }
    }

    /// Adds a service binding, which has the lowest precedence. `files` are those of the directory `place`.
    pub fn give_binding(&mut self, place: &str, files: &BTreeMap<String, Vec<u8>>) {
        self.has_files = true;
        let binding = match Binding::read(place, files) {
            Ok(binding) => binding,
            Err(mistakes) => {
                self.mistakes.extend(mistakes);
                return;
            }
        };
        self.give("brokers", Source::Binding, binding.brokers);
        let given: Vec<String> = self.properties().into_keys().map(str::to_owned).collect();
        for (own, value) in binding.properties {
            if !given.iter().any(|given| binding::replaces(given, own)) {
                self.properties
                    .insert((own.to_owned(), Source::Binding), value);
            }
        }
    }

    /// Keeps the contents of the certificate files that effective properties name. `read` returns `None` for a directory.
    pub fn keep_certificates(&mut self, read: impl Fn(&str) -> Result<Option<Vec<u8>>, String>) {
        let named: Vec<_> = self
            .properties()
            .into_iter()
            .filter(|(key, (value, _))| CERTIFICATES.contains(key) && *value != "probe")
            .map(|(key, (value, source))| (key.to_owned(), value.to_owned(), source))
            .collect();
        for (key, path, source) in named {
            self.has_files = true;
            match read(&path) {
                Ok(Some(content)) if content.is_empty() => self.refuse(format!(
                    "-X {key} ({}): {path}: the file is empty",
                    source.name()
                )),
                Ok(content) => {
                    self.certificates.insert(key, content.unwrap_or_default());
                }
                Err(reason) => {
                    self.refuse(format!("-X {key} ({}): {path}: {reason}", source.name()));
                }
            }
        }
    }

    /// The connection settings.
    ///
    /// # Errors
    /// One line per problem in any setting.
    pub fn connection(&self) -> Result<Connection, Vec<String>> {
        if !self.mistakes.is_empty() {
            return Err(self.mistakes.clone());
        }
        let brokers = SETTINGS.iter().find(|setting| setting.name == "brokers");
        let brokers = brokers.and_then(|setting| self.effective(setting));
        let properties = self.properties().into_iter();
        Ok(Connection {
            brokers: brokers.map_or_else(String::new, |(value, _)| value.trim().to_owned()),
            properties: properties
                .map(|(key, (value, _))| (key.to_owned(), value.to_owned()))
                .collect(),
            certificates: self.certificates.clone(),
        })
    }
}

/// A user who does not know `@FILE` may have a password that starts with `@`, so text that may be a password is not
/// quoted.
fn reference_mistake(key: &str, source: Source, path: &str, reason: &str) -> String {
    let source = source.name();
    if is_secret(key) && !path.contains('/') {
        return format!(
            "-X {key} ({source}): cannot read the file named by the value: {reason}; write @@ for a value that starts with @"
        );
    }
    format!("-X {key} ({source}): {path}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::machine;
    use super::super::{Properties, Settings, effective, unknown_variables};
    use super::*;

    fn setting(name: &str) -> &'static Setting {
        SETTINGS.iter().find(|one| one.name == name).unwrap()
    }

    fn layers() -> Layers {
        let mut layers = Layers::new();
        layers.give("brokers", Source::Flag, "b:1");
        layers
    }

    fn properties(layers: &Layers) -> Properties {
        Settings::check(layers, &machine()).unwrap().properties
    }

    fn binding() -> BTreeMap<String, Vec<u8>> {
        [
            ("type", "kafka"),
            ("bootstrapServers", "bound:9094"),
            ("securityProtocol", "SASL_SSL"),
            ("saslMechanism", "SCRAM-SHA-512"),
            ("username", "bound"),
            ("password", "@hunter2"),
            ("ssl.truststore.crt", "CA"),
        ]
        .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
        .into()
    }

    #[test]
    fn no_file_variable_is_another_settings_own_variable() {
        for one in SETTINGS {
            let file = one.file_variable();
            assert!(
                SETTINGS.iter().all(|other| other.variable() != file),
                "{file} would mean two things"
            );
        }
        let unknown = unknown_variables(
            [
                "HOOKSTREAM_CA_FILE",
                "HOOKSTREAM_CA_FILE_FILE",
                "HOOKSTREAM_TIMEOUT_FILE",
                "HOOKSTREAM_X_FILE",
                "HOOKSTREAM_TIMEUOT_FILE",
                "HOOKSTREAM_CONFIG_FILE",
            ]
            .map(str::to_owned),
        );
        assert_eq!(
            unknown,
            ["HOOKSTREAM_CONFIG_FILE", "HOOKSTREAM_TIMEUOT_FILE"]
        );
    }

    #[test]
    fn a_value_from_a_file_loses_one_newline_and_ranks_as_the_environment() {
        let mut layers = layers();
        layers.give("timeout", Source::File, "9s");
        layers.give_from_file(setting("timeout"), "3s\n");
        let timeout = |layers: &Layers| Settings::check(layers, &machine()).unwrap().timeout;
        assert_eq!(timeout(&layers).as_secs(), 3);
        layers.give("timeout", Source::Flag, "1s");
        assert_eq!(timeout(&layers).as_secs(), 1);
        assert_eq!(without_newline("a\n\n"), "a\n");
        assert_eq!(without_newline("a\r\n"), "a");
    }

    #[test]
    fn what_may_follow_from_a_value_that_could_not_be_read_is_not_reported() {
        for (unread, given) in [
            ("brokers", None),
            ("kafka-binding", None),
            ("config", None),
            ("http-key", Some("http-certificate")),
            ("schema-registry", Some("schema-registry-user")),
            ("schema-registry", Some("schema-registry-token")),
            ("egress-proxy", Some("egress-proxy-user")),
            ("breaker-probe", Some("breaker-max-probe")),
        ] {
            let mut layers = match given {
                None => Layers::default(),
                Some(_) => layers(),
            };
            if let Some(given) = given {
                layers.give(given, Source::Flag, "1s");
            }
            layers.refuse_value(unread, "it is gone");
            let mistakes = Settings::check(&layers, &machine()).unwrap_err();
            assert_eq!(mistakes, ["it is gone"], "{unread}");
        }
        let mut layers = Layers::default();
        layers.refuse_value("breaker-probe", "it is gone");
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert_eq!(
            mistakes.len(),
            2,
            "what has nothing to do with it is: {mistakes:?}"
        );
    }

    #[test]
    fn an_invalid_value_from_a_file_is_not_quoted() {
        let mut layers = layers();
        layers.give_from_file(setting("timeout"), "hunter2");
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "--timeout: invalid value in the file of HOOKSTREAM_TIMEOUT_FILE; allowed: 100ms to 60s"
            ]
        );
        let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_property_is_read_from_the_file_after_its_at_sign() {
        let mut layers = layers();
        layers.give_property("sasl.password=@/etc/kafka/password", Source::Flag);
        layers.give_property("sasl.username=@@me", Source::Environment);
        layers.give_file("[x]\nclient.rack = '@/etc/zone'\n", "f");
        layers.resolve_properties(|path| match path {
            "/etc/kafka/password" => Ok("@@hunter2\n".to_owned()),
            "/etc/zone" => Ok("a".to_owned()),
            _ => Err("no such file".to_owned()),
        });
        let expected = [
            ("client.rack", "a"),
            ("sasl.password", "@@hunter2"),
            ("sasl.username", "@me"),
        ];
        assert_eq!(
            *properties(&layers),
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        let printed = serde_json::to_string(&effective(&layers, &machine())).unwrap();
        assert!(!printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn an_unreadable_file_is_named_unless_its_name_may_be_the_secret() {
        let mut layers = layers();
        for property in [
            "sasl.password=@hunter2",
            "ssl.key.password=@/etc/key",
            "client.rack=@zone",
        ] {
            layers.give_property(property, Source::Flag);
        }
        layers.resolve_properties(|path| match path {
            "/etc/key" => Ok("\n".to_owned()),
            _ => Err("no such file".to_owned()),
        });
        let mut mistakes = Settings::check(&layers, &machine()).unwrap_err();
        mistakes.sort_unstable();
        assert_eq!(
            mistakes,
            [
                "-X client.rack (flag): zone: no such file",
                "-X sasl.password (flag): cannot read the file named by the value: no such file; write @@ for a value that starts with @",
                "-X ssl.key.password (flag): /etc/key: the file is empty",
            ]
        );
    }

    #[test]
    fn a_property_file_has_one_property_per_line() {
        let mut layers = layers();
        layers.give_property_lines(
            "/x",
            "# for the brokers\nsasl.username=me\n\n sasl.password = a=b;c \n",
        );
        let expected = [("sasl.password", "a=b;c"), ("sasl.username", "me")];
        assert_eq!(
            *properties(&layers),
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        layers.give_property_lines("/y", "\n");
        let mistakes = Settings::check(&layers, &machine()).unwrap_err();
        assert!(
            mistakes[0].starts_with("HOOKSTREAM_X_FILE /y is empty"),
            "{mistakes:?}"
        );
    }

    #[test]
    fn a_binding_has_the_lowest_precedence() {
        let mut layers = Layers::new();
        layers.give_binding("/b", &binding());
        let settings = Settings::check(&layers, &machine()).unwrap();
        assert_eq!(settings.brokers, "bound:9094");
        assert!(
            settings
                .properties
                .contains(&("sasl.password".to_owned(), "@hunter2".to_owned())),
            "@ has no special meaning in a binding"
        );
        let rows = effective(&layers, &machine());
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!(
            (row("brokers").value.as_str(), row("brokers").source),
            ("bound:9094", "binding")
        );
        assert_eq!(row("x.sasl.password").value, super::super::REDACTED);
        assert_eq!(row("x.sasl.username").source, "binding");

        let mut layers = Layers::new();
        layers.give_file(
            "brokers = 'mine:1'\n[x]\n'ssl.ca.location' = '/ca'\n'sasl.username' = 'me'\n",
            "f",
        );
        layers.give_binding("/b", &binding());
        let settings = Settings::check(&layers, &machine()).unwrap();
        assert_eq!(settings.brokers, "mine:1");
        let keys: Vec<_> = settings.properties.iter().map(|(key, _)| key).collect();
        assert!(!keys.iter().any(|key| *key == "ssl.ca.pem"), "{keys:?}");
        assert!(
            settings
                .properties
                .contains(&("sasl.username".to_owned(), "me".to_owned()))
        );
    }

    #[test]
    fn an_invalid_binding_is_the_only_mistake_reported() {
        let mut layers = Layers::new();
        layers.give("kafka-binding", Source::Flag, "/b");
        layers.give_binding("/b", &BTreeMap::new());
        assert_eq!(
            Settings::check(&layers, &machine()).unwrap_err(),
            ["--kafka-binding /b: type is missing; allowed: kafka"]
        );
    }

    #[test]
    fn a_connection_changes_with_the_content_of_its_certificate_files() {
        let connection = |content: &str| {
            let mut layers = layers();
            layers.give_property("ssl.ca.location=/ca", Source::Flag);
            layers.give_property("ssl.key.location=/keys", Source::Flag);
            layers.keep_certificates(|path| match path {
                "/ca" => Ok(Some(content.as_bytes().to_vec())),
                _ => Ok(None),
            });
            layers.connection()
        };
        assert!(connection("a").is_ok());
        assert!(connection("a") == connection("a"));
        assert!(connection("a") != connection("b"));
        assert_eq!(
            connection("").err().unwrap(),
            ["-X ssl.ca.location (flag): /ca: the file is empty"]
        );
    }
}
