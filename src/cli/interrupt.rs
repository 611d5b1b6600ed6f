//! SIGINT and SIGTERM as a flag, for commands that stop in an orderly way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{SignalKind, signal};

use super::exit::{CliError, Exit};

/// Set by the first SIGINT or SIGTERM.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Installs handlers for both signals.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn watch() -> Result<Self, CliError> {
        let refused =
            |error| CliError::new(Exit::Failure, format!("cannot listen for signals: {error}"));
        let interrupt = Self::default();
        let raised = Arc::clone(&interrupt.0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(refused)?;
        let (mut int, mut term) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt()).map_err(refused)?,
                signal(SignalKind::terminate()).map_err(refused)?,
            )
        };
        // The thread ends with the process.
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
            });
            raised.store(true, Ordering::Release);
        });
        Ok(interrupt)
    }

    /// Whether a signal was received.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
