//! The hash map of the index.

pub(super) use crate::model::maps::FastMap as Map;
