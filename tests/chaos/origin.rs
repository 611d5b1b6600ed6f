//! An HTTP/2 origin that several tenants share. It accepts few streams on a connection, and passes requests on to a
//! receiver, which decides what to do with them and records them.

use std::error::Error;
use std::io::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::it::support::{Receiver, block_on};

/// The streams that a connection may have: fewer than a tenant has requests in flight.
const STREAMS: u32 = 8;

/// A server on a free loopback port; it ends with the process.
pub struct Origin {
    port: u16,
    /// What makes its certificate trusted.
    ca: tempfile::NamedTempFile,
}

impl Origin {
    /// In front of a receiver.
    pub fn start(receiver: &Receiver) -> Self {
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let mut ca = tempfile::NamedTempFile::new().unwrap();
        ca.write_all(certified.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = receiver.port();
        block_on(async move {
            tokio::spawn(accept(listener, acceptor, to));
        });
        Self { port, ca }
    }

    /// The URL of a path on it, which begins with `/`.
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// The file for `--ca-file`.
    pub fn ca_file(&self) -> String {
        self.ca.path().display().to_string()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, to: u16) {
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let served = http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(STREAMS)
                .serve_connection(
                    TokioIo::new(stream),
                    service_fn(move |request| pass_on(request, to)),
                );
            // A client that goes away is its own affair.
            drop(served.await);
        });
    }
}

/// An error resets the stream.
async fn pass_on(
    request: Request<Incoming>,
    to: u16,
) -> Result<Response<Full<Bytes>>, Box<dyn Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut bytes = Vec::new();
    write!(bytes, "POST {} HTTP/1.1\r\n", head.uri.path())?;
    write!(bytes, "content-length: {}\r\n", body.len())?;
    let headers = head.headers.iter();
    for (name, value) in headers.filter(|(name, _)| *name != CONTENT_LENGTH) {
        write!(bytes, "{name}: ")?;
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", to)).await?);
    stream.write_all(&bytes).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let status = line
        .split(' ')
        .nth(1)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let response = Response::builder().status(status);
    Ok(response.body(Full::default())?)
}
