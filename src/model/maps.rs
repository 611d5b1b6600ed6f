//! Maps whose entries are visited in an order that matters to a simulation: there they are seeded alike each time.

use std::collections::HashMap;

/// For hot paths: randomly seeded, and faster than the standard library's.
#[cfg(not(feature = "simulation"))]
pub type FastState = foldhash::fast::RandomState;
/// For keys that tenants choose: no one can make them collide.
#[cfg(not(feature = "simulation"))]
pub type SafeState = std::hash::RandomState;
/// The same for each run.
#[cfg(feature = "simulation")]
pub type FastState = foldhash::fast::FixedState;
/// The same for each run.
#[cfg(feature = "simulation")]
pub type SafeState = foldhash::fast::FixedState;

/// A map for hot paths.
pub type FastMap<K, V> = HashMap<K, V, FastState>;
/// A map for keys that tenants choose.
pub type SafeMap<K, V> = HashMap<K, V, SafeState>;
