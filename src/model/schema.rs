//! Values in the wire format of a Schema Registry: what they are framed with, and the JSON that they become.
//!
//! | file | what |
//! |---|---|
//! | `definition` | a schema as the registry returns it |
//! | `framing` | recognises a schema id in front of a value, or in a header |
//! | `headers` | what the headers of such a record say |
//! | `avro` | Avro: a schema, and the JSON of a value that was written with it |
//! | `protobuf`, `proto_json` | Protobuf: the same |
//! | `output` | JSON text that is bounded while it is written |
//! | `error` | what is wrong with a schema or a value |
//!
//! The result is a function of the value and its schema alone: a record that is read twice gives the same bytes (**Stable
//! identity**). Members come in the order of the schema, keys of maps sorted (Protobuf) or as they were written (Avro).
//! Output and nesting are limited while they grow (**Bounded**): a few bytes can stand for a list of a billion items.
//!
//! Pure: whoever asks the registry passes what it said as a [`Definition`].

mod avro;
mod definition;
mod error;
mod framing;
mod headers;
mod output;
#[cfg(feature = "protobuf")]
mod proto_json;
#[cfg(feature = "protobuf")]
mod protobuf;

use std::borrow::Cow;

pub use definition::{Definition, Language, Reference};
pub use error::{Decode, MAX_SCHEMA_BYTES, Problem, Unusable};
pub use framing::{Framed, SchemaId, recognise};
pub use headers::{adapt_headers, framed};

/// A schema, ready to read values.
#[derive(Debug)]
pub struct Schema(Kind);

#[derive(Debug)]
enum Kind {
    Json,
    Avro(avro::Schema),
    #[cfg(feature = "protobuf")]
    Protobuf(protobuf::Schema),
}

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    /// It cannot be used; the same definition never can.
    pub fn compile(definition: &Definition) -> Result<Self, Unusable> {
        let size = definition.size();
        if size > MAX_SCHEMA_BYTES {
            return Err(Unusable::TooLarge { size });
        }
        match definition.language {
            // The value is JSON already: its schema is not needed to read it.
            Language::Json => Ok(Self(Kind::Json)),
            Language::Avro => avro::compile(definition).map(|schema| Self(Kind::Avro(schema))),
            #[cfg(feature = "protobuf")]
            Language::Protobuf => {
                protobuf::Schema::compile(definition).map(|schema| Self(Kind::Protobuf(schema)))
            }
            #[cfg(not(feature = "protobuf"))]
            Language::Protobuf => Err(Unusable::NotBuiltIn),
        }
    }

    /// The JSON of a value: at most `max_bytes` of it.
    ///
    /// # Errors
    /// The value was not written with this schema, or its JSON would be too large.
    pub fn decode<'a>(
        &self,
        framed: &Framed<'a>,
        max_bytes: usize,
    ) -> Result<Cow<'a, [u8]>, Decode> {
        match &self.0 {
            Kind::Json => Ok(Cow::Borrowed(framed.rest)),
            Kind::Avro(schema) => avro::decode(schema, framed.rest, max_bytes).map(Cow::Owned),
            #[cfg(feature = "protobuf")]
            Kind::Protobuf(schema) => schema.decode(framed, max_bytes).map(Cow::Owned),
        }
    }
}

#[cfg(test)]
mod tests;
