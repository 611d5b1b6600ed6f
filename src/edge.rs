//! The edges: Kafka, HTTP, names and addresses, the collector of spans, the system's clock. Thin, and without decisions
//! that could be pure.

pub mod clock;
pub mod descriptors;
pub mod egress;
pub(crate) mod failpoint;
pub mod fair_pool;
pub mod http;
pub mod kafka;
pub mod otlp;
pub mod port;
pub mod small_file;
