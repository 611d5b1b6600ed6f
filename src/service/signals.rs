//! SIGTERM and SIGINT stop whichever service is running, for as long as the process lives: also one that comes while one
//! service has ended and the next has not begun.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

use super::Stop;
use crate::cli::outcome::{CliError, Exit};

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
    /// [`CliError`] when the signals cannot be handled.
    pub(super) fn handle() -> Result<Self, CliError> {
        let cannot = |error| CliError::new(Exit::Failure, format!("handling signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        let entered = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
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
            .spawn(move || runtime.block_on(wait))
            .map_err(cannot)?;
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
