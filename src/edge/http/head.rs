//! The status of a response whose rest cannot be read.
//!
//! hyper reports a response only when it could parse the whole head, and discards what it has read otherwise. But the
//! status line alone decides about an attempt: a 200 with 101 header lines is a delivery, and a 410 stays one. So a tap on
//! the connection reads the status line too, and where hyper fails, the tap's status counts and the connection is closed.
//!
//! | the response | hyper | the tap |
//! |---|---|---|
//! | 2xx | reads it | looks at the first 13 bytes, copies nothing |
//! | another status | reads it | goes through the head line by line, keeps `Retry-After` |
//! | more or longer headers than the limits, control characters, contradictory lengths | fails | has the status |
//! | arrived before the request was written, which then failed | did not look | reads it from the socket (RFC 9112, section 9.5) |
//! | ended with its connection before the head did | fails | is not asked: an incomplete response is none (section 8) |
//! | interim responses (1xx) without an end | reads on | fails after [`MAX_INTERIM`], or 256 KiB |
//! | no status line | fails | has nothing: the response is not HTTP |

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::MAX_HEADER_BYTES;

/// The maximum length of a line that is looked at: no status code and no `Retry-After` is that long.
const MAX_LINE: usize = 1024;
/// The maximum number of `Retry-After` headers that are kept.
const MAX_VALUES: usize = 8;
/// The maximum number of interim responses. Each costs hyper as much as a whole response, so a row of them that is small on
/// the wire keeps the thread busy that other subscribers share: 9,000 of them, which are 256 KiB, a hundred times as long as
/// a usual attempt. Servers send a few at most, since no request asks for `100 Continue`.
const MAX_INTERIM: usize = 20;
/// The maximum bytes before the status that counts: what precedes it is otherwise read, as fast as it arrives, until the
/// deadline of the attempt.
const MAX_INTERIM_BYTES: usize = 8 * MAX_HEADER_BYTES;

/// The server sends interim responses (1xx) and no other.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server sent more than {MAX_INTERIM} interim responses (1xx), or {MAX_INTERIM_BYTES} bytes of them, before a final one"
)]
pub(super) struct EndlessInterim;

/// What is known of a response that hyper could not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CutOff {
    pub(super) status: u16,
    /// The values of its `Retry-After` headers, as far as they were received.
    pub(super) retry_after: Vec<Box<[u8]>>,
}

/// What a connection's owner and its tap tell each other. Both run on the same task.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Set by the owner: the next byte begins a response.
    begins: AtomicBool,
    /// Set by either: the connection must not be used again.
    closes: AtomicBool,
}

impl Marks {
    /// A request is sent now.
    pub(super) fn begin(&self) {
        self.begins.store(true, Ordering::Relaxed);
    }

    /// The connection must not be used again.
    pub(super) fn close(&self) {
        self.closes.store(true, Ordering::Relaxed);
    }

    /// Whether the connection must not be used again.
    pub(super) fn closes(&self) -> bool {
        self.closes.load(Ordering::Relaxed)
    }
}

/// A connection whose responses are watched.
#[derive(Debug)]
pub(super) struct Tap<T> {
    inner: T,
    marks: Arc<Marks>,
    seen: Seen,
    /// The bytes of the response so far, while its status is not known.
    before_status: usize,
}

impl<T: AsyncRead + Unpin> Tap<T> {
    pub(super) fn new(inner: T, marks: Arc<Marks>) -> Self {
        Self {
            inner,
            marks,
            seen: Seen::default(),
            before_status: 0,
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.marks.begins.load(Ordering::Relaxed) {
            self.marks.begins.store(false, Ordering::Relaxed);
            self.seen.begin();
            self.before_status = 0;
        }
        self.seen.read(bytes);
        self.before_status = match self.seen.status() {
            None if !self.seen.is_done() => self.before_status + bytes.len(),
            _ => 0,
        };
        if self.seen.announces_body {
            self.marks.close();
        }
    }

    /// The status of the response that hyper gave up; reads on until it is known or the connection ends, and returns the
    /// error that ended it, if there was one. For other statuses than 2xx it also reads the headers that have arrived.
    pub(super) async fn cut_off(mut self) -> Result<CutOff, Option<io::Error>> {
        const CHUNK: usize = 4096;
        let mut chunk = vec![0; CHUNK];
        // Beyond the limit, headers are not read; whatever comes before the status is bounded by the attempt's deadline.
        let mut left = MAX_HEADER_BYTES;
        let mut ended = None;
        if self.marks.begins.load(Ordering::Relaxed) {
            // Nothing of the response has arrived yet.
            self.seen.begin();
        }
        while !self.seen.is_done() && left > 0 {
            let is_known = self.seen.status().is_some();
            let mut buffer = ReadBuf::new(&mut chunk);
            let polled = poll_fn(|cx| match Pin::new(&mut self).poll_read(cx, &mut buffer) {
                Poll::Pending if is_known => Poll::Ready(Ok(())),
                polled => polled,
            });
            let polled = polled.await;
            match (polled, buffer.filled().len()) {
                (Err(error), _) => {
                    ended = Some(error);
                    break;
                }
                (Ok(()), 0) => break,
                (Ok(()), read) if is_known => left = left.saturating_sub(read),
                (Ok(()), _) => {}
            }
        }
        self.seen.into_cut_off().ok_or(ended)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tap<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        this.note(&buffer.filled()[before..]);
        if this.before_status > MAX_INTERIM_BYTES || this.seen.interim > MAX_INTERIM {
            this.marks.close();
            return Poll::Ready(Err(io::Error::other(EndlessInterim)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tap<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, parts)
    }
}

/// The place in a response up to which it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// In the status line, whose code is not known yet.
    #[default]
    StatusLine,
    /// After the code, in the head of a response with this status.
    Head(u16),
    /// Behind everything of interest in a response with this status.
    Done(u16),
    /// In something other than HTTP.
    NotHttp,
}

/// What was seen of a response. Pure; takes the bytes in any pieces.
#[derive(Debug, Default)]
struct Seen {
    place: Place,
    /// The current line, up to [`MAX_LINE`].
    line: Vec<u8>,
    retry_after: Vec<Box<[u8]>>,
    /// The interim responses before this one; one more than [`MAX_INTERIM`] is the last thing that is read.
    interim: usize,
    /// Whether an interim response announces a body, which it cannot have: what follows it is not what its sender meant.
    announces_body: bool,
}

/// What the tap makes of a response that arrives in these pieces: its status, and the values of its `Retry-After` headers.
/// For tests.
#[must_use]
pub fn read_head<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(u16, Vec<Box<[u8]>>)> {
    let mut seen = Seen::default();
    seen.begin();
    pieces.for_each(|piece| seen.read(piece));
    let found = seen.into_cut_off()?;
    Some((found.status, found.retry_after))
}

impl Seen {
    /// The next byte begins a response.
    fn begin(&mut self) {
        self.place = Place::StatusLine;
        self.line.clear();
        self.retry_after.clear();
        self.interim = 0;
    }

    fn status(&self) -> Option<u16> {
        match self.place {
            Place::Head(status) if !is_interim(status) => Some(status),
            Place::Done(status) => Some(status),
            Place::Head(_) | Place::StatusLine | Place::NotHttp => None,
        }
    }

    /// Whether nothing more is to be learnt of it.
    fn is_done(&self) -> bool {
        matches!(self.place, Place::Done(_) | Place::NotHttp) || self.interim > MAX_INTERIM
    }

    fn into_cut_off(self) -> Option<CutOff> {
        Some(CutOff {
            status: self.status()?,
            retry_after: self.retry_after,
        })
    }

    fn read(&mut self, bytes: &[u8]) {
        if self.is_done() {
            return;
        }
        if self.place == Place::StatusLine
            && self.line.is_empty()
            && let Code::Is(status @ 200..=299) = code(bytes)
        {
            self.place = Place::Done(status);
            return;
        }
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.read_piece(piece);
            if self.is_done() {
                return;
            }
        }
    }

    /// A line, or a part of one.
    fn read_piece(&mut self, piece: &[u8]) {
        let room = MAX_LINE - self.line.len();
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
        let has_ended = piece.ends_with(b"\n");
        if self.place == Place::StatusLine {
            let is_blank = self.line.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
            match code(&self.line) {
                _ if is_blank => {}
                Code::Is(status @ 200..=299) => self.place = Place::Done(status),
                Code::Is(status) => self.place = Place::Head(status),
                Code::MayFollow if !has_ended && self.line.len() < MAX_LINE => {}
                Code::MayFollow | Code::IsNone => self.place = Place::NotHttp,
            }
        } else if has_ended && let Place::Head(status) = self.place {
            self.end_line(status);
        }
        if has_ended {
            self.line.clear();
        }
    }

    fn end_line(&mut self, status: u16) {
        let line = self.line.trim_ascii();
        if line.is_empty() {
            self.place = if is_interim(status) {
                self.interim += 1;
                self.retry_after.clear();
                Place::StatusLine
            } else {
                Place::Done(status)
            };
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return;
        };
        let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"retry-after") && self.retry_after.len() < MAX_VALUES {
            self.retry_after.push(value.into());
        }
        let has_length = name.eq_ignore_ascii_case(b"content-length") && value != b"0";
        if is_interim(status) && (has_length || name.eq_ignore_ascii_case(b"transfer-encoding")) {
            self.announces_body = true;
        }
    }
}

/// Whether another response follows. 101 is final, since nothing is upgraded here.
fn is_interim(status: u16) -> bool {
    matches!(status, 100 | 102..=199)
}

/// The code of a status line.
#[derive(Debug, PartialEq, Eq)]
enum Code {
    Is(u16),
    /// The line is too short so far.
    MayFollow,
    IsNone,
}

/// Reads the code of the status line that `bytes` begin with. A higher minor version is read as HTTP/1.1 (RFC 9110,
/// section 2.5), and there may be several spaces and no reason.
fn code(bytes: &[u8]) -> Code {
    const VERSION: &[u8] = b"HTTP/1.";
    let known = bytes.len().min(VERSION.len());
    if bytes[..known] != VERSION[..known] {
        return Code::IsNone;
    }
    let rest = match &bytes[known..] {
        [] => return Code::MayFollow,
        [minor, rest @ ..] if minor.is_ascii_digit() => rest,
        _ => return Code::IsNone,
    };
    let is_space = |byte: &&u8| matches!(byte, b' ' | b'\t');
    let spaces = rest.iter().take_while(is_space).count();
    let (has_space, digits) = (spaces > 0, &rest[spaces..]);
    match digits {
        _ if !has_space && !rest.is_empty() => Code::IsNone,
        [a @ b'1'..=b'9', b, c, end, ..] if b.is_ascii_digit() && c.is_ascii_digit() => {
            let status = [a, b, c].map(|digit| u16::from(digit - b'0'));
            if end.is_ascii_whitespace() {
                Code::Is(status[0] * 100 + status[1] * 10 + status[2])
            } else {
                Code::IsNone
            }
        }
        [] => Code::MayFollow,
        [b'1'..=b'9', rest @ ..] if rest.len() < 3 && rest.iter().all(u8::is_ascii_digit) => {
            Code::MayFollow
        }
        _ => Code::IsNone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of `bytes`, which must not depend on how they are cut.
    fn seen(bytes: &[u8]) -> Option<CutOff> {
        let all = |pieces: Vec<&[u8]>| {
            let mut seen = Seen::default();
            pieces.into_iter().for_each(|piece| seen.read(piece));
            seen.into_cut_off()
        };
        let whole = all(vec![bytes]);
        for cut in 1..bytes.len().min(80) {
            let (first, second) = bytes.split_at(cut);
            assert_eq!(all(vec![first, second]), whole, "cut at {cut}");
        }
        assert_eq!(all(bytes.chunks(1).collect()), whole, "byte by byte");
        whole
    }

    #[test]
    fn the_status_counts_as_soon_as_its_code_is_there() {
        for (bytes, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.1 200 ", Some(200)),
            ("HTTP/1.1 200\r", Some(200)),
            ("HTTP/1.1 204\n", Some(204)),
            ("HTTP/1.0 410 Gone\r\nx", Some(410)),
            ("HTTP/1.2 200 OK\r\n", Some(200)),
            ("HTTP/1.1   400 No\r\n", Some(400)),
            ("\r\n\r\nHTTP/1.1 200 OK\r\n", Some(200)),
            ("\nHTTP/1.1 503 No\r\n", Some(503)),
            ("HTTP/1.1 101 Switching\r\n", Some(101)),
            ("HTTP/1.1 999 \r\n", Some(999)),
            (
                "HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n",
                Some(200),
            ),
            (
                "HTTP/1.1 100 Go\n\nHTTP/1.1 102 Go\r\n\r\nHTTP/1.1 400 No\r\n",
                Some(400),
            ),
            ("HTTP/1.1 103 Early\r\nlink: x\r\n", None),
            ("HTTP/1.1 200", None),
            ("HTTP/1.1 20", None),
            ("HTTP/1.", None),
            ("", None),
            ("HTTP/1.1 2000 OK\r\n", None),
            ("HTTP/1.1 20 OK\r\n", None),
            ("HTTP/1.1 099 OK\r\n", None),
            ("HTTP/1.1 2x0 OK\r\n", None),
            ("HTTP/1.1 -20 OK\r\n", None),
            ("HTTP/1.1200 OK\r\n", None),
            ("HTTP/1.1\r\n200 OK\r\n", None),
            ("HTTP/1.1 \r\n200 OK\r\n", None),
            ("HTTP/2 200 OK\r\n", None),
            ("http/1.1 200 OK\r\n", None),
            ("SSH-2.0-OpenSSH_9.6\r\nHTTP/1.1 200 OK\r\n", None),
            ("hiHTTP/1.1 200 OK\r\n", None),
        ] {
            let found = seen(bytes.as_bytes()).map(|found| found.status);
            assert_eq!(found, expected, "{bytes:?}");
        }
    }

    #[test]
    fn retry_after_is_kept_as_far_as_it_was_received() {
        let head = "HTTP/1.1 103 Early\r\nRetry-After: 9\r\n\r\nHTTP/1.1 429 Slow\r\nRetry-After : 8\r\nx\r\nRETRY-AFTER:120\n";
        let values = |text: &str| seen(text.as_bytes()).unwrap().retry_after;
        let expected: Vec<Box<[u8]>> = vec![(*b"8").into(), (*b"120").into()];
        assert_eq!(values(head), expected);
        assert_eq!(values(&format!("{head}retry-after: 3")), expected);
        assert_eq!(values(&format!("{head}\r\nretry-after: 3\r\n")), expected);
        let many = "HTTP/1.1 429 Slow\r\n".to_owned() + &"retry-after: 1\r\n".repeat(100);
        assert_eq!(values(&many).len(), MAX_VALUES);
    }

    #[test]
    fn a_line_of_any_length_takes_little_memory() {
        let mut seen = Seen::default();
        seen.read(b"HTTP/1.1 500 No\r\nx: ");
        for _ in 0..1000 {
            seen.read(&[b'y'; 1000]);
        }
        assert!(seen.line.len() <= MAX_LINE);
        seen.read(b"\r\nretry-after: 7\r\n");
        assert_eq!(seen.into_cut_off().unwrap().retry_after.len(), 1);
        let mut endless = Seen::default();
        for _ in 0..1000 {
            endless.read(b"HTTP/1.1     ");
        }
        assert_eq!(endless.place, Place::NotHttp);
    }

    #[test]
    fn of_a_row_of_interim_responses_a_few_are_read() {
        let interim = "HTTP/1.1 103 Early\r\n\r\n";
        let with = |count: usize| {
            seen(format!("{}HTTP/1.1 410 Gone\r\n\r\n", interim.repeat(count)).as_bytes())
        };
        assert_eq!(with(MAX_INTERIM).map(|found| found.status), Some(410));
        assert_eq!(with(MAX_INTERIM + 1), None);
        let mut endless = Seen::default();
        endless.read(interim.repeat(10_000).as_bytes());
        assert_eq!(
            endless.interim,
            MAX_INTERIM + 1,
            "the others are not looked at"
        );
        endless.begin();
        endless.read(b"HTTP/1.1 200 OK\r\n");
        assert_eq!(endless.status(), Some(200), "each response has its own");
    }

    #[test]
    fn an_interim_response_with_a_body_is_noticed() {
        for (lines, expected) in [
            ("Content-Length: 2\r\n", true),
            ("content-length : 2\n", true),
            ("Transfer-Encoding: chunked\r\n", true),
            ("content-length: 0\r\n", false),
            ("link: a\r\n", false),
        ] {
            let mut seen = Seen::default();
            seen.read(format!("HTTP/1.1 103 Early\r\n{lines}\r\n").as_bytes());
            assert_eq!(seen.announces_body, expected, "{lines:?}");
        }
    }
}
