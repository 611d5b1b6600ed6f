//! The question before a command changes something.

use std::io::{BufRead, IsTerminal};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print;

/// Refuses to begin `command` where it has to ask and nobody can answer.
///
/// # Errors
/// [`CliError`] of usage: standard input is no terminal.
pub(super) fn can_ask(command: &str) -> Result<(), CliError> {
    if std::io::stdin().is_terminal() {
        return Ok(());
    }
    let message = format!(
        "{command} needs confirmation, but standard input is not a terminal; use --yes, or --dry-run for a preview"
    );
    Err(CliError::new(Exit::Usage, message))
}

/// Asks `question`, which names what is to be changed, and waits for the answer. `false` after a no, with the line
/// `refused`, and after an interrupt.
///
/// # Errors
/// Standard input cannot be read.
pub(super) fn ask(question: &str, refused: &str, interrupt: &Interrupt) -> Result<bool, CliError> {
    print::note(&format!("{question} [y/N]"));
    // Signals have handlers by now and do not interrupt the reading of a line, so another thread reads it.
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        // Fails only if the command no longer waits for the answer.
        answer.send(read.map(|_| line)).ok();
    });
    loop {
        match answered.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(line)) => {
                let yes = matches!(line.trim(), "y" | "Y" | "yes");
                if !yes {
                    print::note(refused);
                }
                return Ok(yes);
            }
            Ok(Err(error)) => {
                let message = format!("reading the answer: {error}");
                return Err(CliError::new(Exit::Failure, message));
            }
            Err(RecvTimeoutError::Timeout) if !interrupt.is_raised() => {}
            Err(_) => return Ok(false),
        }
    }
}
