//! stub
pub mod consumer;
pub mod producer;
pub mod table;
