//! Whether an HTTP/1.1 connection may be used for another request.
//!
//! A server closes connections that it does not need, whenever it likes. A request that it receives at that moment is lost,
//! or worse, processed without a response; a POST must not be sent again by itself (RFC 9112, section 9.3.1). So a
//! connection is left before its server closes it: hints in `Keep-Alive` (RFC 2068, section 19.7.1.1) say when.

use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};

use crate::edge::clock;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// How long before its server closes it a connection is left: the time that a request may take to arrive.
const MARGIN: Duration = Duration::from_secs(1);

/// Sweeps per idle timeout. A connection is closed at the first sweep after the timeout, so up to an eighth later; in
/// exchange, returning a connection reads no clock, unless its server gave a hint.
const SWEEPS: u32 = 8;
/// How long idle connections are kept, in sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    /// The time between two sweeps.
    pub(super) every: Duration,
    /// At most.
    pub(super) most: u64,
    /// HTTP/1.1 connections whose server gave no hint.
    pub(super) unhinted: u64,
}

impl Idle {
    pub(super) fn new(most: Duration, unhinted: Duration) -> Self {
        /// The resolution of a timer.
        const FINEST: Duration = Duration::from_millis(1);
        let unhinted = unhinted.min(most);
        let every = (unhinted / SWEEPS).max(FINEST);
        let sweeps = |time: Duration| {
            u64::try_from(time.as_nanos().div_ceil(every.as_nanos())).unwrap_or(u64::MAX)
        };
        Self {
            every,
            most: sweeps(most),
            unhinted: sweeps(unhinted),
        }
    }
}

/// What a server has said about a connection.
#[derive(Debug, Default)]
pub(super) struct Reuse {
    until: Option<Instant>,
    /// Requests that it still accepts.
    left: Option<u64>,
}

impl Reuse {
    /// Heeds the headers of the latest response.
    pub(super) fn heed(&mut self, headers: &HeaderMap) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
        }
        if !headers.contains_key(KEEP_ALIVE) {
            self.until = None;
            return;
        }
        let values = headers.get_all(KEEP_ALIVE).iter();
        let hint = Hint::of(values.map(|value| value.as_bytes()));
        self.left = self.left.into_iter().chain(hint.max).min();
        let idle = hint.timeout.map(idle);
        self.until = idle.and_then(|idle| clock::instant().checked_add(idle));
    }

    /// Until when it may be used; `None` if the server has not said.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether the server accepts another request on it.
    pub(super) fn may_be_used(&self) -> bool {
        self.left != Some(0)
    }
}

/// How long a connection is used that its server keeps for so many seconds. A server that keeps it for less than two
/// rounds its timeout down to a second, or to none.
fn idle(timeout: u64) -> Duration {
    let timeout = Duration::from_secs(timeout);
    timeout.saturating_sub(MARGIN).max(timeout.min(MARGIN) / 2)
}

/// The parameters of `Keep-Alive`; of several values the smallest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hint {
    /// Seconds.
    timeout: Option<u64>,
    /// Further requests.
    max: Option<u64>,
}

impl Hint {
    fn of<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut hint = Self::default();
        for value in values {
            for parameter in value.split(|byte| matches!(byte, b',' | b';')) {
                let Some(at) = parameter.iter().position(|byte| *byte == b'=') else {
                    continue;
                };
                let name = parameter[..at].trim_ascii();
                let known = if name.eq_ignore_ascii_case(b"timeout") {
                    &mut hint.timeout
                } else if name.eq_ignore_ascii_case(b"max") {
                    &mut hint.max
                } else {
                    continue;
                };
                let value = number(&parameter[at + 1..]);
                *known = known.iter().copied().chain(value).min();
            }
        }
        hint
    }
}

/// The whole part of a number, quoted or not.
fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    let text = text.strip_prefix(b"\"").unwrap_or(text);
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let digits = std::str::from_utf8(&text[..digits]).ok()?;
    // One that does not fit is as good as the largest.
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX))
}

/// Whether a response announces a body although its status allows none (RFC 9112, section 6.3): what its server sends next
/// may be that body.
pub(super) fn has_forbidden_body(status: u16, headers: &HeaderMap) -> bool {
    if !matches!(status, 204 | 304) {
        return false;
    }
    let lengths = headers.get_all(CONTENT_LENGTH);
    lengths.iter().any(|length| length.as_bytes() != b"0")
        || headers.contains_key(TRANSFER_ENCODING)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        let parsed = pairs.map(|(name, value)| (name.parse::<HeaderName>(), value.parse()));
        parsed
            .map(|(name, value)| (name.unwrap(), value.unwrap()))
            .collect()
    }

    #[test]
    fn hints_are_read_in_every_form() {
        for (values, timeout, max) in [
            (&["timeout=5"][..], Some(5), None),
            (&["timeout=5, max=100"], Some(5), Some(100)),
            (&["Timeout = 5 ; MAX=\"7\""], Some(5), Some(7)),
            (&["max=3,timeout=5.9"], Some(5), Some(3)),
            (
                &["timeout=15", "timeout=5, max=9", "max=10"],
                Some(5),
                Some(9),
            ),
            (&["timeout=0, max=0"], Some(0), Some(0)),
            (&["timeout=99999999999999999999999"], Some(u64::MAX), None),
            (&["timeout=-1, max=", "300", "timeout", ""], None, None),
        ] {
            let hint = Hint::of(values.iter().map(|value| value.as_bytes()));
            assert_eq!(hint, Hint { timeout, max }, "{values:?}");
        }
    }

    #[test]
    fn a_connection_is_left_before_its_server_closes_it() {
        for (timeout, ms) in [
            (0, 0),
            (1, 500),
            (2, 1000),
            (3, 2000),
            (5, 4000),
            (75, 74_000),
        ] {
            assert_eq!(
                idle(timeout),
                Duration::from_millis(ms),
                "timeout={timeout}"
            );
        }
        let mut reuse = Reuse::default();
        reuse.heed(&headers(&[("keep-alive", "timeout=0")]));
        assert!(reuse.until().is_some_and(|until| until <= clock::instant()));
        reuse.heed(&headers(&[(
            "keep-alive",
            "timeout=99999999999999999999999",
        )]));
        assert!(reuse.until().is_none(), "no time can be so far away");
        reuse.heed(&headers(&[("keep-alive", "timeout=5")]));
        assert!(reuse.until().is_some());
        reuse.heed(&headers(&[]));
        assert!(reuse.until().is_none(), "the latest response counts");
    }

    #[test]
    fn a_server_gets_no_more_requests_than_it_accepts() {
        let mut reuse = Reuse::default();
        // Apache counts down, Node names its limit in each response.
        reuse.heed(&headers(&[("keep-alive", "max=2")]));
        assert!(reuse.may_be_used());
        reuse.heed(&headers(&[("keep-alive", "max=2")]));
        assert!(reuse.may_be_used());
        reuse.heed(&headers(&[]));
        assert!(!reuse.may_be_used());
        let mut last = Reuse::default();
        last.heed(&headers(&[("keep-alive", "timeout=5, max=0")]));
        assert!(!last.may_be_used());
    }

    #[test]
    fn a_body_that_its_status_forbids_is_noticed() {
        for (status, pairs, expected) in [
            (204, &[("content-length", "2")][..], true),
            (204, &[("content-length", "0")], false),
            (204, &[], false),
            (204, &[("transfer-encoding", "chunked")], true),
            (304, &[("content-length", "9")], true),
            (200, &[("content-length", "2")], false),
        ] {
            let found = has_forbidden_body(status, &headers(pairs));
            assert_eq!(found, expected, "{status} {pairs:?}");
        }
    }
}
