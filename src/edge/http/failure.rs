//! Maps errors of the HTTP stack to metric classes, with one sentence for operators.
//!
//! By type, never by text. A sentence contains at most hosts and addresses: no path, query, header or body. The words are
//! those of this program, since a library's are for its own users, and change.

use std::error::Error;
use std::io;
use std::time::Duration;

use super::dial::DialError;
use super::head::EndlessInterim;
use super::limits::{H2_MAX_HEADER_BYTES, MAX_HEADER_BYTES};
use super::line::OpenError;
use super::proxy::ProxyError;
use super::tls_error;
use super::verify::Notes;
use crate::model::units::format_duration;

/// The label `class` of attempts without response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The deadline passed before the response headers were complete.
    Timeout,
    /// No address, or no TCP connection.
    Connect,
    /// The handshake failed, or the certificate is not trusted.
    Tls,
    /// The egress policy denies the target.
    Egress,
    /// Connected, but no valid HTTP response.
    Other,
}

impl FailureClass {
    /// The text in metrics and dead letters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Egress => "egress",
            Self::Other => "other",
        }
    }
}

/// An attempt without response headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For metrics and decisions.
    pub class: FailureClass,
    /// For operators; one sentence without secrets.
    pub error: String,
    /// Whether the endpoint was heard: bytes came from it during the request that are not a complete response, also when
    /// the deadline passed or the connection ended after them.
    pub heard: bool,
    /// Whether the server certainly did not process the request (RFC 9113, section 8.7): it was refused, or its HTTP/2
    /// connection was retired before its turn.
    pub is_unprocessed: bool,
}

impl Failure {
    fn new(class: FailureClass, error: impl Into<String>) -> Self {
        Self {
            class,
            error: error.into(),
            heard: false,
            is_unprocessed: false,
        }
    }

    fn heard(self, heard: bool) -> Self {
        Self { heard, ..self }
    }

    pub(super) fn timeout(waited: Duration) -> Self {
        let shown = format_duration(rounded(waited));
        Self::new(
            FailureClass::Timeout,
            format!("no response headers within {shown}"),
        )
    }

    pub(super) fn of_open(error: &OpenError) -> Self {
        match error {
            OpenError::Dial(error) => Self::of_dial(error),
            OpenError::Handshake(error) => Self::of_exchange(error),
        }
    }

    /// The failure of an open connection, if its TLS has failed.
    pub(super) fn of_tls(error: &io::Error) -> Option<Self> {
        Self::of_tls_in(&chain(error))
    }

    fn of_tls_in(chain: &[Link<'_>]) -> Option<Self> {
        let tls = find::<rustls::Error>(chain)?;
        let text = format!(
            "the tls connection failed: {}",
            tls_error::of_connection(tls)
        );
        Some(Self::new(FailureClass::Tls, text).heard(true))
    }

    /// The failure of a request on an open connection.
    pub(super) fn of_exchange(error: &hyper::Error) -> Self {
        let chain = chain(error);
        if let Some(failure) = Self::of_tls_in(&chain) {
            return failure;
        }
        if find(&chain).is_some_and(is_refusal) {
            return Self {
                is_unprocessed: true,
                heard: true,
                ..Self::new(
                    FailureClass::Other,
                    "the server refused the request before it processed it",
                )
            };
        }
        if let Some(endless) = find::<EndlessInterim>(&chain) {
            return Self::new(FailureClass::Other, endless.to_string()).heard(true);
        }
        let http2 = find::<h2::Error>(&chain);
        // An error of HTTP/2 does not report that of the socket as its source.
        let io = find(&chain).or_else(|| http2.and_then(h2::Error::get_io));
        let broke = error.is_incomplete_message()
            || error.is_canceled()
            || error.is_closed()
            || error.is_timeout();
        // Not HTTP, too large, or an error of HTTP/2.
        let heard = error.is_parse() || io.is_none() && !broke;
        let text = match http2 {
            Some(http2) if io.is_none() => of_http2(http2),
            _ => of_hyper(error, io),
        };
        Self::new(FailureClass::Other, text).heard(heard)
    }

    fn of_dial(error: &DialError) -> Self {
        match error {
            DialError::Denied(denied) => Self::new(FailureClass::Egress, denied.to_string()),
            DialError::Resolve(cause) => Self::new(
                FailureClass::Connect,
                format!("dns lookup found no address: {cause}"),
            ),
            DialError::NoAddress => Self::new(FailureClass::Connect, "dns lookup found no address"),
            DialError::Tcp(cause) => Self::new(FailureClass::Connect, of_socket(cause)),
            DialError::Tls(cause, notes) => Self::of_handshake(cause, notes),
            DialError::Proxy(error) => Self::of_proxy(error),
            DialError::TimedOut => Self::new(FailureClass::Connect, error.to_string()),
            DialError::Other(_) => Self::new(FailureClass::Connect, "no connection"),
        }
    }

    /// The proxy's own faults are not the endpoint's: nothing was sent to it.
    fn of_proxy(error: &ProxyError) -> Self {
        let class = match error {
            ProxyError::Fault(_) => FailureClass::Other,
            ProxyError::Denied => FailureClass::Egress,
            ProxyError::Unreachable(_) => FailureClass::Connect,
        };
        Self {
            is_unprocessed: matches!(error, ProxyError::Fault(_)),
            ..Self::new(class, error.to_string())
        }
    }

    fn of_handshake(cause: &io::Error, notes: &Notes) -> Self {
        let chain = chain(cause);
        let tls = find::<rustls::Error>(&chain);
        let why = match tls {
            Some(tls) => tls_error::of_handshake(tls, notes),
            None => innermost_io(&chain).map_or_else(|| cause.kind().to_string(), of_socket),
        };
        Self::new(
            FailureClass::Tls,
            format!("the tls handshake failed: {why}"),
        )
        .heard(tls.is_some())
    }
}

/// The sentence about the TLS of a connection, if that is what an error comes from.
pub(crate) fn tls_reason(error: &(dyn Error + 'static)) -> Option<String> {
    let chain = chain(error);
    let tls = find::<rustls::Error>(&chain)?;
    Some(tls_error::of_handshake(tls, &Notes::default()))
}

/// GOAWAY fails only streams above the last one that the server may have processed; others fail when the connection
/// closes.
fn is_refusal(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}

fn of_hyper(error: &hyper::Error, io: Option<&io::Error>) -> String {
    if error.is_parse_too_large() {
        return format!(
            "the response headers are too large; at most {MAX_HEADER_BYTES} bytes are read"
        );
    }
    if error.is_parse() {
        return "the response was not HTTP".to_owned();
    }
    if error.is_incomplete_message() {
        return "the connection closed before the response was complete".to_owned();
    }
    if error.is_canceled() || error.is_closed() {
        return "the connection closed before the request was sent".to_owned();
    }
    match io {
        Some(io) => format!(
            "the connection broke before the response was complete: {}",
            of_socket(io)
        ),
        // hyper has a predicate for every other kind.
        None => "bytes arrived that belong to no response".to_owned(),
    }
}

/// An error of HTTP/2: what the server did, or what is wrong with what it sent.
fn of_http2(error: &h2::Error) -> String {
    let is_too_large = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if !error.is_remote() && error.is_reset() && is_too_large {
        return format!(
            "the response headers are too large; at most {H2_MAX_HEADER_BYTES} bytes are read"
        );
    }
    let code = error.reason().map_or("unknown error", code);
    match (error.is_remote(), error.is_reset()) {
        (true, true) => format!("the server reset the stream ({code})"),
        (true, false) => format!("the server closed the connection ({code})"),
        (false, true) => format!("the response was not valid HTTP/2 ({code})"),
        (false, false) => format!("the connection was not valid HTTP/2 ({code})"),
    }
}

/// The name of an error code (RFC 9113, section 7).
fn code(reason: h2::Reason) -> &'static str {
    match reason {
        h2::Reason::NO_ERROR => "NO_ERROR",
        h2::Reason::PROTOCOL_ERROR => "PROTOCOL_ERROR",
        h2::Reason::INTERNAL_ERROR => "INTERNAL_ERROR",
        h2::Reason::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        h2::Reason::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
        h2::Reason::STREAM_CLOSED => "STREAM_CLOSED",
        h2::Reason::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        h2::Reason::REFUSED_STREAM => "REFUSED_STREAM",
        h2::Reason::CANCEL => "CANCEL",
        h2::Reason::COMPRESSION_ERROR => "COMPRESSION_ERROR",
        h2::Reason::CONNECT_ERROR => "CONNECT_ERROR",
        h2::Reason::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
        h2::Reason::INADEQUATE_SECURITY => "INADEQUATE_SECURITY",
        h2::Reason::HTTP_1_1_REQUIRED => "HTTP_1_1_REQUIRED",
        _ => "unknown error",
    }
}

/// The kind, without the error number that the system appends.
fn of_socket(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "the connection timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "the connection closed".to_owned(),
        kind => kind.to_string(),
    }
}

type Link<'a> = &'a (dyn Error + 'static);

/// An error and its causes. `io::Error::source` skips the error that it wraps, so it is inserted.
fn chain(error: Link<'_>) -> Vec<Link<'_>> {
    let mut links = Vec::with_capacity(4);
    let mut next = Some(error);
    while let Some(link) = next {
        links.push(link);
        next = match link
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(carried) => Some(carried),
            None => link.source(),
        };
    }
    links
}

/// The text of an error and of its causes, each once.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn find<'a, E: Error + 'static>(chain: &[Link<'a>]) -> Option<&'a E> {
    chain.iter().find_map(|link| link.downcast_ref())
}

fn innermost_io<'a>(chain: &[Link<'a>]) -> Option<&'a io::Error> {
    chain.iter().rev().find_map(|link| link.downcast_ref())
}

/// Rounds to the configured value rather than the time of the timer: to 100 ms, below a second to 10 ms.
fn rounded(waited: Duration) -> Duration {
    let step = if waited < Duration::from_millis(950) {
        10
    } else {
        100
    };
    let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis((ms.saturating_add(step / 2) / step * step).max(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_told_as_it_was_set() {
        for (waited, told) in [
            (15_001, "15s"),
            (14_996, "15s"),
            (203, "200ms"),
            (0, "10ms"),
            (1_500, "1500ms"),
        ] {
            let failure = Failure::timeout(Duration::from_millis(waited));
            assert_eq!(failure.error, format!("no response headers within {told}"));
        }
    }

    #[test]
    fn an_error_carried_by_an_io_error_is_found() {
        let carried = io::Error::other(io::Error::other(rustls::Error::DecryptError));
        assert_eq!(
            find::<rustls::Error>(&chain(&carried)),
            Some(&rustls::Error::DecryptError)
        );
    }
}
