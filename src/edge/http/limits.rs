//! The bounds of the HTTP client: see the table in [`super`].

use std::time::Duration;

/// For one connection: look-up, TCP and TLS together.
pub const DIAL_LIMIT: Duration = Duration::from_secs(30);
/// For the TCP part, shared evenly among the addresses of a name, so that a dead one leaves time for the next.
pub const TCP_LIMIT: Duration = Duration::from_secs(10);
/// Of a response, bytes: status line and headers.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// Of an HTTP/1.1 response.
pub const MAX_HEADERS: usize = 100;
/// Of a response body, bytes. Longer ones are not read on.
pub const MAX_BODY_BYTES: usize = 16 * 1024;
/// While requests are open on an HTTP/2 connection, it is pinged this often: nothing else would notice that
/// its peer is gone, and the pool would hand it out for ever.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(15);
/// For the answer to a ping.
pub const H2_PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What one response, and all of one connection, may have in flight towards us, bytes.
pub(super) const H2_STREAM_WINDOW: u32 = 64 * 1024;
pub(super) const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
