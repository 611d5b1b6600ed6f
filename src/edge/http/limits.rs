//! The limits of the HTTP client: see the table in [`super`].

use std::time::Duration;

/// The time limit for one connection: DNS lookup, TCP and TLS together.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// The time limit for TCP, shared evenly among the addresses of a name, so that a dead one leaves time for the next.
pub const TCP_LIMIT: Duration = Duration::from_secs(10);
/// The maximum size of a response's status line and headers, in bytes.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// The maximum number of headers of an HTTP/1.1 response.
pub const MAX_HEADERS: usize = 100;
/// The maximum size of a response body, in bytes. Reading stops beyond it.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// The interval of pings on an HTTP/2 connection with open requests: otherwise a dead peer would go unnoticed, and the
/// pool would keep handing out its connection.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(15);
/// The time limit for the response to a ping.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The receive window of one stream and of one connection, in bytes.
pub(super) const H2_STREAM_WINDOW: u32 = 64 * 1024;
pub(super) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
