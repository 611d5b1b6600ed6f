//! Notes whether anything arrived from an endpoint while a request was waiting for it, whatever became of the request.
//!
//! The HTTP stack reports neither the bytes before a deadline nor those before a premature end of the connection, so they
//! are counted below TLS, once per read.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The number of reads of a connection that returned bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Received(Arc<AtomicU64>);

impl Received {
    pub(super) fn reads(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether anything arrived during a request.
#[derive(Debug, Default)]
pub(super) struct Heard(AtomicBool);

impl Heard {
    fn note(&self, heard: bool) {
        if heard {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// What arrived so far does not count.
    pub(super) fn reset(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Completes `future`, and notes what arrives meanwhile on its connection. A deadline polls the future once more, so that
/// this sees all that arrived before.
pub(super) async fn listen<F: Future>(future: F, received: &Received, heard: &Heard) -> F::Output {
    let before = received.reads();
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        heard.note(received.reads() != before);
        polled
    })
    .await
}

/// A TCP connection that counts its reads.
#[derive(Debug)]
pub(super) struct Counted {
    tcp: TcpStream,
    received: Received,
}

impl Counted {
    pub(super) fn new(tcp: TcpStream, received: Received) -> Self {
        Self { tcp, received }
    }
}

impl Connection for Counted {
    fn connected(&self) -> Connected {
        self.tcp.connected()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.received.0.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
