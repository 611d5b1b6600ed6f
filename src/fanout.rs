//! stub
pub mod matching;
