//! The network between the program and a broker, to be made worse: a proxy that knows Kafka's frames.
//!
//! The broker tells its clients the proxy's port for its own (`scripts/kafka --behind`), so nothing of the program's
//! reaches it another way; what brokers say to each other does not pass here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to what passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Nothing.
    Clear,
    /// Each frame waits for so long, in each direction.
    Slow(Duration),
    /// One frame of so many is lost and sent again by TCP: it waits for a retransmission, and what is behind it too.
    Lossy(u32),
    /// Connections are reset, and new ones too.
    Cut,
    /// Connections stay open and nothing passes: a firewall that forgot them, a host that lost power.
    HalfOpen,
    /// Answers to metadata requests name no broker, as those of a broker that counts itself as not yet alive.
    NoBrokers,
    /// One answer of so many ends in its middle.
    Malformed(u32),
}

/// A proxy on a free loopback port; it ends with the process.
pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    target: watch::Sender<u16>,
    changed: Arc<AtomicUsize>,
}

impl Proxy {
    /// One that has nowhere to connect to yet.
    pub fn start() -> Self {
        let listener = super::block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (weather, forecast) = watch::channel(Weather::Clear);
        let (target, to) = watch::channel(0);
        let changed = Arc::default();
        super::runtime().spawn(accept(listener, to, forecast, Arc::clone(&changed)));
        Self {
            port,
            weather,
            target,
            changed,
        }
    }

    /// Where clients connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where to connect to in turn: a loopback port.
    pub fn lead_to(&self, port: u16) {
        self.target.send_replace(port);
    }

    /// How many answers were changed on their way.
    pub fn changed(&self) -> usize {
        self.changed.load(Ordering::Relaxed)
    }

    /// Waits until so many answers in all were changed.
    #[track_caller]
    pub fn wait_for_changed(&self, count: usize) {
        super::eventually_true("changed answers", super::SOON, || self.changed() >= count);
    }

    /// Changes the weather for connections that are open and for new ones.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn accept(
    listener: TcpListener,
    to: watch::Receiver<u16>,
    weather: watch::Receiver<Weather>,
    changed: Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let target = *to.borrow();
        tokio::spawn(serve(client, target, weather.clone(), Arc::clone(&changed)));
    }
}

/// API key and version of the requests that wait for an answer, by correlation id.
type Asked = Arc<Mutex<HashMap<i32, (i16, i16)>>>;

async fn serve(
    client: TcpStream,
    target: u16,
    weather: watch::Receiver<Weather>,
    changed: Arc<AtomicUsize>,
) {
    // A client sees a reset, as from a host that runs no broker.
    client.set_zero_linger().ok();
    if *weather.borrow() == Weather::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
        return;
    };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let asked = Asked::default();
    let mut watched = weather.clone();
    tokio::select! {
        () = requests(from_client, to_server, Arc::clone(&asked), weather.clone()) => {}
        () = answers(from_server, to_client, asked, weather, &changed) => {}
        _ = watched.wait_for(|weather| *weather == Weather::Cut) => {}
    }
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    asked: Asked,
    mut weather: watch::Receiver<Weather>,
) {
    while let Some(frame) = read(&mut from).await {
        let header = || {
            let key = i16::from_be_bytes(frame.get(0..2)?.try_into().ok()?);
            let version = i16::from_be_bytes(frame.get(2..4)?.try_into().ok()?);
            let correlation = i32::from_be_bytes(frame.get(4..8)?.try_into().ok()?);
            Some((correlation, (key, version)))
        };
        asked.lock().unwrap().extend(header());
        if !pass(&mut weather).await || write(&mut to, &frame).await.is_none() {
            return;
        }
    }
}

async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    asked: Asked,
    mut weather: watch::Receiver<Weather>,
    changed: &AtomicUsize,
) {
    const METADATA: i16 = 3;
    while let Some(mut frame) = read(&mut from).await {
        let correlation = frame.first_chunk().copied().map_or(0, i32::from_be_bytes);
        let (key, version) = asked
            .lock()
            .unwrap()
            .remove(&correlation)
            .unwrap_or_default();
        if !pass(&mut weather).await {
            return;
        }
        let now = *weather.borrow();
        match now {
            Weather::NoBrokers if key == METADATA => {
                frame =
                    without_brokers(&frame, version).expect("an answer with metadata can be read");
                changed.fetch_add(1, Ordering::Relaxed);
            }
            Weather::Malformed(one_of) if fastrand::u32(0..one_of) == 0 => {
                // The correlation id stays, or the client waits for the answer until its request has timed out.
                frame.truncate(4 + (frame.len() - 4) / 2);
                changed.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
        if write(&mut to, &frame).await.is_none() {
            return;
        }
    }
}

/// Waits as the weather wants it; `false` when it never lets anything pass again on this connection.
async fn pass(weather: &mut watch::Receiver<Weather>) -> bool {
    let now = *weather.borrow();
    match now {
        Weather::Clear | Weather::NoBrokers | Weather::Malformed(_) => true,
        Weather::Slow(delay) => {
            tokio::time::sleep(delay).await;
            true
        }
        Weather::Lossy(one_of) => {
            /// Linux sends again after 200 ms, then after twice as long each time.
            const AGAIN: std::ops::Range<u64> = 200..1400;
            if fastrand::u32(0..one_of) == 0 {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(AGAIN))).await;
            }
            true
        }
        Weather::Cut => false,
        Weather::HalfOpen => {
            // Forgotten for good: when the network is mended, this connection is not.
            std::future::pending::<()>().await;
            false
        }
    }
}

async fn read(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await.ok()?;
    Some(frame)
}

async fn write(to: &mut OwnedWriteHalf, frame: &[u8]) -> Option<()> {
    let length = u32::try_from(frame.len()).ok()?;
    let mut whole = Vec::with_capacity(frame.len() + 4);
    whole.extend_from_slice(&length.to_be_bytes());
    whole.extend_from_slice(frame);
    to.write_all(&whole).await.ok()
}

/// The same answer with an empty list of brokers (Kafka's protocol guide, MetadataResponse, from version 9 on, where
/// lists and strings are compact).
fn without_brokers(frame: &[u8], version: i16) -> Option<Vec<u8>> {
    assert!(version >= 9, "metadata of version {version}");
    // Correlation id, tagged fields of the header, throttle time.
    let begin = 4 + 1 + 4;
    let mut at = begin;
    let brokers = varint(frame, &mut at)?.checked_sub(1)?;
    for _ in 0..brokers {
        at += 4;
        let host = varint(frame, &mut at)?;
        at += host.checked_sub(1)? + 4;
        let rack = varint(frame, &mut at)?;
        at += rack.saturating_sub(1);
        assert_eq!(varint(frame, &mut at)?, 0, "tagged fields of a broker");
    }
    Some([frame.get(..begin)?, &[1], frame.get(at..)?].concat())
}

fn varint(frame: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let byte = *frame.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
