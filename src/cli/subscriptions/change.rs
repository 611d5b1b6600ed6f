//! The result of a command for one subscription.

use serde::Serialize;

use crate::cli::exit::{CliError, Exit};
use crate::cli::print::Row;

/// The result for one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    pub(super) id: String,
    pub(super) result: &'static str,
}

impl Row for Change {
    const HEADINGS: &'static [&'static str] = &["ID", "RESULT"];

    fn cells(&self) -> Vec<String> {
        vec![self.id.clone(), self.result.to_owned()]
    }
}

/// The error for unknown ids.
pub(super) fn unknown(ids: &[&str]) -> CliError {
    let ids: Vec<_> = ids.iter().map(|id| format!("{id:?}")).collect();
    CliError::new(
        Exit::Failure,
        format!("unknown subscription {}", ids.join(", ")),
    )
}
