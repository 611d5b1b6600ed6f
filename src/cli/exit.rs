//! How a command ends: its exit code, and its error message.

/// Exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// Failure; nothing was done, or not what was requested.
    Failure = 1,
    /// Invalid command line or configuration.
    Usage = 2,
    /// Partly done.
    Partial = 3,
    /// No broker is reachable.
    Unreachable = 4,
    /// Ended by a signal.
    Interrupted = 130,
}

/// Why a command failed: a message for standard error, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// The code.
    pub exit: Exit,
    /// The message.
    pub message: String,
}

/// A runtime for the asynchronous part of a command.
///
/// # Errors
/// The system refuses it.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::new(Exit::Failure, format!("starting the runtime: {error}")))
}

impl CliError {
    /// An error with this exit code and message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}
