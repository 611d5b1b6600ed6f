//! stub
pub mod schedule;
pub mod tier;
