//! The edges: Kafka, HTTP, names and addresses, the collector of spans, the schema registry, the system's clock. Thin, and
//! without decisions that could be pure.

pub mod clock;
pub mod descriptors;
pub mod egress;
pub(crate) mod failpoint;
pub mod fair_pool;
pub mod http;
pub mod kafka;
pub mod otlp;
pub mod schema_registry;
pub mod small_file;
