//! A schema as the registry returns it.

use super::error::Unusable;

/// The language of a schema, as the registry names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Avro, for which the registry gives no name.
    Avro,
    /// JSON Schema.
    Json,
    /// Protobuf.
    Protobuf,
}

impl Language {
    /// By the registry's `schemaType`.
    ///
    /// # Errors
    /// The language is none of the three.
    pub fn named(name: Option<&str>) -> Result<Self, Unusable> {
        match name {
            None | Some("AVRO") => Ok(Self::Avro),
            Some("JSON") => Ok(Self::Json),
            Some("PROTOBUF") => Ok(Self::Protobuf),
            Some(other) => Err(Unusable::Language(other.to_owned())),
        }
    }
}

/// A schema as the registry returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its language.
    pub language: Language,
    /// Its text.
    pub text: String,
    /// The schemas that it refers to, and those that they refer to; each behind those that it needs itself.
    pub references: Vec<Reference>,
}

/// A schema that another one refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The name that the other one uses: that of a type (Avro), or of a file (Protobuf).
    pub name: String,
    /// Its text.
    pub text: String,
}

impl Definition {
    /// Bytes of text.
    #[must_use]
    pub fn size(&self) -> usize {
        let references = self.references.iter();
        references.fold(self.text.len(), |sum, one| sum + one.text.len())
    }
}
