//! OAuth 2.0 client credentials (RFC 6749, section 4.4): the request for a token, and what the response says.
//!
//! A response comes from a server that may be wrong, hostile or something else altogether: what is reported of it is an
//! error code of the standard and a short description, and never a text that holds the secret (**Secret**).

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde::Deserialize;

/// The largest response that is read, bytes.
pub const MAX_TOKEN_RESPONSE_BYTES: usize = 64 * 1024;
/// The longest token, bytes: it becomes a header.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The life of a token whose response says nothing about it. RFC 6749 recommends the field, and does not require it.
pub const UNKNOWN_LIFE: Duration = Duration::from_secs(300);
/// No token is kept for longer, whatever its response says.
pub const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// The longest description that is repeated from a response, characters.
const MAX_DESCRIPTION: usize = 200;

/// How the user and password of the `Basic` header are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BasicForm {
    /// Form-encoded first, as RFC 6749, section 2.3.1 demands.
    Encoded,
    /// As they are, like librdkafka and the Java client of Kafka.
    Plain,
}

/// What a client asks a token server for. No `Debug`, since it holds a secret.
#[derive(Clone, Copy)]
pub struct TokenRequest<'a> {
    /// The client's id.
    pub client_id: &'a str,
    /// Its secret.
    pub client_secret: &'a str,
    /// The scopes, separated by blanks; empty for the server's default.
    pub scope: &'a str,
    /// For whom the token is, at servers that want to know.
    pub audience: Option<&'a str>,
}

impl TokenRequest<'_> {
    /// The value of the header `authorization`.
    #[must_use]
    pub fn authorization(&self, form: BasicForm) -> String {
        let both = match form {
            BasicForm::Plain => format!("{}:{}", self.client_id, self.client_secret),
            BasicForm::Encoded => {
                let encoded = |text: &str| {
                    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>()
                };
                let (id, secret) = (encoded(self.client_id), encoded(self.client_secret));
                format!("{id}:{secret}")
            }
        };
        format!("Basic {}", STANDARD.encode(both))
    }

    /// The body of the request, `application/x-www-form-urlencoded`.
    #[must_use]
    pub fn body(&self) -> String {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !self.scope.is_empty() {
            form.append_pair("scope", self.scope);
        }
        if let Some(audience) = self.audience {
            form.append_pair("audience", audience);
        }
        form.finish()
    }

    /// The same with the client and its secret, for servers that do not read the header.
    #[must_use]
    pub fn body_with_client(&self) -> String {
        url::form_urlencoded::Serializer::new(self.body())
            .append_pair("client_id", self.client_id)
            .append_pair("client_secret", self.client_secret)
            .finish()
    }

    /// What a response says. `now`: seconds since the epoch, for tokens that hold their own end.
    ///
    /// # Errors
    /// [`TokenFault`]
    pub fn judge(&self, status: u16, body: &[u8], now: i64) -> Result<IssuedToken, TokenFault> {
        if (200..300).contains(&status) {
            return IssuedToken::read(body, now);
        }
        Err(self.refusal(status, body))
    }

    fn refusal(&self, status: u16, body: &[u8]) -> TokenFault {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
            error_description: Option<String>,
        }
        /// Repeating the request as it is cannot help.
        const FINAL: &[&str] = &[
            "invalid_client",
            "invalid_grant",
            "invalid_scope",
            "invalid_target",
            "unauthorized_client",
            "unsupported_grant_type",
        ];
        let found: Option<Refusal> = serde_json::from_slice(body).ok();
        let is_code = |code: &str| {
            code.len() <= 40 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        };
        let Some(Refusal {
            error,
            error_description,
        }) = found.filter(|found| is_code(&found.error))
        else {
            let text = match status {
                401 => "status 401: the client id or its secret is not accepted".to_owned(),
                300..=399 => format!("status {status}: redirects are not followed"),
                _ => format!("status {status}"),
            };
            return match status {
                401 => TokenFault::Refused(text),
                _ => TokenFault::Failed(text),
            };
        };
        let described = error_description.and_then(|text| self.harmless(&text));
        let text = match described {
            Some(description) => format!("status {status}, {error}: {description}"),
            None => format!("status {status}, {error}"),
        };
        if status < 500 && (status == 401 || FINAL.contains(&&*error)) {
            TokenFault::Refused(text)
        } else {
            TokenFault::Failed(text)
        }
    }

    /// A description in one short line; `None` when it repeats the secret.
    fn harmless(&self, description: &str) -> Option<String> {
        if description.contains(self.client_secret) {
            return None;
        }
        let visible = description.chars().map(|letter| match letter {
            ' '..='~' => letter,
            _ => ' ',
        });
        let line: String = visible.take(MAX_DESCRIPTION).collect();
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        // Cut inside the secret.
        let is_cut = description.chars().count() > MAX_DESCRIPTION;
        let hides = line.is_empty() || is_cut && self.begins_at_the_end(&line);
        (!hides).then_some(line)
    }

    fn begins_at_the_end(&self, line: &str) -> bool {
        let starts = self.client_secret.char_indices().skip(4);
        let mut starts = starts.map(|(at, _)| &self.client_secret[..at]);
        starts.any(|start| line.ends_with(start))
    }
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// The server refuses this client until one of the settings changes.
    #[error("{0}")]
    Refused(String),
    /// Something that may pass: no connection, an error of the server, a response that makes no sense.
    #[error("{0}")]
    Failed(String),
}

/// A token that a server has issued.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedToken {
    value: Box<str>,
    /// How long it is valid from now.
    pub life: Duration,
}

/// Without the token itself.
impl fmt::Debug for IssuedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IssuedToken({:?})", self.life)
    }
}

impl IssuedToken {
    /// The token itself, for a header or a login.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.value
    }

    fn read(body: &[u8], now: i64) -> Result<Self, TokenFault> {
        #[derive(Deserialize)]
        struct Issued {
            access_token: String,
            token_type: Option<String>,
            expires_in: Option<serde_json::Value>,
        }
        let failed = |text: &str| Err(TokenFault::Failed(text.to_owned()));
        let Ok(issued) = serde_json::from_slice::<Issued>(body) else {
            return failed(
                "the response holds no access_token; is this the URL of a token endpoint?",
            );
        };
        let kind = issued.token_type.as_deref().unwrap_or("bearer");
        if !kind.eq_ignore_ascii_case("bearer") {
            return failed("the token_type is not Bearer");
        }
        let value = issued.access_token;
        if value.is_empty() || !value.bytes().all(|byte| (b'!'..=b'~').contains(&byte)) {
            return failed("the access_token is empty or has characters that no token has");
        }
        if value.len() > MAX_TOKEN_BYTES {
            return failed("the access_token is longer than 16 KiB");
        }
        // Some servers write the number as a text.
        let said = issued.expires_in.and_then(|life| match life {
            serde_json::Value::Number(life) => life.as_f64(),
            serde_json::Value::String(life) => life.parse().ok(),
            _ => None,
        });
        let own = expiry(&value).map(|at| at - now as f64);
        let life = match (said, own) {
            (Some(said), Some(own)) => said.min(own),
            (Some(life), None) | (None, Some(life)) => life,
            (None, None) => UNKNOWN_LIFE.as_secs_f64(),
        };
        if life.is_nan() || life < 1.0 {
            return failed("the token has expired already; compare the clocks of both machines");
        }
        let life = Duration::from_secs_f64(life.min(LONGEST_LIFE.as_secs_f64()));
        Ok(Self {
            value: value.into(),
            life,
        })
    }
}

/// The claim `exp` of a token that is a JWT, seconds since the epoch.
fn expiry(token: &str) -> Option<f64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: f64,
    }
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD
        .decode(payload)
        .or_else(|_| URL_SAFE.decode(payload))
        .ok()?;
    serde_json::from_slice::<Claims>(&payload)
        .ok()
        .map(|claims| claims.exp)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn request() -> TokenRequest<'static> {
        TokenRequest {
            client_id: "me:1",
            client_secret: "s/cret+",
            scope: "a b",
            audience: Some("https://api.example/"),
        }
    }

    fn jwt(exp: i64) -> String {
        let part = |text: String| URL_SAFE_NO_PAD.encode(text);
        let payload = format!(r#"{{"sub":"me","exp":{exp}}}"#);
        format!(
            "{}.{}.",
            part(r#"{"alg":"none"}"#.to_owned()),
            part(payload)
        )
    }

    fn life(body: &str) -> Result<u64, String> {
        let judged = request().judge(200, body.as_bytes(), NOW);
        judged
            .map(|token| token.life.as_secs())
            .map_err(|fault| fault.to_string())
    }

    #[test]
    fn the_request_is_the_one_of_the_standard() {
        let request = request();
        let decoded = |form| {
            let header = request.authorization(form);
            let text = STANDARD.decode(header.strip_prefix("Basic ").unwrap());
            String::from_utf8(text.unwrap()).unwrap()
        };
        assert_eq!(decoded(BasicForm::Encoded), "me%3A1:s%2Fcret%2B");
        assert_eq!(decoded(BasicForm::Plain), "me:1:s/cret+");
        assert_eq!(
            request.body(),
            "grant_type=client_credentials&scope=a+b&audience=https%3A%2F%2Fapi.example%2F"
        );
        let bare = TokenRequest {
            scope: "",
            audience: None,
            ..request
        };
        assert_eq!(bare.body(), "grant_type=client_credentials");
        assert_eq!(
            bare.body_with_client(),
            "grant_type=client_credentials&client_id=me%3A1&client_secret=s%2Fcret%2B"
        );
    }

    #[test]
    fn a_token_lives_until_the_earlier_of_its_two_ends() {
        let with = |token: &str, life: &str| format!(r#"{{"access_token":"{token}"{life}}}"#);
        for (body, expected) in [
            (with("t", r#","expires_in":60"#), 60),
            (with("t", r#","expires_in":"60","token_type":"bearer""#), 60),
            (with("t", ""), UNKNOWN_LIFE.as_secs()),
            (with("t", r#","expires_in":1e300"#), LONGEST_LIFE.as_secs()),
            (with(&jwt(NOW + 30), r#","expires_in":60"#), 30),
            (with(&jwt(NOW + 90), r#","expires_in":60"#), 60),
            (with(&jwt(NOW + 90), ""), 90),
            (with("a.b.c", r#","expires_in":60"#), 60),
        ] {
            assert_eq!(life(&body), Ok(expected), "{body}");
        }
    }

    #[test]
    fn what_is_no_usable_token_is_a_fault_that_may_pass() {
        let long = format!(
            r#"{{"access_token":"{}"}}"#,
            "x".repeat(MAX_TOKEN_BYTES + 1)
        );
        for (body, part) in [
            ("<html>", "no access_token"),
            (r#"{"access_token":""}"#, "empty"),
            ("{\"access_token\":\"a\\nb\"}", "characters"),
            (r#"{"access_token":"t","token_type":"mac"}"#, "not Bearer"),
            (r#"{"access_token":"t","expires_in":0}"#, "expired already"),
            (r#"{"access_token":"t","expires_in":-5}"#, "expired already"),
            (&long, "longer than"),
        ] {
            let found = request().judge(200, body.as_bytes(), NOW);
            let fault = found.unwrap_err();
            assert!(
                matches!(&fault, TokenFault::Failed(text) if text.contains(part)),
                "{body}: {fault:?}"
            );
        }
    }

    #[test]
    fn a_refusal_is_told_apart_from_a_failure_and_repeats_no_secret() {
        let refused = |status, body: &str| {
            let fault = request().judge(status, body.as_bytes(), NOW).unwrap_err();
            let refused = matches!(fault, TokenFault::Refused(_));
            (refused, fault.to_string())
        };
        for (status, body, is_refused, text) in [
            (
                401,
                "",
                true,
                "status 401: the client id or its secret is not accepted",
            ),
            (403, "", false, "status 403"),
            (404, "<html>", false, "status 404"),
            (302, "", false, "status 302: redirects are not followed"),
            (
                503,
                r#"{"error":"invalid_client"}"#,
                false,
                "status 503, invalid_client",
            ),
            (
                400,
                r#"{"error":"invalid_client","error_description":"unknown\nclient"}"#,
                true,
                "status 400, invalid_client: unknown client",
            ),
            (
                400,
                r#"{"error":"invalid_scope"}"#,
                true,
                "status 400, invalid_scope",
            ),
            (
                400,
                r#"{"error":"invalid_request"}"#,
                false,
                "status 400, invalid_request",
            ),
            (
                429,
                r#"{"error":"slow_down"}"#,
                false,
                "status 429, slow_down",
            ),
            (
                400,
                r#"{"error":"invalid_client","error_description":"s/cret+ is wrong"}"#,
                true,
                "status 400, invalid_client",
            ),
            (400, r#"{"error":"S/CRET s/cret+"}"#, false, "status 400"),
        ] {
            assert_eq!(
                refused(status, body),
                (is_refused, text.to_owned()),
                "{body}"
            );
        }
        let cut = format!("{}s/cret+", "x".repeat(MAX_DESCRIPTION - 6));
        let body = format!(r#"{{"error":"invalid_client","error_description":"{cut}"}}"#);
        assert!(!refused(400, &body).1.contains("s/cret"), "{body}");
        let token = IssuedToken::read(br#"{"access_token":"hunter2"}"#, NOW).unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
