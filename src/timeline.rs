//! The timeline of one event: every record about it, in order (`hookstream trace`).

mod copies;
mod decode;
mod event;
mod render;

mod search;
mod step;
#[cfg(test)]
mod tests;

pub use crate::edge::schema_values::Undecoded;
pub use search::{Search, SearchProgress, Timeline, run};
pub use step::{Detail, Step, Webhook};
