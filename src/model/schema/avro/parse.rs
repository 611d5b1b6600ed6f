//! Compiles an Avro schema.
//!
//! What only matters to a reader with another schema (aliases, defaults, order, docs) is ignored, and so is a logical type
//! that does not fit its underlying type, as the specification demands.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::super::definition::Definition;
use super::super::error::Unusable;
use super::types::{Field, Schema, Type, Unit, Width};

/// The largest scale of a decimal.
const MAX_SCALE: u64 = 1000;

pub(crate) fn schema(definition: &Definition) -> Result<Schema, Unusable> {
    let mut parser = Parser::default();
    for reference in &definition.references {
        let parsed = parser.parse(&reference.text);
        parsed.map_err(|error| {
            Unusable::Malformed(format!("its reference {:?}: {error}", reference.name))
        })?;
    }
    let root = parser.parse(&definition.text)?;
    Ok(Schema {
        types: parser.types,
        root,
    })
}

#[derive(Default)]
struct Parser {
    types: Vec<Type>,
    names: HashMap<String, usize>,
}

impl Parser {
    fn parse(&mut self, text: &str) -> Result<usize, Unusable> {
        let json: Value = serde_json::from_str(text)
            .map_err(|error| malformed(format_args!("it is not JSON: {error}")))?;
        self.any(&json, "")
    }

    fn add(&mut self, one: Type) -> usize {
        self.types.push(one);
        self.types.len() - 1
    }

    fn any(&mut self, json: &Value, space: &str) -> Result<usize, Unusable> {
        match json {
            Value::String(name) => self.named(name, space),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.any(branch, space));
                let branches = branches.collect::<Result<Vec<_>, _>>()?;
                Ok(self.add(Type::Union(branches)))
            }
            Value::Object(members) => self.object(members, space),
            other => Err(malformed(format_args!("{other} is not a type"))),
        }
    }

    fn named(&mut self, name: &str, space: &str) -> Result<usize, Unusable> {
        if let Some(primitive) = primitive(name) {
            return Ok(self.add(primitive));
        }
        let known = self.names.get(&full_name(name, space));
        // A name without a namespace may also be that of a type without one.
        let known = known.or_else(|| self.names.get(name));
        known
            .copied()
            .ok_or_else(|| Unusable::UnknownType(full_name(name, space)))
    }

    fn object(&mut self, members: &Map<String, Value>, space: &str) -> Result<usize, Unusable> {
        let of = member(members, "type")?;
        let Value::String(kind) = of else {
            return self.any(of, space);
        };
        match &**kind {
            "record" | "error" => self.record(members, space),
            "enum" => {
                let number = self.define(members, space)?.0;
                let symbols = array(members, "symbols")?.iter();
                let symbols = symbols.map(|symbol| text(symbol, "symbols").map(str::to_owned));
                self.types[number] = Type::Enum(symbols.collect::<Result<_, _>>()?);
                Ok(number)
            }
            "fixed" => {
                let number = self.define(members, space)?.0;
                let size = member(members, "size")?.as_u64();
                let size = size
                    .and_then(|size| usize::try_from(size).ok())
                    .ok_or_else(|| malformed("size is not a number of bytes"))?;
                self.types[number] = logical(members, Type::Fixed(size))?;
                Ok(number)
            }
            "array" => {
                let items = self.any(member(members, "items")?, space)?;
                Ok(self.add(Type::Array(items)))
            }
            "map" => {
                let values = self.any(member(members, "values")?, space)?;
                Ok(self.add(Type::Map(values)))
            }
            name => match primitive(name) {
                Some(primitive) => {
                    let annotated = logical(members, primitive)?;
                    Ok(self.add(annotated))
                }
                None => self.named(name, space),
            },
        }
    }

    fn record(&mut self, members: &Map<String, Value>, space: &str) -> Result<usize, Unusable> {
        let (number, space) = self.define(members, space)?;
        let mut names = HashSet::new();
        let mut fields = Vec::new();
        for field in array(members, "fields")? {
            let Value::Object(field) = field else {
                return Err(malformed(format_args!("{field} is not a field")));
            };
            let name = text(member(field, "name")?, "name")?;
            if !names.insert(name) {
                return Err(malformed(format_args!("the field {name:?} occurs twice")));
            }
            let of = self.any(member(field, "type")?, &space)?;
            fields.push(Field {
                name: name.to_owned(),
                of,
            });
        }
        self.types[number] = Type::Record(fields);
        Ok(number)
    }

    /// Reserves the number of a named type, and returns it with the namespace that holds inside.
    fn define(
        &mut self,
        members: &Map<String, Value>,
        space: &str,
    ) -> Result<(usize, String), Unusable> {
        let name = text(member(members, "name")?, "name")?;
        let space = match members.get("namespace") {
            Some(given) => text(given, "namespace")?,
            None => space,
        };
        let full = full_name(name, space);
        let space = full
            .rsplit_once('.')
            .map_or("", |(space, _)| space)
            .to_owned();
        let number = self.add(Type::Undefined);
        if self.names.insert(full.clone(), number).is_some() {
            return Err(Unusable::DefinedTwice(full));
        }
        Ok((number, space))
    }
}

fn primitive(name: &str) -> Option<Type> {
    Some(match name {
        "null" => Type::Null,
        "boolean" => Type::Boolean,
        "int" => Type::Int,
        "long" => Type::Long,
        "float" => Type::Float,
        "double" => Type::Double,
        "bytes" => Type::Bytes,
        "string" => Type::String,
        _ => return None,
    })
}

/// The type that a logical type makes of the one below it.
fn logical(members: &Map<String, Value>, below: Type) -> Result<Type, Unusable> {
    let Some(Value::String(name)) = members.get("logicalType") else {
        return Ok(below);
    };
    Ok(match (&**name, &below) {
        ("decimal", Type::Bytes) => return decimal(members, below, None),
        ("decimal", &Type::Fixed(size)) => return decimal(members, below, Some(size)),
        ("uuid", Type::Fixed(16)) => Type::Uuid,
        ("date", Type::Int) => Type::Date,
        ("time-millis", Type::Int) => Type::TimeOfDay(Unit::Milli, Width::Int),
        ("time-micros", Type::Long) => Type::TimeOfDay(Unit::Micro, Width::Long),
        ("timestamp-millis", Type::Long) => Type::Timestamp(Unit::Milli),
        ("timestamp-micros", Type::Long) => Type::Timestamp(Unit::Micro),
        ("timestamp-nanos", Type::Long) => Type::Timestamp(Unit::Nano),
        ("local-timestamp-millis", Type::Long) => Type::LocalTimestamp(Unit::Milli),
        ("local-timestamp-micros", Type::Long) => Type::LocalTimestamp(Unit::Micro),
        ("local-timestamp-nanos", Type::Long) => Type::LocalTimestamp(Unit::Nano),
        ("duration", Type::Fixed(12)) => Type::Duration,
        _ => below,
    })
}

fn decimal(
    members: &Map<String, Value>,
    below: Type,
    fixed: Option<usize>,
) -> Result<Type, Unusable> {
    let number = |name| members.get(name).map_or(Some(0), Value::as_u64);
    match (number("precision"), number("scale")) {
        (Some(precision), Some(scale)) if precision > 0 && scale <= precision => {
            if scale > MAX_SCALE {
                return Err(malformed(format_args!(
                    "the scale of a decimal is {scale}, the limit is {MAX_SCALE}"
                )));
            }
            let scale = usize::try_from(scale).unwrap_or_default();
            Ok(Type::Decimal { scale, fixed })
        }
        _ => Ok(below),
    }
}

/// A name with its namespace.
fn full_name(name: &str, space: &str) -> String {
    if name.contains('.') || space.is_empty() {
        name.to_owned()
    } else {
        format!("{space}.{name}")
    }
}

fn member<'a>(members: &'a Map<String, Value>, name: &str) -> Result<&'a Value, Unusable> {
    members
        .get(name)
        .ok_or_else(|| malformed(format_args!("a type or field has no {name}")))
}

fn array<'a>(members: &'a Map<String, Value>, name: &str) -> Result<&'a Vec<Value>, Unusable> {
    member(members, name)?
        .as_array()
        .ok_or_else(|| malformed(format_args!("{name} is not a list")))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Unusable> {
    value
        .as_str()
        .ok_or_else(|| malformed(format_args!("{name} is not text")))
}

fn malformed(what: impl std::fmt::Display) -> Unusable {
    Unusable::Malformed(what.to_string())
}
