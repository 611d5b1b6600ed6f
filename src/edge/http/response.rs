//! A response, and the rest of its body on the connection that it arrives on.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::head::CutOff;
use super::limits::MAX_BODY_BYTES;
use super::line::Http1;
use super::pool::{Pool, Slot};
use super::received::Heard;
use crate::edge::clock;
use crate::model::retry_after;

/// A response.
#[derive(Debug)]
pub struct Answer<R = Rest> {
    /// 100 to 999; informational ones (1xx, but 101) are skipped.
    pub status: u16,
    /// How long the receiver wants no further request.
    pub retry_after: Option<Duration>,
    /// Its headers, if they were asked for.
    pub headers: Option<Box<HeaderMap>>,
    /// The unread body; `None` if it is empty or cannot be read. Dropping it unread closes the connection.
    pub rest: Option<R>,
}

/// How reading a body ended. The connection is reused only after [`Drained::Complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// At its end.
    Complete,
    /// It exceeded [`MAX_BODY_BYTES`].
    TooLong,
    /// The connection broke, or the framing was invalid.
    Failed,
    /// The deadline passed.
    Timeout,
}

/// What a request occupies until its response was read to its end.
#[derive(Debug)]
pub(super) enum OnLoan {
    /// An HTTP/1.1 connection, and the pool that it returns to. Dropping it closes the connection.
    Own { own: Box<Http1>, pool: Arc<Pool> },
    /// A stream of an HTTP/2 connection.
    Shared(Slot),
}

impl OnLoan {
    /// The response that hyper could not read because of `error`, if its status has arrived. A head that ended with its
    /// connection is none: what it means may depend on headers that are missing (RFC 9112, section 8). `heard` notes
    /// whether anything arrives.
    pub(super) async fn cut_off(
        self,
        error: &hyper::Error,
        heard: &Heard,
    ) -> Result<Answer, Failure> {
        let found = match self {
            Self::Own { own, .. } if !error.is_incomplete_message() => own.cut_off(heard).await,
            Self::Own { .. } | Self::Shared(_) => Err(None),
        };
        let found = found.map_err(|cause| {
            let of_tls = cause.as_ref().and_then(Failure::of_tls);
            of_tls.unwrap_or_else(|| Failure::of_exchange(error))
        })?;
        tracing::debug!(
            status = found.status,
            %error,
            "response could not be read beyond its status, connection closed"
        );
        Ok(Answer::of_cut_off(found))
    }

    fn end(self) {
        match self {
            Self::Own { own, pool } => pool.give_back(own),
            Self::Shared(slot) => drop(slot),
        }
    }
}

impl Answer {
    pub(super) fn of(
        response: http::Response<Incoming>,
        mut on: OnLoan,
        keeps_headers: bool,
    ) -> Self {
        let status = response.status().as_u16();
        if let OnLoan::Own { own, .. } = &mut on {
            own.heed(status, response.headers());
        }
        let retry_after = retry_after(response.headers());
        let (head, body) = response.into_parts();
        let headers = keeps_headers.then(|| Box::new(head.headers));
        let rest = if body.is_end_stream() {
            on.end();
            None
        } else {
            Some(Rest { body, on })
        };
        Self {
            status,
            retry_after,
            headers,
            rest,
        }
    }

    /// A response of which little more than the status could be read.
    pub(super) fn of_cut_off(response: CutOff) -> Self {
        Self {
            status: response.status,
            retry_after: wait(|| response.retry_after.iter().map(|value| &**value)),
            headers: None,
            rest: None,
        }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    if !headers.contains_key(RETRY_AFTER) {
        return None;
    }
    let values = headers.get_all(RETRY_AFTER);
    wait(|| values.iter().map(HeaderValue::as_bytes))
}

fn wait<'a, I: Iterator<Item = &'a [u8]>>(values: impl Fn() -> I) -> Option<Duration> {
    let wait = retry_after::wait(values(), clock::now());
    if wait.is_none() && values().next().is_some() {
        let values: Vec<_> = values()
            .map(|value| value.escape_ascii().to_string())
            .collect();
        tracing::debug!(
            ?values,
            "Retry-After ignored: neither seconds nor an HTTP date"
        );
    }
    wait
}

/// The unread body of a response.
#[derive(Debug)]
pub struct Rest {
    body: Incoming,
    /// What it arrives on.
    on: OnLoan,
}

impl Rest {
    /// Reads and discards the body, so that the connection can be reused. Pass the deadline of the
    /// [`post`](super::HttpClient::post): a whole attempt has a single deadline.
    pub async fn drain(self, deadline: Instant) -> Drained {
        if self.body.size_hint().lower() > MAX_BODY_BYTES as u64 {
            return Drained::TooLong;
        }
        self.read(deadline, |_| ()).await
    }

    /// Does the same, but keeps up to [`MAX_BODY_BYTES`] for a log or record, including what arrived before an error.
    pub async fn read_snippet(self, deadline: Instant) -> (Vec<u8>, Drained) {
        let mut snippet = Vec::new();
        let drained = self
            .read(deadline, |data| {
                let room = MAX_BODY_BYTES - snippet.len();
                snippet.extend_from_slice(&data[..data.len().min(room)]);
            })
            .await;
        (snippet, drained)
    }

    async fn read(mut self, deadline: Instant, mut keep: impl FnMut(&[u8])) -> Drained {
        let whole = Self::read_on(&mut self.body, &mut self.on, &mut keep);
        let drained = timeout_at(deadline, whole)
            .await
            .unwrap_or(Drained::Timeout);
        if drained == Drained::Complete {
            self.on.end();
        }
        drained
    }

    async fn read_on(
        body: &mut Incoming,
        on: &mut OnLoan,
        keep: &mut impl FnMut(&[u8]),
    ) -> Drained {
        let mut total = 0;
        loop {
            let frame = poll_fn(|cx| {
                if let OnLoan::Own { own, .. } = on {
                    own.drive(cx);
                }
                Pin::new(&mut *body).poll_frame(cx)
            });
            let frame = match frame.await {
                None => return Drained::Complete,
                Some(Err(_)) => return Drained::Failed,
                Some(Ok(frame)) => frame,
            };
            let Some(data) = frame.data_ref() else {
                continue;
            };
            keep(data);
            total += data.len();
            if total > MAX_BODY_BYTES {
                return Drained::TooLong;
            }
        }
    }
}
