//! The limits of the HTTP client: see the table in [`super`].

use std::time::Duration;

/// The time limit for one connection: DNS lookup, TCP and TLS together.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for TCP, shared evenly among the addresses of a name, so that a dead one leaves time for the next.
pub const TCP_LIMIT: Duration = Duration::from_secs(10);
/// The maximum size of the status line and headers of an HTTP/1.1 response, in bytes.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The maximum number of headers of an HTTP/1.1 response: hyper's default, which it need not allocate.
pub const MAX_HEADERS: usize = 100;
/// The maximum size of the headers of an HTTP/2 response, in bytes, with 32 for each header (RFC 9113, section 6.5.2).
/// Beyond it the status is lost, so it is far larger than any sensible response; the headers are dropped once they are read.
pub const H2_MAX_HEADER_BYTES: u32 = 512 * 1024;
/// How long an idle HTTP/1.1 connection is kept whose server sends no `Keep-Alive` hint. Among common servers that close
/// without one, gunicorn closes after 2 s, uvicorn, lighttpd and Varnish after 5 s.
pub const UNHINTED_IDLE: Duration = Duration::from_millis(1500);
/// The maximum size of a response body, in bytes. Reading stops beyond it.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// The interval of pings on an HTTP/2 connection with open requests: otherwise a dead peer would go unnoticed, and the
/// pool would keep handing out its connection.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(15);
/// The time limit for the response to a ping.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of streams on one HTTP/2 connection, however many its server accepts.
pub const MAX_STREAMS: usize = 100;
/// The receive window of one stream and of one connection, in bytes.
pub(super) const H2_STREAM_WINDOW: u32 = 64 * 1024;
pub(super) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Descriptors kept free for Kafka, files and the admin server.
const OTHER_FILES: u64 = 512;
/// The bounds of [`max_idle`]: an idle TLS connection holds some 30 KB. It is more where more requests may be in flight,
/// since each of them has a connection anyway, which the next one needs.
const IDLE: std::ops::RangeInclusive<usize> = 64..=8192;

/// The maximum number of idle connections of a process that may open `files` files and sends up to `in_flight` requests
/// at once: what these leave, within limits.
#[must_use]
pub fn max_idle(files: u64, in_flight: usize) -> usize {
    let left = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    left.saturating_sub(in_flight)
        .clamp(*IDLE.start(), in_flight.max(*IDLE.end()))
}

#[cfg(test)]
mod tests {
    use super::max_idle;

    #[test]
    fn idle_connections_get_the_descriptors_that_nothing_else_needs() {
        assert_eq!(max_idle(4096, 1024), 2560);
        assert_eq!(max_idle(1024, 1024), 64);
        assert_eq!(max_idle(u64::MAX, 1024), 8192);
        assert_eq!(max_idle(u64::MAX, 20_000), 20_000);
        assert_eq!(max_idle(30_512, 20_000), 10_000);
    }
}
