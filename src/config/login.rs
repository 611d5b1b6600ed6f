//! Settings of the login at the brokers that cannot work: reported at start, since a client with them only waits.

use super::oauth;

const WITH_PASSWORD: &[&str] = &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
const ALLOWED: &str = "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER";

/// What is wrong with the properties of librdkafka that `get` returns, one line each; never with a value that may be secret.
pub(super) fn mistakes<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let protocol = get("security.protocol").unwrap_or("plaintext");
    let logs_in = protocol.to_ascii_lowercase().starts_with("sasl_");
    // One is an alias of the other.
    let mechanism = get("sasl.mechanisms").or_else(|| get("sasl.mechanism"));
    match mechanism {
        None if logs_in => vec![format!(
            "-X sasl.mechanism: required with security.protocol={protocol}; allowed: {ALLOWED}"
        )],
        Some(known) if WITH_PASSWORD.contains(&known) => ["sasl.username", "sasl.password"]
            .into_iter()
            .filter(|key| logs_in && get(key).is_none_or(str::is_empty))
            .map(|key| format!("-X {key}: required with sasl.mechanism={known}"))
            .collect(),
        Some("OAUTHBEARER") => oauth::mistakes(&get),
        Some("GSSAPI") => vec![format!(
            "-X sasl.mechanism=GSSAPI cannot work: Kerberos is not built in; allowed: {ALLOWED}"
        )],
        Some(unknown) => vec![format!(
            "-X sasl.mechanism={unknown}: unknown mechanism; allowed: {ALLOWED}"
        )],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_that_cannot_work_is_refused() {
        const USER: (&str, &str) = ("sasl.username", "me");
        const PASSWORD: (&str, &str) = ("sasl.password", "hunter2");
        let protocol = ("security.protocol", "SASL_SSL");
        let mechanism = |name| ("sasl.mechanism", name);
        for (properties, expected) in [
            (&[][..], None),
            (&[USER, PASSWORD], None),
            (&[("security.protocol", "ssl")], None),
            (&[protocol, mechanism("PLAIN"), USER, PASSWORD], None),
            (
                &[protocol, mechanism("SCRAM-SHA-512"), USER, PASSWORD],
                None,
            ),
            (&[mechanism("PLAIN")], None),
            (
                &[protocol],
                Some("required with security.protocol=SASL_SSL"),
            ),
            (
                &[protocol, mechanism("OAUTHBEARER")],
                Some("sasl.oauthbearer.method: required"),
            ),
            (
                &[mechanism("OAUTHBEARER")],
                Some("sasl.oauthbearer.method: required"),
            ),
            (
                &[("sasl.mechanisms", "GSSAPI")],
                Some("Kerberos is not built in"),
            ),
            (
                &[protocol, mechanism("plain"), USER, PASSWORD],
                Some("unknown mechanism"),
            ),
            (
                &[protocol, mechanism("PLAIN"), USER],
                Some("-X sasl.password: required"),
            ),
            (
                &[
                    protocol,
                    mechanism("PLAIN"),
                    PASSWORD,
                    ("sasl.username", ""),
                ],
                Some("-X sasl.username: required"),
            ),
            (
                &[
                    protocol,
                    mechanism("OAUTHBEARER"),
                    ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
                ],
                None,
            ),
        ] {
            let get = |key: &str| {
                let found = properties.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| *value)
            };
            let found = mistakes(get);
            match expected {
                None => assert!(found.is_empty(), "{properties:?}: {found:?}"),
                Some(text) => {
                    assert_eq!(found.len(), 1, "{properties:?}: {found:?}");
                    assert!(found[0].contains(text), "{properties:?}: {found:?}");
                    assert!(!found[0].contains("hunter2"), "{found:?}");
                }
            }
        }
    }
}
