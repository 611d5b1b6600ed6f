//! SIGTERM and SIGINT stop the running service, for the whole life of the process, including the time between the end of
//! one service and the start of the next.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

use crate::runtime::shutdown::Stop;

/// Handles signals on its own thread.
pub(super) struct Signals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    came: bool,
    running: Option<Arc<Stop>>,
}

impl Signals {
    /// Starts handling signals.
    ///
    /// # Errors
    /// The system's error when the signals cannot be handled.
    pub(super) fn handle() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let entered = runtime.enter();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        drop(entered);
        let state = Arc::new(Mutex::new(State::default()));
        let told = Arc::clone(&state);
        let wait = async move {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            tracing::info!("{name} received, draining");
            let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
            state.came = true;
            if let Some(running) = state.running.take() {
                running.request();
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(wait))?;
        Ok(Self(state))
    }

    /// Stops `service` on a signal, immediately if one was received already.
    pub(super) fn stop(&self, service: Arc<Stop>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.came {
            service.request();
        }
        state.running = Some(service);
    }

    /// Whether a signal was received.
    pub(super) fn came(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).came
    }
}
