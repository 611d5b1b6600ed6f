//! Avro (specification 1.12): a schema, compiled once, and the JSON of values that were written with it.
//!
//! The crate apache-avro (0.22) is not used: it decodes with unbounded recursion, and reserves memory for as many items as a
//! value claims, 512 MiB unless the whole process has another limit. One record could end the process, again after each
//! restart.

mod decode;
mod parse;
mod types;

#[cfg(feature = "protobuf")]
pub(super) use decode::utc;
pub(super) use decode::value as decode;
pub(super) use parse::schema as compile;
pub(super) use types::Schema;
