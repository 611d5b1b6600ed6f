//! What tests on a real Kafka share: a broker, a world of topics, the program's processes, a receiver.
//!
//! Everything here blocks, so tests are plain `#[test]` functions. Nothing sleeps for a fixed time to let
//! something happen: wait with [`eventually`], [`Process::wait_for_line`] or [`Receiver::wait_until`].

// Not every test uses everything.
#![allow(dead_code, unused_imports)]

mod broker;
mod mirror;
mod outbox;
mod process;
mod proxy;
mod receiver;
mod world;

use std::fmt::Display;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub use broker::{Broker, Frozen, broker, first_line};
pub use mirror::{Mirror, kafka_tool};
pub use outbox::{Connect, Postgres};
pub use process::{
    Output, Process, foreign_settings, get as http_get, program, run_to_end, run_to_end_with,
};
pub use proxy::{Proxy, Weather};
pub use receiver::{Answer, Receiver, Seen};
pub use world::{Isolation, RawRecord, Record, World, live};

/// Long enough for anything that should happen at once, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(90);

/// Asks until there is an answer, at first often, then every 200 ms.
///
/// # Panics
/// Naming `what` when there is none in time.
#[track_caller]
pub fn eventually<T>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    eventually_ok(what, timeout, || ask().ok_or("no answer"))
}

/// [`eventually`] where `ask` returns the reason of each failed try.
///
/// # Panics
/// Naming `what` and the last reason when there is no answer in time.
#[track_caller]
pub fn eventually_ok<T, E: Display>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(5);
    loop {
        let reason = match ask() {
            Ok(answer) => return answer,
            Err(reason) => reason,
        };
        let in_time = Instant::now() < deadline;
        assert!(in_time, "not within {timeout:?}: {what}: {reason}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// [`eventually`] for a condition.
///
/// # Panics
/// Naming `what` when it does not hold in time.
#[track_caller]
pub fn eventually_true(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) {
    eventually(what, timeout, || holds().then_some(()));
}

/// Runs a future of the Kafka client or of the receiver to its end.
pub fn block_on<F: Future>(future: F) -> F::Output {
    runtime().block_on(future)
}

fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    })
}
