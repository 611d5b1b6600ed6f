//! How a command ends: its exit code, and its error message.

/// Exit codes of every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// Nothing, or not the thing asked for, was done.
    Failure = 1,
    /// The command line or configuration is wrong.
    Usage = 2,
    /// Some of it was done.
    Partial = 3,
    /// No broker answers.
    Unreachable = 4,
    /// A signal ended it.
    Interrupted = 130,
}

/// Why a command ended badly: one message for standard error, and the exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// The code.
    pub exit: Exit,
    /// The message.
    pub message: String,
}

impl CliError {
    /// An error with this code and message.
    #[must_use]
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }
}
