//! Protobuf: a schema, compiled once, and the JSON of values that were written with it.
//!
//! The JSON is Protobuf's own (ProtoJSON): `lowerCamelCase` names, 64-bit integers as strings, bytes as base64, enums by
//! name, and the well-known types in their text forms. Fields come in the order of the schema; a field without presence is
//! written with its default value, so that filters and receivers find the same members in every event. Unknown fields are
//! left out.
//!
//! The library's own JSON is not used: it writes maps in a random order, so that an event that is read twice would have
//! two bodies (**Stable identity**).

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::prost::Message as _;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use protox::Compiler;
use protox::file::{ChainFileResolver, File, FileResolver, GoogleFileResolver};

use super::definition::Definition;
use super::error::{Decode, Problem, Unusable};
use super::framing::{Framed, zigzag};
use super::proto_json;

/// What the schema's own file is called. No import can have this name: it is no path of a file.
const ROOT: &str = "(schema)";
/// The longest path to a message: the parser allows fewer levels.
const MAX_PATH: i64 = 64;

/// A compiled schema.
#[derive(Debug)]
pub(super) struct Schema {
    pool: DescriptorPool,
}

impl Schema {
    pub(super) fn compile(definition: &Definition) -> Result<Self, Unusable> {
        let references = definition.references.iter();
        let mut sources: HashMap<&str, &str> =
            references.map(|one| (&*one.name, &*one.text)).collect();
        sources.insert(ROOT, &definition.text);
        let sources = sources
            .into_iter()
            .map(|(name, text)| (name.to_owned(), text.to_owned()));
        let mut resolver = ChainFileResolver::new();
        resolver.add(Sources(sources.collect()));
        resolver.add(GoogleFileResolver::new());
        let mut compiler = Compiler::with_file_resolver(resolver);
        compiler.include_imports(true);
        match compiler.open_file(ROOT) {
            Ok(_) => Ok(Self {
                pool: compiler.descriptor_pool(),
            }),
            Err(error) => {
                let imported = error.file().filter(|file| *file != ROOT);
                let place = imported.map_or_else(String::new, |file| format!("in {file:?}: "));
                Err(Unusable::Malformed(format!("{place}{error}")))
            }
        }
    }

    pub(super) fn decode(&self, framed: &Framed<'_>, max_bytes: usize) -> Result<Vec<u8>, Decode> {
        let mut value = framed.rest;
        let path = match framed.path {
            Some(mut path) => read_path(&mut path)?,
            None => read_path(&mut value)?,
        };
        let message = DynamicMessage::decode(self.message(&path)?, value)
            .map_err(|error| Problem::Protobuf(error.to_string()))?;
        proto_json::write(&message, max_bytes)
    }

    /// The message that a path of numbers leads to. Entries of maps, which the schema does not name, do not count.
    fn message(&self, path: &[i64]) -> Result<MessageDescriptor, Problem> {
        let file = self.pool.get_file_by_name(ROOT);
        let mut level: Vec<MessageDescriptor> =
            file.map_or_else(Vec::new, |file| file.messages().collect());
        let mut found = None;
        for &index in path {
            let count = level.len();
            let message = usize::try_from(index)
                .ok()
                .and_then(|index| level.into_iter().nth(index))
                .ok_or(Problem::Index {
                    what: "message",
                    index,
                    count,
                })?;
            level = message
                .child_messages()
                .filter(|child| !child.is_map_entry())
                .collect();
            found = Some(message);
        }
        found.ok_or(Problem::Length)
    }
}

/// The path to a message.
fn read_path(input: &mut &[u8]) -> Result<Vec<i64>, Problem> {
    match zigzag(input)? {
        0 => Ok(vec![0]),
        count @ 1..=MAX_PATH => (0..count).map(|_| zigzag(input)).collect(),
        _ => Err(Problem::Length),
    }
}

/// A file that Confluent's clients import without a reference.
fn known(name: &str) -> Option<&'static str> {
    let files = include_str!("known_protos.txt").split("=== ").skip(1);
    let mut files = files.filter_map(|file| file.split_once('\n'));
    files.find_map(|(known, text)| (known == name).then_some(text))
}

/// The schema and its references, by the names that imports use.
struct Sources(HashMap<String, String>);

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        let own = self.0.get(name).map(String::as_str);
        let text = own.or_else(|| known(name));
        let text = text.ok_or_else(|| protox::Error::file_not_found(name))?;
        // Some clients register the compiled file, in base64, which no source text is.
        let compiled = STANDARD.decode(text.trim()).ok();
        match compiled.and_then(|bytes| FileDescriptorProto::decode(&*bytes).ok()) {
            Some(mut file) => {
                file.name = Some(name.to_owned());
                Ok(File::from_file_descriptor_proto(file))
            }
            None => File::from_source(name, text),
        }
    }
}
