//! How requests authenticate at their endpoint. Credentials are references to secrets of the delivering process and never
//! part of the record, which everybody sees who can read the topic.

use std::fmt::Display;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use url::Url;

use super::endpoint_url;
use super::reference::{credential, credential_value};
use super::source::SecretSource;

/// The longest user name, client id, scope or audience, bytes.
const MAX_TEXT: usize = 1024;
/// The most scopes.
const MAX_SCOPES: usize = 32;

/// How requests authenticate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `authorization: Bearer …`.
    Bearer {
        /// The token.
        token: SecretSource,
    },
    /// `authorization: Basic …`.
    Basic {
        /// The user, without a colon.
        username: Box<str>,
        /// The password.
        password: SecretSource,
    },
    /// A header of the endpoint's own.
    Header {
        /// Its name; never a reserved one.
        name: HeaderName,
        /// Its value.
        value: SecretSource,
    },
    /// `authorization: Bearer …` with a token of OAuth 2.0 client credentials.
    OAuth2(Box<OAuth2>),
}

/// Where a token comes from: OAuth 2.0 client credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuth2 {
    /// The token endpoint; it is subject to the egress rules like the endpoint itself.
    pub token_url: Url,
    /// The client.
    pub client_id: Box<str>,
    /// Its secret.
    pub client_secret: SecretSource,
    /// The scopes, separated by blanks; may be empty.
    pub scope: Box<str>,
    /// For whom the token is, at servers that want to know.
    pub audience: Option<Box<str>>,
}

impl Auth {
    /// The reference that the credential is read from.
    #[must_use]
    pub fn reference(&self) -> &SecretSource {
        match self {
            Self::Bearer { token } => token,
            Self::Basic { password, .. } => password,
            Self::Header { value, .. } => value,
            Self::OAuth2(oauth) => &oauth.client_secret,
        }
    }

    /// The header that it sets.
    #[must_use]
    pub fn header_name(&self) -> &HeaderName {
        match self {
            Self::Header { name, .. } => name,
            Self::Bearer { .. } | Self::Basic { .. } | Self::OAuth2(_) => &AUTHORIZATION,
        }
    }

    /// The value of the header, if it follows from the secret alone.
    ///
    /// # Errors
    /// One sentence that names the source and never shows the secret.
    pub fn value(&self, secret: &str) -> Result<Option<HeaderValue>, String> {
        let secret = secret.trim();
        let source = self.reference();
        let refuse = |problem: &str| format!("the secret at {source} {problem}");
        if secret.is_empty() {
            return Err(refuse("is empty"));
        }
        let text = match self {
            Self::OAuth2(_) => return Ok(None),
            Self::Header { .. } => secret.to_owned(),
            Self::Bearer { .. } => format!("Bearer {secret}"),
            Self::Basic { username, .. } => {
                use base64::Engine as _;
                let both = format!("{username}:{secret}");
                format!(
                    "Basic {}",
                    base64::engine::general_purpose::STANDARD.encode(both)
                )
            }
        };
        credential_value(&text, refuse).map(Some)
    }

    /// Reads the field `auth`. `allowed` says whether a header may be set.
    ///
    /// # Errors
    /// All problems, each with the name of its field, and without values that may be secrets.
    pub(super) fn read(
        value: &Value,
        allowed: impl Fn(&str) -> Result<HeaderName, &'static str>,
    ) -> Result<Self, Vec<String>> {
        let Some(fields) = value.as_object() else {
            return Err(vec!["auth: must be an object".to_owned()]);
        };
        let mut reader = Reader {
            fields,
            known: vec!["type"],
            problems: Vec::new(),
        };
        let auth = match fields.get("type").and_then(Value::as_str) {
            Some("bearer") => reader.secret("token").map(|token| Self::Bearer { token }),
            Some("basic") => {
                let username = reader.text("username");
                if username
                    .is_some_and(|name| name.contains(':') || name.contains(char::is_control))
                {
                    reader.problem("username", "must not hold a colon or a control character");
                }
                let password = reader.secret("password");
                let both = username.zip(password);
                both.map(|(username, password)| Self::Basic {
                    username: username.into(),
                    password,
                })
            }
            Some("header") => {
                let name = reader.text("name").map(allowed);
                if let Some(Err(problem)) = name {
                    reader.problem("name", problem);
                }
                let value = reader.secret("value");
                let name = name.and_then(Result::ok);
                name.zip(value)
                    .map(|(name, value)| Self::Header { name, value })
            }
            Some("oauth2") => reader.oauth2().map(|oauth| Self::OAuth2(Box::new(oauth))),
            _ => {
                let problem = "must be bearer, basic, header or oauth2";
                return Err(vec![format!("auth.type: {problem}")]);
            }
        };
        reader.no_other();
        match (auth, reader.problems) {
            (Some(auth), problems) if problems.is_empty() => Ok(auth),
            (_, problems) => Err(problems),
        }
    }
}

struct Reader<'a> {
    fields: &'a Map<String, Value>,
    known: Vec<&'static str>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn problem(&mut self, field: &str, problem: impl Display) {
        self.problems.push(format!("auth.{field}: {problem}"));
    }

    fn optional(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.fields.get(field)
    }

    fn text(&mut self, field: &'static str) -> Option<&'a str> {
        match self.optional(field) {
            None => self.problem(field, "is required"),
            Some(Value::String(text)) if (1..=MAX_TEXT).contains(&text.len()) => return Some(text),
            Some(_) => self.problem(field, "must be a text of 1 to 1024 bytes"),
        }
        None
    }

    fn secret(&mut self, field: &'static str) -> Option<SecretSource> {
        let found = credential(self.text(field)?);
        if let Err(problem) = &found {
            self.problem(field, problem);
        }
        found.ok()
    }

    fn oauth2(&mut self) -> Option<OAuth2> {
        let token_url = self.text("token_url").map(endpoint_url::parse);
        for problem in token_url
            .iter()
            .filter_map(|url| url.as_ref().err())
            .flatten()
        {
            self.problem("token_url", problem);
        }
        let client_id = self.text("client_id");
        if client_id.is_some_and(|id| id.contains(char::is_control)) {
            self.problem("client_id", "must not hold a control character");
        }
        let client_secret = self.secret("client_secret");
        let scope = self.scopes();
        let audience = match self.fields.contains_key("audience") {
            true => self.text("audience"),
            false => {
                self.known.push("audience");
                None
            }
        };
        Some(OAuth2 {
            token_url: token_url?.ok()?,
            client_id: client_id?.into(),
            client_secret: client_secret?,
            scope: scope?.into(),
            audience: audience.map(Into::into),
        })
    }

    fn scopes(&mut self) -> Option<String> {
        // RFC 6749, section 3.3.
        let is_scope = |scope: &str| {
            (1..=MAX_TEXT).contains(&scope.len())
                && scope
                    .bytes()
                    .all(|byte| matches!(byte, b'!' | b'#'..=b'[' | b']'..=b'~'))
        };
        let scopes = match self.optional("scopes") {
            None => return Some(String::new()),
            Some(Value::Array(scopes)) if scopes.len() <= MAX_SCOPES => scopes,
            Some(_) => {
                self.problem("scopes", "must be a list of at most 32 texts");
                return None;
            }
        };
        let all: Option<Vec<&str>> = scopes
            .iter()
            .map(|scope| scope.as_str().filter(|scope| is_scope(scope)))
            .collect();
        if all.is_none() {
            self.problem(
                "scopes",
                "each must be a text without blanks, quotes and backslashes",
            );
        }
        all.map(|all| all.join(" "))
    }

    fn no_other(&mut self) {
        let others = self.fields.keys();
        let others: Vec<_> = others
            .filter(|field| !self.known.contains(&field.as_str()))
            .map(|field| field.chars().take(40).collect::<String>())
            .collect();
        for field in others {
            self.problems.push(format!("auth: unknown field {field:?}"));
        }
    }
}

/// Replaces what may be a secret in a record's `auth` that nobody has checked.
pub(super) fn redact(auth: &mut Value) {
    let Some(fields) = auth.as_object_mut() else {
        return;
    };
    for field in ["token", "password", "value", "client_secret"] {
        if let Some(value) = fields.get_mut(field) {
            let is_reference = value.as_str().is_some_and(|text| credential(text).is_ok());
            if !is_reference {
                *value = Value::from("(redacted)");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<Auth, Vec<String>> {
        Auth::read(value, |name| {
            let name = HeaderName::try_from(name).map_err(|_| "is not a header name")?;
            if name == "host" {
                return Err("is reserved");
            }
            Ok(name)
        })
    }

    fn header(value: &Value, secret: &str) -> (String, String) {
        let auth = read(value).unwrap();
        let value = auth.value(secret).unwrap().unwrap();
        assert!(value.is_sensitive());
        (
            auth.header_name().to_string(),
            value.to_str().unwrap().to_owned(),
        )
    }

    #[test]
    fn each_kind_sets_its_header() {
        for (auth, name, value) in [
            (
                json!({"type": "bearer", "token": "env:T"}),
                "authorization",
                "Bearer hush",
            ),
            (
                json!({"type": "basic", "username": "me", "password": "file:/p"}),
                "authorization",
                "Basic bWU6aHVzaA==",
            ),
            (
                json!({"type": "header", "name": "X-Api-Key", "value": "env:K"}),
                "x-api-key",
                "hush",
            ),
        ] {
            assert_eq!(
                header(&auth, " hush\n"),
                (name.to_owned(), value.to_owned())
            );
        }
        let oauth = json!({"type": "oauth2", "token_url": "https://idp.example/token", "client_id": "me",
            "client_secret": "env:S", "scopes": ["a", "b:c"], "audience": "https://api"});
        let Auth::OAuth2(oauth) = read(&oauth).unwrap() else {
            panic!("it is oauth2");
        };
        assert_eq!(
            (&*oauth.scope, oauth.audience.as_deref()),
            ("a b:c", Some("https://api"))
        );
    }

    #[test]
    fn what_is_wrong_is_named_all_at_once_and_never_shown() {
        for (auth, expected) in [
            (json!("x"), &["auth: must be an object"][..]),
            (json!({}), &["auth.type: must be"]),
            (json!({"type": "digest"}), &["auth.type: must be"]),
            (json!({"type": "bearer"}), &["auth.token: is required"]),
            (
                json!({"type": "bearer", "token": "hunter2"}),
                &["auth.token: must be env:NAME"],
            ),
            (
                json!({"type": "bearer", "token": "env:A-B"}),
                &["auth.token: must be env:NAME"],
            ),
            (
                json!({"type": "bearer", "token": "whsec_hunter2hunter2"}),
                &["auth.token: must be"],
            ),
            (
                json!({"type": "bearer", "token": "file:relative"}),
                &["auth.token: must be"],
            ),
            (
                json!({"type": "bearer", "token": 5}),
                &["auth.token: must be a text"],
            ),
            (
                json!({"type": "bearer", "token": "env:A", "password": "hunter2"}),
                &["auth: unknown field \"password\""],
            ),
            (
                json!({"type": "basic", "username": "a:b", "password": "hunter2"}),
                &[
                    "auth.username: must not hold a colon",
                    "auth.password: must be",
                ],
            ),
            (
                json!({"type": "header", "name": "host", "value": "Bearer env:A"}),
                &["auth.name: is reserved", "auth.value: must be"],
            ),
            (
                json!({"type": "oauth2", "token_url": "ftp://x/", "client_secret": "hunter2", "scopes": ["a b"],
                    "audience": 1}),
                &[
                    "auth.token_url: the scheme",
                    "auth.client_id: is required",
                    "auth.client_secret: must be",
                    "auth.scopes: each",
                    "auth.audience: must be a text",
                ],
            ),
            (
                json!({"type": "oauth2", "token_url": "https://a:hunter2@x/", "client_id": "a", "client_secret": "env:A"}),
                &["auth.token_url: must not hold a user name"],
            ),
        ] {
            let problems = read(&auth).unwrap_err();
            assert_eq!(problems.len(), expected.len(), "{auth}: {problems:?}");
            for (problem, expected) in problems.iter().zip(expected) {
                assert!(problem.starts_with(expected), "{auth}: {problem}");
                assert!(!problem.contains("hunter2"), "{problem}");
            }
        }
    }

    #[test]
    fn a_credential_that_no_header_can_carry_is_named_by_its_source() {
        let auth = read(&json!({"type": "bearer", "token": "env:T"})).unwrap();
        for (secret, problem) in [
            (" \n", "is empty"),
            ("hush\nhush", "visible ASCII"),
            (&*"hush".repeat(2000), "the limit is 4096"),
        ] {
            let error = auth.value(secret).unwrap_err();
            assert!(
                error.contains("env:T") && error.contains(problem),
                "{error}"
            );
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_record_that_nobody_checked_shows_references_only() {
        let mut auth = json!({"type": "bearer", "token": "hunter2", "password": "env:P", "value": ["hunter2"]});
        redact(&mut auth);
        assert_eq!(
            auth,
            json!({"type": "bearer", "token": "(redacted)", "password": "env:P", "value": "(redacted)"})
        );
    }
}
