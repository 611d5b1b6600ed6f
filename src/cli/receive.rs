//! `hookstream receive`: a local receiver that verifies webhooks, prints them, and fails or hangs on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Serialize;
use tokio::net::TcpListener;

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output};
use super::receiving::{VerifyingKey, serve, text, verify, whole};
use crate::edge::clock;
use crate::model::signing_key::SigningKey;
use crate::model::subscription::Redacted;
use crate::model::units::parse_duration;

/// The most webhooks whose attempts are counted; beyond that, counting begins anew.
const MAX_COUNTED: usize = 100_000;

/// `hookstream receive`.
#[derive(Args, Clone, Debug)]
pub struct ReceiveArgs {
    /// Address to listen on; port 0 is any free port, which is printed
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Secret to verify signatures with: env:NAME, file:PATH, or whsec_…, whsk_… or whpk_… itself; repeated, any of them.
    /// Without it, signatures are not verified
    #[arg(long, value_name = "SECRET")]
    secret: Vec<Redacted>,
    /// The status of responses
    #[arg(long, value_name = "CODE", default_value_t = 200, value_parser = clap::value_parser!(u16).range(200..=599))]
    status: u16,
    /// Respond 503 to the first N attempts of each webhook
    #[arg(long, value_name = "N", default_value_t = 0)]
    fail: u32,
    /// Respond after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Never respond
    #[arg(long, conflicts_with = "delay")]
    hang: bool,
    /// End after N requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// A request as printed.
#[derive(Debug, Serialize)]
struct Received {
    at: String,
    path: String,
    webhook_id: Option<String>,
    attempt: Option<u32>,
    /// `valid`, `unverified`, or why not.
    signature: String,
    /// The status of the response; none if there is none.
    status: Option<u16>,
    headers: Vec<(String, String)>,
    body: String,
}

impl Received {
    fn text(&self) -> String {
        let status = self
            .status
            .map_or_else(|| "no response".to_owned(), |status| status.to_string());
        format!(
            "{}  {}  {}  attempt {}  signature {}  {status}\n{}",
            self.at,
            self.path,
            self.webhook_id.as_deref().unwrap_or("-"),
            self.attempt.unwrap_or(1),
            self.signature,
            self.body
        )
    }
}

struct Receiver {
    args: ReceiveArgs,
    keys: Vec<VerifyingKey>,
    /// Attempts by webhook id, for senders that do not number them.
    attempts: Mutex<HashMap<String, u32>>,
    received: AtomicU64,
    is_read: std::sync::atomic::AtomicBool,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a secret cannot be read, or the address cannot be listened on.
pub fn run(args: &ReceiveArgs) -> Result<Exit, CliError> {
    let usage = |error: String| CliError::new(Exit::Usage, format!("--secret: {error}"));
    let keys: Result<Vec<_>, _> = args
        .secret
        .iter()
        .map(|secret| key(secret.expose()))
        .collect();
    let receiver = Arc::new(Receiver {
        args: args.clone(),
        keys: keys.map_err(usage)?,
        attempts: Mutex::default(),
        received: AtomicU64::new(0),
        is_read: true.into(),
    });
    let failed = |error: std::io::Error| {
        CliError::new(
            Exit::Failure,
            format!("listening on {}: {error}", args.listen),
        )
    };
    let interrupt = Interrupt::watch()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(failed)?;
    let listener = runtime
        .block_on(TcpListener::bind(args.listen))
        .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    print::note(&format!("listening on http://{address}"));
    if receiver.keys.is_empty() {
        print::note("signatures are not verified; use --secret");
    }
    let handler = {
        let receiver = Arc::clone(&receiver);
        move |request| {
            let receiver = Arc::clone(&receiver);
            async move { receiver.receive(request).await }
        }
    };
    runtime.spawn(serve(listener, handler));
    let is_done = || {
        let received = receiver.received.load(Ordering::Acquire);
        args.count.is_some_and(|count| received >= count)
            || !receiver.is_read.load(Ordering::Acquire)
    };
    while !is_done() && !interrupt.is_raised() {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Lets the last response go out.
    runtime.shutdown_timeout(Duration::from_millis(200));
    Ok(Exit::Done)
}

/// A secret by reference, or itself. One that `subscriptions apply` refuses is refused here too.
fn key(secret: &str) -> Result<VerifyingKey, String> {
    let read = |secret: &str| {
        if !secret.trim().starts_with("whpk_") {
            SigningKey::read(secret).map_err(|error| format!("the secret {error}"))?;
        }
        VerifyingKey::read(secret)
    };
    if let Some(name) = secret.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| format!("the variable {name} is not set"))?;
        return read(&value);
    }
    if let Some(path) = secret.strip_prefix("file:") {
        let value = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        return read(&value);
    }
    read(secret)
}

impl Receiver {
    async fn receive(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let Some((parts, body)) = whole(request).await else {
            return respond(413);
        };
        let header = |name: &str| text(&parts.headers, name).map(str::to_owned);
        let id = header("webhook-id");
        let number = header("hookstream-attempt").and_then(|number| number.parse().ok());
        let attempt = number.or_else(|| Some(self.count(id.as_deref()?)));
        let verified = verify(&self.keys, &parts.headers, &body, clock::now().seconds());
        let (signature, is_valid) = match verified {
            _ if self.keys.is_empty() => ("unverified", true),
            Ok(()) => ("valid", true),
            Err(problem) => (problem, false),
        };
        let status = match attempt {
            _ if !is_valid => 401,
            Some(attempt) if attempt <= self.args.fail => 503,
            _ => self.args.status,
        };
        let headers = parts.headers.iter();
        let received = Received {
            at: clock::now().rfc3339(),
            path: parts.uri.to_string(),
            webhook_id: id,
            attempt,
            signature: signature.to_owned(),
            status: (!self.args.hang).then_some(status),
            headers: headers
                .map(|(name, value)| {
                    let value = String::from_utf8_lossy(value.as_bytes());
                    (name.to_string(), value.into_owned())
                })
                .collect(),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        self.print(&received);
        if self.args.hang {
            self.received.fetch_add(1, Ordering::AcqRel);
            std::future::pending::<()>().await;
        }
        if let Some(delay) = self.args.delay {
            tokio::time::sleep(delay).await;
        }
        self.received.fetch_add(1, Ordering::AcqRel);
        respond(status)
    }

    fn print(&self, received: &Received) {
        let line = match self.args.output {
            Output::Table => Ok(received.text()),
            Output::Json => serde_json::to_string_pretty(received),
            Output::Jsonl => serde_json::to_string(received),
        };
        let printed = line.map(|line| print::line_if_read(&line));
        if !matches!(printed, Ok(Ok(true))) {
            self.is_read.store(false, Ordering::Release);
        }
    }

    /// The number of this attempt.
    fn count(&self, id: &str) -> u32 {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= MAX_COUNTED {
            attempts.clear();
        }
        let attempt = attempts.entry(id.to_owned()).or_default();
        *attempt += 1;
        *attempt
    }
}

fn respond(status: u16) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_apply_refuses_is_refused_with_its_reason() {
        for (secret, why) in [
            ("whsec_c2hvcnQ=", "the secret has 5 bytes"),
            ("whsec_", "the secret is empty"),
            ("whsk_AAAA", "the secret has 3 bytes"),
            ("whpk_AAAA", "the secret has 3 bytes; whpk_ needs 32"),
            ("env:HOOKSTREAM_NO_SUCH_VARIABLE", "is not set"),
        ] {
            let error = key(secret).err().unwrap();
            assert!(error.contains(why), "{secret}: {error}");
        }
        let public = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=";
        let secret = format!("whsec_{}", "A".repeat(32));
        assert!(key(public).is_ok() && key(&secret).is_ok());
    }
}
