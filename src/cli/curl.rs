//! A shell script that sends a webhook as hookstream does: signed, with the headers of its subscription.
//!
//! Pure. It names where secrets are and never shows one: a script is pasted into tickets and chats. References become
//! variables and files of the shell that runs it; a secret that is in the record itself becomes a variable to set.

use std::fmt::Write;

use http::HeaderName;

use crate::edge::clock;
use crate::model::attempt::shown_url;
use crate::model::subscription::{Auth, HeaderSource, SecretSource, Subscription};

/// The longest body that stands in the script itself, bytes.
const MAX_INLINE: usize = 4096;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Webhook<'a> {
    pub(super) id: &'a str,
    pub(super) content_type: &'a str,
    /// The number of the attempt that is repeated, at least 1.
    pub(super) attempt: u32,
    pub(super) traceparent: Option<&'a str>,
    pub(super) body: &'a [u8],
    /// A command that prints the body, for one that cannot stand in a script.
    pub(super) body_from: &'a str,
}

/// The script. It needs a POSIX shell, curl and openssl.
#[must_use]
pub(super) fn script(subscription: &Subscription, webhook: Webhook<'_>) -> String {
    let mut script = Script::default();
    script.url(subscription);
    let inline = inline(webhook.body);
    script.line(&format!("id={} ts=$(date +%s)", quoted(webhook.id)));
    match inline {
        Some(text) => script.line(&format!("body={}", quoted(text))),
        None => {
            script.line("body=$(mktemp)");
            script.line(&format!("{} >\"$body\"", webhook.body_from));
        }
    }
    let signed = script.signature(subscription, inline.is_some());
    script.option(
        "-H",
        &quoted(&format!("content-type: {}", webhook.content_type)),
    );
    script.option("-H", "\"webhook-id: $id\"");
    script.option("-H", "\"webhook-timestamp: $ts\"");
    if signed {
        script.option("-H", "\"webhook-signature: $sig\"");
    }
    script.option(
        "-H",
        &quoted(&format!("hookstream-attempt: {}", webhook.attempt.max(1))),
    );
    if let Some(trace) = webhook.traceparent {
        script.option("-H", &quoted(&format!("traceparent: {trace}")));
    }
    script.own_headers(subscription);
    script.connection(subscription);
    match inline {
        Some(_) => script.option("--data-raw", "\"$body\""),
        None => script.option("--data-binary", "\"@$body\""),
    }
    script.end()
}

/// The script that prints the signature of a webhook, to compare it with the one that was sent; `None` where a shell cannot
/// make it: without a secret, with an ed25519 key, for a body that cannot stand in a script.
#[must_use]
pub(super) fn signature(
    subscription: &Subscription,
    id: &str,
    timestamp: &str,
    body: &[u8],
) -> Option<String> {
    let now = clock::now();
    let mut secrets = subscription.secrets.iter();
    let first = secrets.find(|secret| !secret.has_ended(now))?;
    if matches!(&first.source, SecretSource::Literal(secret) if secret.expose().starts_with("whsk_"))
    {
        return None;
    }
    let body = inline(body)?;
    let mut script = Script::default();
    script.line(&format!(
        "id={} ts={} body={}",
        quoted(id),
        quoted(timestamp),
        quoted(body)
    ));
    script.signature(subscription, true);
    script.line("printf '%s\\n' \"$sig\"");
    let lines = script.notes.into_iter().chain(script.lines);
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// A body that can stand in a script.
fn inline(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body)
        .ok()
        .filter(|text| text.len() <= MAX_INLINE && !text.contains('\0'))
}

#[derive(Default)]
struct Script {
    notes: Vec<String>,
    lines: Vec<String>,
    options: String,
    url: String,
}

impl Script {
    fn line(&mut self, text: &str) {
        self.lines.push(text.to_owned());
    }

    fn option(&mut self, name: &str, value: &str) {
        // Writing to a string does not fail.
        write!(self.options, " \\\n  {name} {value}").ok();
    }

    /// The path and the query of a URL may be credentials: then the script reads it.
    fn url(&mut self, subscription: &Subscription) {
        let url = subscription.url.as_str();
        if shown_url(&subscription.url.to_url()) == url {
            self.url = quoted(url);
        } else {
            let id = quoted(&subscription.id);
            self.line(&format!(
                "url=$(hookstream subscriptions show {id} -o json | sed -n 's/^  \"url\": \"\\(.*\\)\",*$/\\1/p')"
            ));
            self.url = "\"$url\"".to_owned();
        }
    }

    /// What the shell expands to the secret. `name` is the variable of one that is in the record itself.
    fn secret(&mut self, source: &SecretSource, name: &str, what: &str) -> String {
        match source {
            SecretSource::Env(name) if is_variable(name) => format!("${{{name}}}"),
            SecretSource::Env(name) => format!("$(printenv {})", quoted(name)),
            SecretSource::File(path) => format!("$(cat {})", quoted(&path.to_string_lossy())),
            SecretSource::Literal(_) | SecretSource::Encrypted(_) => {
                self.notes.push(format!("# {name} is {what}"));
                format!("${{{name}}}")
            }
        }
    }

    /// The first secret that is in force signs: receivers accept any of several signatures.
    fn signature(&mut self, subscription: &Subscription, inline: bool) -> bool {
        let now = clock::now();
        let mut secrets = subscription.secrets.iter();
        let Some(first) = secrets.find(|secret| !secret.has_ended(now)) else {
            return false;
        };
        if let SecretSource::Literal(secret) = &first.source
            && secret.expose().starts_with("whsk_")
        {
            self.notes.push(
                "# the secret is an ed25519 key, which openssl does not read in this form: WEBHOOK_SIGNATURE is the signature of $id.$ts.$body".to_owned(),
            );
            self.line("sig=$WEBHOOK_SIGNATURE");
            return true;
        }
        let secret = self.secret(
            &first.source,
            "WEBHOOK_SECRET",
            "the subscription's first secret, whsec_…",
        );
        self.line(&format!("secret={}", double_quoted(&secret)));
        self.line(
            "key=$(printf %s \"${secret#whsec_}\" | base64 -d 2>/dev/null | od -An -v -tx1 | tr -d ' \\n')",
        );
        let content = if inline {
            "printf %s \"$id.$ts.$body\""
        } else {
            "{ printf %s \"$id.$ts.\"; cat \"$body\"; }"
        };
        self.line(&format!(
            "sig=v1,$({content} | openssl dgst -sha256 -mac HMAC -macopt \"hexkey:$key\" -binary | base64)"
        ));
        true
    }

    fn own_headers(&mut self, subscription: &Subscription) {
        for (name, source) in &subscription.overrides.headers {
            let value = match source {
                HeaderSource::Literal(value) if !value.is_sensitive() => {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    self.option("-H", &quoted(&format!("{name}: {value}")));
                    continue;
                }
                HeaderSource::Literal(_) => {
                    let variable = variable_of(name);
                    let note = format!("# {variable} is the value of the header {name}");
                    self.notes.push(note);
                    format!("${{{variable}}}")
                }
                HeaderSource::Reference { prefix, source } => {
                    let secret = self.secret(source, &variable_of(name), "the header's value");
                    format!("{prefix}{secret}")
                }
            };
            self.option("-H", &double_quoted(&format!("{name}: {value}")));
        }
        match &subscription.overrides.auth {
            None => {}
            Some(Auth::Bearer { token }) => {
                let token = self.secret(token, "WEBHOOK_TOKEN", "the token of auth");
                self.option(
                    "-H",
                    &double_quoted(&format!("authorization: Bearer {token}")),
                );
            }
            Some(Auth::Basic { username, password }) => {
                let password = self.secret(password, "WEBHOOK_PASSWORD", "the password of auth");
                let pair = format!(
                    "{}{}",
                    quoted(&format!("{username}:")),
                    double_quoted(&password)
                );
                self.option("-u", &pair);
            }
            Some(Auth::Header { name, value }) => {
                let value = self.secret(value, "WEBHOOK_CREDENTIAL", "the value of auth");
                self.option("-H", &double_quoted(&format!("{name}: {value}")));
            }
            Some(Auth::OAuth2(oauth)) => {
                self.notes.push(format!(
                    "# ACCESS_TOKEN is a token of {} for the client {:?}",
                    shown_url(&oauth.token_url),
                    oauth.client_id
                ));
                self.option("-H", "\"authorization: Bearer ${ACCESS_TOKEN}\"");
            }
        }
    }

    fn connection(&mut self, subscription: &Subscription) {
        let tls = &subscription.overrides.tls;
        let client = tls.client.as_ref();
        let parts = [
            ("--cacert", tls.ca.as_ref()),
            ("--cert", client.map(|(certificate, _)| certificate)),
            ("--key", client.map(|(_, key)| key)),
        ];
        for (option, source) in parts {
            match source {
                None => {}
                Some(SecretSource::File(path)) => {
                    self.option(option, &quoted(&path.to_string_lossy()));
                }
                Some(source) => {
                    self.notes
                        .push(format!("# {option} is a file with what {source} holds"));
                    self.option(
                        option,
                        &format!("\"${{WEBHOOK_{}}}\"", option[2..].to_uppercase()),
                    );
                }
            }
        }
    }

    fn end(self) -> String {
        let mut text = String::new();
        for line in self.notes.iter().chain(&self.lines) {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str("curl -sS -i -X POST ");
        text.push_str(&self.url);
        text.push_str(&self.options);
        text
    }
}

fn is_variable(name: &str) -> bool {
    let mut letters = name.bytes();
    let first = letters.next();
    first.is_some_and(|letter| letter == b'_' || letter.is_ascii_alphabetic())
        && letters.all(|letter| letter == b'_' || letter.is_ascii_alphanumeric())
}

fn variable_of(header: &HeaderName) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    let name: String = header.as_str().chars().map(letter).collect();
    format!("HEADER_{name}")
}

/// One word of a POSIX shell that stands for exactly this text.
#[must_use]
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// In double quotes: expansions happen. Only for what this file has put together.
fn double_quoted(text: &str) -> String {
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use serde_json::json;

    use super::*;
    use crate::delivery::signing::Signer;
    use crate::model::subscription;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn parsed(fields: serde_json::Value) -> Subscription {
        let mut record = json!({"id": "acme", "subscriber": "acme", "url": "https://acme.example/", "events": ["**"]});
        record
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        subscription::parse(None, record.to_string().as_bytes()).unwrap()
    }

    fn webhook(body: &[u8]) -> Webhook<'_> {
        Webhook {
            id: "msg_1",
            content_type: "application/json",
            attempt: 3,
            traceparent: None,
            body,
            body_from: "printf '{\"from\":\"a command\"}'",
        }
    }

    /// Runs a script with a `curl` that prints its arguments, one a line.
    fn arguments(script: &str) -> Vec<String> {
        let mut shell = Command::new("sh")
            .env("ACME_SECRET", SECRET)
            .env("ACME_TOKEN", "a b\"c")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = shell.stdin.take().unwrap();
        input
            .write_all(b"curl() { for a in \"$@\"; do printf '%s\\036' \"$a\"; done; }\n")
            .unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        let output = shell.wait_with_output().unwrap();
        assert!(output.status.success(), "{script}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_terminator('\u{1e}').map(str::to_owned).collect()
    }

    fn value<'a>(arguments: &'a [String], header: &str) -> &'a str {
        let prefix = format!("{header}: ");
        let found = arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(&prefix));
        found.unwrap_or_else(|| panic!("no {header} in {arguments:?}"))
    }

    #[test]
    fn the_script_signs_as_deliver_does_and_sends_exactly_the_body() {
        let acme = parsed(
            json!({"secrets": ["env:ACME_SECRET"], "headers": {"authorization": "Bearer env:ACME_TOKEN", "x-tenant": "o'neil $HOME"}}),
        );
        let body = "{\"a\":\"it's $HOME `id` \\\\ \\n\"}\n\n";
        let arguments = arguments(&script(&acme, webhook(body.as_bytes())));
        assert_eq!(arguments.last().unwrap(), body, "byte for byte");
        assert_eq!(value(&arguments, "authorization"), "Bearer a b\"c");
        assert_eq!(value(&arguments, "x-tenant"), "o'neil $HOME");
        assert_eq!(value(&arguments, "hookstream-attempt"), "3");
        let timestamp = value(&arguments, "webhook-timestamp");
        let signer = Signer::new([SECRET]).unwrap();
        assert_eq!(
            value(&arguments, "webhook-signature"),
            signer.sign("msg_1", timestamp, body.as_bytes())
        );
    }

    #[test]
    fn the_script_of_the_signature_prints_what_is_sent() {
        let acme = parsed(json!({"secrets": ["env:ACME_SECRET"]}));
        let body = "{\"a\":\"it's $HOME\"}";
        let text = signature(&acme, "msg_1", "1700000000", body.as_bytes()).unwrap();
        let output = Command::new("sh")
            .args(["-c", &text])
            .env("ACME_SECRET", SECRET)
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            Signer::new([SECRET])
                .unwrap()
                .sign("msg_1", "1700000000", body.as_bytes()),
            "{text}"
        );
        assert_eq!(
            signature(&parsed(json!({})), "msg_1", "1", b"{}"),
            None,
            "unsigned"
        );
        let seed = "whsk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let ed25519 = parsed(json!({"secrets": [seed]}));
        assert_eq!(signature(&ed25519, "msg_1", "1", b"{}"), None, "ed25519");
    }

    #[test]
    fn a_long_body_comes_from_a_file() {
        let acme = parsed(json!({"secrets": ["env:ACME_SECRET"]}));
        let long = vec![b'x'; MAX_INLINE + 1];
        let text = script(&acme, webhook(&long));
        assert!(!text.contains("xxx"), "{text}");
        let arguments = arguments(&text);
        let file = arguments.last().unwrap().strip_prefix('@').unwrap();
        let body = std::fs::read(file).unwrap();
        std::fs::remove_file(file).unwrap();
        assert_eq!(body, br#"{"from":"a command"}"#);
        let timestamp = value(&arguments, "webhook-timestamp");
        let signer = Signer::new([SECRET]).unwrap();
        assert_eq!(
            value(&arguments, "webhook-signature"),
            signer.sign("msg_1", timestamp, &body)
        );
    }

    #[test]
    fn no_secret_is_printed() {
        let acme = parsed(json!({
            "url": "https://user.example/services/T0/SECRETPATH?key=SECRETQUERY",
            "secrets": [SECRET],
            "headers": {"x-api-key": "SECRETKEY", "x-tenant": "acme"},
        }));
        let text = script(&acme, webhook(b"{}"));
        for secret in ["MfKQ9r8", "SECRETPATH", "SECRETQUERY", "SECRETKEY"] {
            assert!(!text.contains(secret), "{text}");
        }
        for named in [
            "WEBHOOK_SECRET",
            "HEADER_X_API_KEY",
            "subscriptions show 'acme'",
            "x-tenant: acme",
        ] {
            assert!(text.contains(named), "{named}: {text}");
        }
        for auth in [
            json!({"type": "bearer", "token": "file:/run/token"}),
            json!({"type": "basic", "username": "u", "password": "env:PW"}),
            json!({"type": "header", "name": "x-key", "value": "env:KEY"}),
            json!({"type": "oauth2", "token_url": "https://a.example/t?SECRET", "client_id": "c", "client_secret": "env:C"}),
        ] {
            let text = script(&parsed(json!({"auth": auth})), webhook(b"{}"));
            assert!(!text.contains("?SECRET"), "{text}");
            let expected = ["$(cat '/run/token')", "${PW}", "${KEY}", "${ACCESS_TOKEN}"];
            assert!(expected.iter().any(|part| text.contains(part)), "{text}");
        }
    }
}
