//! Kafka's OAUTHBEARER with tokens from an OpenID Connect or OAuth 2.0 server.
//!
//! The properties have librdkafka's names, but librdkafka is built without an HTTP client and never sees them: hookstream
//! fetches the tokens (`edge::kafka::oauth`) and passes them to its clients.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::PathBuf;

/// How tokens are obtained: `oidc`.
const METHOD: &str = "sasl.oauthbearer.method";
const GRANT: &str = "sasl.oauthbearer.grant.type";
const URL: &str = "sasl.oauthbearer.token.endpoint.url";
const CLIENT_ID: &str = "sasl.oauthbearer.client.id";
const CLIENT_SECRET: &str = "sasl.oauthbearer.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const CA: &str = "https.ca.location";

/// Other names of two of them.
const ALIASES: &[(&str, &str)] = &[
    ("sasl.oauthbearer.client.credentials.client.id", CLIENT_ID),
    (
        "sasl.oauthbearer.client.credentials.client.secret",
        CLIENT_SECRET,
    ),
];

/// The properties that hookstream serves itself.
const OWN: &[&str] = &[
    METHOD,
    GRANT,
    URL,
    CLIENT_ID,
    CLIENT_SECRET,
    SCOPE,
    EXTENSIONS,
    CA,
];

/// Whether hookstream serves a property itself, so that librdkafka must not see it.
#[must_use]
pub fn is_served_here(property: &str) -> bool {
    OWN.contains(&property) || ALIASES.iter().any(|(alias, _)| *alias == property)
}

/// Whether a change of the property is a matter of the next token alone.
pub(crate) fn concerns_tokens_only(property: &str) -> bool {
    property != METHOD && is_served_here(property)
}

/// Where the tokens of the Kafka clients come from. No `Debug`, since it holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// The token endpoint, `http` or `https`, without user info.
    pub url: String,
    /// The client's id.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// The scopes, separated by blanks; may be empty.
    pub scope: String,
    /// Names and values that go to the brokers with a token, in pairs.
    pub extensions: Vec<CString>,
    /// Trusted certificate authorities, PEM, besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl TokenSource {
    /// The source that the properties name, if they do.
    pub(crate) fn of(properties: &BTreeMap<String, String>) -> Option<Self> {
        let get = |key: &str| properties.get(key).map(String::as_str);
        if !uses_tokens(&get) {
            return None;
        }
        let text = |key| of_either(&get, key).unwrap_or_default().to_owned();
        Some(Self {
            url: text(URL),
            client_id: text(CLIENT_ID),
            client_secret: text(CLIENT_SECRET),
            scope: text(SCOPE),
            extensions: extensions(&text(EXTENSIONS))?,
            ca_file: get(CA).map(PathBuf::from),
        })
    }
}

/// Whether the login at the brokers is by tokens of a server.
fn uses_tokens<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> bool {
    let mechanism = get("sasl.mechanisms").or_else(|| get("sasl.mechanism"));
    mechanism == Some("OAUTHBEARER") && get(METHOD) == Some("oidc")
}

fn of_either<'a>(get: &impl Fn(&str) -> Option<&'a str>, key: &str) -> Option<&'a str> {
    let alias = ALIASES.iter().find(|(_, own)| *own == key);
    get(key).or_else(|| get(alias?.0))
}

/// `name=value` pairs, separated by commas; `None` when one of them is none.
fn extensions(text: &str) -> Option<Vec<CString>> {
    let mut all = Vec::new();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        let is_value = value
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) || b"\t\r\n".contains(&byte));
        // This name is the token's own (RFC 7628).
        if !is_name || !is_value || name.eq_ignore_ascii_case("auth") {
            return None;
        }
        all.push(CString::new(name).ok()?);
        all.push(CString::new(value).ok()?);
    }
    Some(all)
}

/// What is wrong with the properties, one line each; without secrets.
pub(super) fn mistakes<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Vec<String> {
    let mut found = Vec::new();
    match get(METHOD) {
        Some("oidc") => {}
        Some("default") | None => {
            return if get("enable.sasl.oauthbearer.unsecure.jwt") == Some("true") {
                Vec::new()
            } else {
                vec![format!(
                    "-X {METHOD}: required with sasl.mechanism=OAUTHBEARER; allowed: oidc, for tokens from the server at {URL}"
                )]
            };
        }
        Some(other) => found.push(format!("-X {METHOD}={other}: unknown; allowed: oidc")),
    }
    for key in [URL, CLIENT_ID, CLIENT_SECRET] {
        if of_either(get, key).is_none_or(str::is_empty) {
            found.push(format!("-X {key}: required with {METHOD}=oidc"));
        }
    }
    if get(GRANT).is_some_and(|grant| grant != "client_credentials") {
        found.push(format!(
            "-X {GRANT}: unknown grant; allowed: client_credentials"
        ));
    }
    let is_url = |text: &str| {
        let parsed = url::Url::parse(text).ok();
        parsed.is_some_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.username().is_empty()
                && url.password().is_none()
        })
    };
    // It may hold credentials, so it is not quoted.
    if of_either(get, URL).is_some_and(|text| !text.is_empty() && !is_url(text)) {
        found.push(format!(
            "-X {URL}: must be an http or https URL without user info"
        ));
    }
    if get(EXTENSIONS).is_some_and(|text| extensions(text).is_none()) {
        found.push(format!(
            "-X {EXTENSIONS}: must be name=value pairs, separated by commas; names are letters, and not \"auth\""
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut all = BTreeMap::from(
            [
                ("security.protocol", "SASL_SSL"),
                ("sasl.mechanism", "OAUTHBEARER"),
                (METHOD, "oidc"),
                (URL, "https://idp.example/token"),
                (CLIENT_ID, "me"),
                (CLIENT_SECRET, "hunter2"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
        );
        for (key, value) in more {
            if value.is_empty() {
                all.remove(*key);
            } else {
                all.insert((*key).to_owned(), (*value).to_owned());
            }
        }
        all
    }

    #[test]
    fn a_source_has_all_that_its_properties_say_under_either_name() {
        let source = TokenSource::of(&properties(&[
            (CLIENT_SECRET, ""),
            ("sasl.oauthbearer.client.credentials.client.secret", "other"),
            (SCOPE, "kafka write"),
            (EXTENSIONS, "logicalCluster=lkc-1, identityPoolId=pool"),
            (CA, "/ca.pem"),
        ]))
        .unwrap();
        assert_eq!(source.client_secret, "other");
        assert_eq!(source.scope, "kafka write");
        let pairs: Vec<_> = source
            .extensions
            .iter()
            .map(|c| c.to_str().unwrap())
            .collect();
        assert_eq!(pairs, ["logicalCluster", "lkc-1", "identityPoolId", "pool"]);
        assert_eq!(source.ca_file, Some("/ca.pem".into()));
        assert!(TokenSource::of(&properties(&[("sasl.mechanism", "PLAIN")])).is_none());
        assert!(TokenSource::of(&properties(&[(METHOD, "")])).is_none());
    }

    #[test]
    fn settings_of_tokens_that_cannot_work_are_named_without_secrets() {
        for (more, expected) in [
            (&[][..], None),
            (
                &[
                    ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
                    (METHOD, ""),
                ],
                None,
            ),
            (&[(METHOD, "")], Some("sasl.oauthbearer.method: required")),
            (
                &[(METHOD, "default")],
                Some("sasl.oauthbearer.method: required"),
            ),
            (&[(METHOD, "jwt")], Some("unknown; allowed: oidc")),
            (&[(URL, "")], Some("token.endpoint.url: required")),
            (&[(CLIENT_ID, "")], Some("client.id: required")),
            (&[(CLIENT_SECRET, "")], Some("client.secret: required")),
            (
                &[(URL, "idp.example")],
                Some("must be an http or https URL"),
            ),
            (
                &[(URL, "https://a:hunter2@b/")],
                Some("must be an http or https URL"),
            ),
            (&[(GRANT, "urn:x")], Some("unknown grant")),
            (&[(GRANT, "client_credentials")], None),
            (&[(EXTENSIONS, "auth=x")], Some("name=value pairs")),
            (&[(EXTENSIONS, "a")], Some("name=value pairs")),
            (&[(EXTENSIONS, "a1=x")], Some("name=value pairs")),
        ] {
            let all = properties(more);
            let get = |key: &str| all.get(key).map(String::as_str);
            let found = mistakes(&get);
            match expected {
                None => assert!(found.is_empty(), "{more:?}: {found:?}"),
                Some(text) => {
                    assert_eq!(found.len(), 1, "{more:?}: {found:?}");
                    assert!(found[0].contains(text), "{more:?}: {found:?}");
                    assert!(!found[0].contains("hunter2"), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn librdkafka_does_not_see_what_it_cannot_serve() {
        for key in OWN.iter().chain(ALIASES.iter().map(|(alias, _)| alias)) {
            assert!(is_served_here(key), "{key}");
        }
        assert!(!is_served_here("sasl.mechanism"));
        assert!(!is_served_here("enable.sasl.oauthbearer.unsecure.jwt"));
    }
}
