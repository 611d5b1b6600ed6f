//! A service binding of type `kafka` (servicebinding.io, workload projection): a directory with one file per key,
//! mounted from a Secret, with the keys that Strimzi's access operator writes.
//!
//! Pure: the caller reads the files. Certificates are passed as PEM text, not as paths, so that a certificate and its key
//! always come from the same version of the Secret.

use std::collections::BTreeMap;

/// The contents of a binding. No `Debug`, since it holds secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Binding {
    /// The bootstrap servers.
    pub(super) brokers: String,
    /// librdkafka properties, by name.
    pub(super) properties: BTreeMap<&'static str, String>,
}

const PROTOCOLS: &[&str] = &["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
/// Mechanisms that need only a user and a password.
const MECHANISMS: &[&str] = &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Groups of properties that exclude one another: if one is given, the binding's first of the group is ignored.
const ALTERNATIVES: &[&[&str]] = &[
    &["sasl.mechanism", "sasl.mechanisms"],
    &["ssl.ca.pem", "ssl.ca.location"],
    &[
        "ssl.certificate.pem",
        "ssl.certificate.location",
        "ssl.keystore.location",
    ],
    &["ssl.key.pem", "ssl.key.location", "ssl.keystore.location"],
];

/// Whether the property `given` overrides the binding's property `own`.
#[must_use]
pub(super) fn replaces(given: &str, own: &str) -> bool {
    given == own
        || ALTERNATIVES
            .iter()
            .any(|group| group.first() == Some(&own) && group.contains(&given))
}

impl Binding {
    /// Reads the files of the directory `place`, by name. Other keys, such as `sasl.jaas.config`, are meant for other
    /// programs and ignored.
    ///
    /// # Errors
    /// One line per problem, with directory, key and allowed values; never a secret value.
    pub(super) fn read(
        place: &str,
        files: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, Vec<String>> {
        let mut reader = Reader {
            place,
            files,
            mistakes: Vec::new(),
        };
        let binding = reader.binding();
        match binding {
            Some(binding) if reader.mistakes.is_empty() => Ok(binding),
            _ => Err(reader.mistakes),
        }
    }
}

struct Reader<'a> {
    place: &'a str,
    files: &'a BTreeMap<String, Vec<u8>>,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn binding(&mut self) -> Option<Binding> {
        self.one_of(&["type"], &["kafka"])?;
        let brokers = self.required(
            &["bootstrapServers", "bootstrap-servers", "bootstrap.servers"],
            "host:port, comma-separated",
        );
        let protocol = self.one_of(&["securityProtocol", "security.protocol"], PROTOCOLS)?;
        let mut properties = BTreeMap::from([("security.protocol", protocol.to_owned())]);
        if protocol.starts_with("SASL") {
            let mechanism = self.one_of(&["saslMechanism", "sasl.mechanism"], MECHANISMS);
            let user = self.required(&["username", "user"], "a user name");
            let password = self.required(&["password"], "a password");
            properties.insert("sasl.mechanism", mechanism?.to_owned());
            properties.insert("sasl.username", user?);
            properties.insert("sasl.password", password?);
        }
        if protocol.ends_with("SSL") {
            // Without it, the system's certificate authorities apply.
            if let Some(authorities) = self.optional("ssl.truststore.crt") {
                properties.insert("ssl.ca.pem", authorities);
            }
            let pair = ["ssl.keystore.crt", "ssl.keystore.key"];
            if pair.iter().any(|key| self.files.contains_key(*key)) {
                let [certificate, key] = pair.map(|key| {
                    self.required(&[key], "PEM; certificate and key must both be present")
                });
                properties.insert("ssl.certificate.pem", certificate?);
                properties.insert("ssl.key.pem", key?);
            }
        }
        Some(Binding {
            brokers: brokers?,
            properties,
        })
    }

    /// The first of `keys` that exists, with its content without the trailing newline.
    fn find(&mut self, keys: &[&str]) -> Option<(String, String)> {
        let (key, bytes) = keys.iter().find_map(|key| self.files.get_key_value(*key))?;
        let Ok(text) = std::str::from_utf8(bytes) else {
            let mistake = format!("--kafka-binding {}: {key} is not UTF-8", self.place);
            self.mistakes.push(mistake);
            return None;
        };
        Some((key.clone(), without_newline(text).to_owned()))
    }

    fn optional(&mut self, key: &str) -> Option<String> {
        if !self.files.contains_key(key) {
            return None;
        }
        self.required(&[key], "PEM")
    }

    fn required(&mut self, keys: &[&str], allowed: &str) -> Option<String> {
        let before = self.mistakes.len();
        let found = self.find(keys);
        if self.mistakes.len() > before {
            return None;
        }
        let problem = match found {
            Some((_, text)) if !text.is_empty() => return Some(text),
            Some((key, _)) => format!("{key} is empty"),
            None => format!("{} is missing", keys.join(" or ")),
        };
        let place = self.place;
        self.mistakes.push(format!(
            "--kafka-binding {place}: {problem}; allowed: {allowed}"
        ));
        None
    }

    /// One of a fixed set of words, in any case; returned as spelled in `allowed`.
    fn one_of(&mut self, keys: &[&str], allowed: &[&'static str]) -> Option<&'static str> {
        let listed = allowed.join(", ");
        let text = self.required(keys, &listed)?;
        let known = allowed.iter().find(|one| one.eq_ignore_ascii_case(&text));
        if known.is_none() {
            let place = self.place;
            // One of the keys exists, since there is a text.
            let key = keys.iter().find(|key| self.files.contains_key(**key));
            let key = key.unwrap_or(&"");
            self.mistakes.push(format!(
                "--kafka-binding {place}: {key} is {text:?}; allowed: {listed}"
            ));
        }
        known.copied()
    }
}

/// `text` without one trailing newline, which editors and `kubectl create secret --from-file` leave.
pub(super) fn without_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect()
    }

    const SCRAM: &[(&str, &str)] = &[
        ("type", "kafka"),
        ("provider", "strimzi"),
        ("bootstrap.servers", "b:9093"),
        ("bootstrapServers", "b:9093"),
        ("bootstrap-servers", "b:9093"),
        ("securityProtocol", "SASL_SSL"),
        ("saslMechanism", "SCRAM-SHA-512"),
        ("username", "hookstream"),
        ("password", "hunter2\n"),
        ("sasl.jaas.config", "ScramLoginModule required;"),
        ("ssl.truststore.crt", "CA PEM\n"),
    ];

    fn mistakes(pairs: &[(&str, &str)]) -> Vec<String> {
        Binding::read("/b", &files(pairs)).err().unwrap()
    }

    #[test]
    fn the_secret_of_a_scram_user_by_the_access_operator_is_read() {
        let binding = Binding::read("/b", &files(SCRAM)).ok().unwrap();
        assert_eq!(binding.brokers, "b:9093");
        let expected = [
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.password", "hunter2"),
            ("sasl.username", "hookstream"),
            ("security.protocol", "SASL_SSL"),
            ("ssl.ca.pem", "CA PEM"),
        ];
        let found: Vec<_> = binding
            .properties
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn each_spelling_of_a_key_is_read() {
        for (servers, protocol, mechanism, user) in [
            (
                "bootstrapServers",
                "securityProtocol",
                "saslMechanism",
                "user",
            ),
            (
                "bootstrap-servers",
                "security.protocol",
                "sasl.mechanism",
                "username",
            ),
            (
                "bootstrap.servers",
                "security.protocol",
                "sasl.mechanism",
                "user",
            ),
        ] {
            let given = files(&[
                ("type", "kafka"),
                (servers, "b:1"),
                (protocol, "sasl_plaintext"),
                (mechanism, "PLAIN"),
                (user, "u"),
                ("password", "p"),
            ]);
            let binding = Binding::read("/b", &given).ok().unwrap();
            assert_eq!(binding.properties["sasl.username"], "u");
            assert_eq!(binding.properties["security.protocol"], "SASL_PLAINTEXT");
        }
    }

    #[test]
    fn a_client_certificate_requires_its_key() {
        let mut given = vec![
            ("type", "kafka"),
            ("bootstrapServers", "b:1"),
            ("securityProtocol", "SSL"),
            ("ssl.keystore.crt", "CERT"),
        ];
        assert_eq!(
            mistakes(&given),
            [
                "--kafka-binding /b: ssl.keystore.key is missing; allowed: PEM; certificate and key must both be present"
            ]
        );
        given.push(("ssl.keystore.key", "KEY"));
        let binding = Binding::read("/b", &files(&given)).ok().unwrap();
        assert_eq!(binding.properties["ssl.certificate.pem"], "CERT");
        assert_eq!(binding.properties["ssl.key.pem"], "KEY");
        assert!(!binding.properties.contains_key("ssl.ca.pem"));
    }

    #[test]
    fn missing_and_unknown_keys_are_reported_with_the_allowed_values() {
        assert_eq!(
            mistakes(&[]),
            ["--kafka-binding /b: type is missing; allowed: kafka"]
        );
        assert_eq!(
            mistakes(&[("type", "postgresql")]),
            ["--kafka-binding /b: type is \"postgresql\"; allowed: kafka"]
        );
        assert_eq!(
            mistakes(&[("type", "kafka"), ("securityProtocol", "TLS")]),
            [
                "--kafka-binding /b: bootstrapServers or bootstrap-servers or bootstrap.servers is missing; allowed: host:port, comma-separated",
                "--kafka-binding /b: securityProtocol is \"TLS\"; allowed: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL",
            ]
        );
        let sasl = [
            ("type", "kafka"),
            ("bootstrapServers", "b:1"),
            ("securityProtocol", "SASL_SSL"),
            ("saslMechanism", "OAUTHBEARER"),
            ("password", ""),
        ];
        assert_eq!(
            mistakes(&sasl),
            [
                "--kafka-binding /b: saslMechanism is \"OAUTHBEARER\"; allowed: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
                "--kafka-binding /b: username or user is missing; allowed: a user name",
                "--kafka-binding /b: password is empty; allowed: a password",
            ]
        );
    }

    #[test]
    fn values_that_are_not_utf8_are_not_quoted() {
        let mut given = files(SCRAM);
        given.insert("password".to_owned(), vec![0xff, b'h']);
        let mistakes = Binding::read("/b", &given).err().unwrap();
        assert_eq!(mistakes, ["--kafka-binding /b: password is not UTF-8"]);
    }

    #[test]
    fn an_alternative_property_overrides_the_bindings() {
        assert!(replaces("ssl.ca.location", "ssl.ca.pem"));
        assert!(replaces("ssl.keystore.location", "ssl.key.pem"));
        assert!(replaces("sasl.mechanisms", "sasl.mechanism"));
        assert!(!replaces("sasl.username", "sasl.password"));
    }
}
