//! Tiers: retry topics with one fixed delay each. Which one should a record wait in?
//!
//! A record waits in a tier for that tier's full delay, so a tier partition is in due order and only its
//! head is looked at. Any due time works by hops through ever smaller tiers.

use std::time::Duration;

use crate::units::format_duration;

/// The configured tiers, shortest first; at least one, all different, each at least 1 ms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiers(Vec<Duration>);

impl Tiers {
    /// Takes tiers in any order.
    ///
    /// # Errors
    /// A sentence when there is none, one twice, or one below 1 ms.
    pub fn new(mut delays: Vec<Duration>) -> Result<Self, String> {
        delays.sort_unstable();
        if delays.is_empty() {
            return Err("at least one tier is needed".to_owned());
        }
        if delays[0] < Duration::from_millis(1) {
            return Err("a tier must be at least 1ms".to_owned());
        }
        if let Some(twice) = delays.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!(
                "the tier {} is named twice",
                format_duration(twice[0])
            ));
        }
        Ok(Self(delays))
    }

    /// The delays, shortest first.
    #[must_use]
    pub fn delays(&self) -> &[Duration] {
        &self.0
    }
}
