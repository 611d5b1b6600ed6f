//! The maps of the index.

use std::collections::HashMap;

/// Looked up several times for each event: seeded at random, and quicker than the standard library's.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
