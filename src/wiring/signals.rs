//! SIGTERM and SIGINT stop whichever service is running, for as long as the process lives: also one that comes while one
//! service has ended and the next has not begun.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

use crate::runtime::shutdown::Stop;

/// Handles signals on a thread of its own.
pub(super) struct Signals(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    came: bool,
    running: Option<Arc<Stop>>,
}

impl Signals {
    /// Begins to handle them.
    ///
    /// # Errors
    /// The system's, when the signals cannot be handled.
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
            tracing::info!("{name}: finishing what is under way");
            let mut state = told.lock().unwrap_or_else(PoisonError::into_inner);
            state.came = true;
            if let Some(running) = state.running.take() {
                running.tell();
            }
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(wait))?;
        Ok(Self(state))
    }

    /// Lets a signal stop this service, at once if one has come already.
    pub(super) fn stop(&self, service: Arc<Stop>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.came {
            service.tell();
        }
        state.running = Some(service);
    }

    /// Whether one has come.
    pub(super) fn came(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).came
    }
}
