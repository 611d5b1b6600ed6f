//! The hash map of the index.

use std::collections::HashMap;

/// Used several times per event: randomly seeded, and faster than the standard library's map.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;
