//! The edges: Kafka, HTTP, names and addresses, the collector of spans, the schema registry, the system's clock. Thin, and
//! without decisions that could be pure. The roles reach them over the [`port`], whose product's side is [`live`].

pub mod clock;
pub mod descriptors;
pub mod egress;
pub(crate) mod failpoint;
pub mod fair_pool;
pub mod http;
pub mod kafka;
pub mod live;
pub mod otlp;
pub mod port;
pub mod schema_registry;
pub mod schema_values;
pub mod secret_text;
pub mod small_file;
pub mod writer;
