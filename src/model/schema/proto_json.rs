//! ProtoJSON: the JSON of a Protobuf message.
//!
//! | message of `google.protobuf` | JSON |
//! |---|---|
//! | `Timestamp` | RFC 3339, UTC, with 0, 3, 6 or 9 decimals: `"2026-07-01T12:00:00.250Z"` |
//! | `Duration` | seconds, with 0, 3, 6 or 9 decimals: `"1.500s"` |
//! | `Int64Value`, `StringValue`, … | the value alone |
//! | `Struct`, `Value`, `ListValue` | the JSON that they hold |
//! | `FieldMask` | `"a.b,c"` |
//! | `Any` | the message's members, and `@type` in front of them |

use std::borrow::Cow;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value};

use super::avro::utc;
use super::error::{Decode, MAX_DEPTH, Problem};
use super::output::Output;

/// The JSON of a message: at most `max_bytes` of it.
pub(super) fn write(message: &DynamicMessage, max_bytes: usize) -> Result<Vec<u8>, Decode> {
    let mut writer = Writer {
        output: Output::new(max_bytes),
    };
    writer.message(message, 0)?;
    Ok(writer.output.finish())
}

/// Writes messages as JSON.
struct Writer {
    output: Output,
}

impl Writer {
    fn message(&mut self, message: &DynamicMessage, depth: usize) -> Result<(), Decode> {
        if depth >= MAX_DEPTH {
            return Err(Problem::TooDeep.into());
        }
        if well_known(self, message, depth)? {
            return Ok(());
        }
        self.output.raw("{")?;
        self.fields(message, depth, &mut true)?;
        Ok(self.output.raw("}")?)
    }

    /// The members of a message.
    fn fields(
        &mut self,
        message: &DynamicMessage,
        depth: usize,
        is_first: &mut bool,
    ) -> Result<(), Decode> {
        let descriptor = message.descriptor();
        for field in &descriptor.descriptor_proto().field {
            let number = u32::try_from(field.number()).unwrap_or_default();
            let Some(field) = descriptor.get_field(number) else {
                continue;
            };
            if field.supports_presence() && !message.has_field(&field) {
                continue;
            }
            self.output.comma(is_first)?;
            self.output.name(field.json_name())?;
            self.field(&message.get_field(&field), &field, depth + 1)
                .map_err(|error| error.within(field.json_name()))?;
        }
        Ok(())
    }

    fn field(
        &mut self,
        value: &Value,
        field: &FieldDescriptor,
        depth: usize,
    ) -> Result<(), Decode> {
        match (value, field.kind()) {
            (Value::Map(entries), Kind::Message(entry)) => {
                if depth >= MAX_DEPTH {
                    return Err(Problem::TooDeep.into());
                }
                let kind = entry.map_entry_value_field().kind();
                let mut entries: Vec<_> = entries.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| *key);
                self.output.raw("{")?;
                let mut is_first = true;
                for (key, value) in entries {
                    let key = key_text(key);
                    self.output.comma(&mut is_first)?;
                    self.output.name(&key)?;
                    self.value(value, &kind, depth + 1)
                        .map_err(|error| error.within(&key))?;
                }
                Ok(self.output.raw("}")?)
            }
            (Value::List(items), kind) => {
                if depth >= MAX_DEPTH {
                    return Err(Problem::TooDeep.into());
                }
                self.output.raw("[")?;
                let mut is_first = true;
                for (index, item) in items.iter().enumerate() {
                    self.output.comma(&mut is_first)?;
                    self.value(item, &kind, depth + 1)
                        .map_err(|error| error.within(index))?;
                }
                Ok(self.output.raw("]")?)
            }
            (value, kind) => self.value(value, &kind, depth),
        }
    }

    /// A value that is neither a list nor a map.
    fn value(&mut self, value: &Value, kind: &Kind, depth: usize) -> Result<(), Decode> {
        match value {
            Value::Bool(value) => self.output.scalar(value)?,
            Value::I32(value) => self.output.scalar(value)?,
            Value::U32(value) => self.output.scalar(value)?,
            Value::I64(value) => self.output.display(value)?,
            Value::U64(value) => self.output.display(value)?,
            Value::F32(value) => self.output.float(*value)?,
            Value::F64(value) => self.output.double(*value)?,
            Value::String(value) => self.output.scalar(value)?,
            Value::Bytes(value) => self.output.base64(value)?,
            Value::EnumNumber(number) => self.symbol(*number, kind)?,
            Value::Message(message) => return self.message(message, depth),
            // Neither stands inside another one.
            Value::List(_) | Value::Map(_) => return Err(Problem::TooDeep.into()),
        }
        Ok(())
    }

    /// An enum: its name, or the number that the schema does not name.
    fn symbol(&mut self, number: i32, kind: &Kind) -> Result<(), Problem> {
        match kind {
            Kind::Enum(of) if of.full_name() == "google.protobuf.NullValue" => {
                self.output.raw("null")
            }
            Kind::Enum(of) => match of.get_value(number) {
                Some(symbol) => self.output.scalar(symbol.name()),
                None => self.output.scalar(number),
            },
            _ => self.output.scalar(number),
        }
    }
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// The longest `Duration`, seconds: 10,000 years.
const MAX_SECONDS: i64 = 315_576_000_000;

/// Writes a message if it is a well-known type; returns whether it is one.
fn well_known(writer: &mut Writer, message: &DynamicMessage, depth: usize) -> Result<bool, Decode> {
    let descriptor = message.descriptor();
    let Some(name) = descriptor.full_name().strip_prefix("google.protobuf.") else {
        return Ok(false);
    };
    match name {
        "Timestamp" => {
            let (seconds, nanos) = time(message);
            if !(0..1_000_000_000).contains(&nanos) {
                return Err(
                    Problem::Range("the nanos of a Timestamp are not below a second").into(),
                );
            }
            let at = utc(seconds, nanos)?;
            let digits = digits(nanos);
            writer.output.display(format_args!("{at:.digits$}Z"))?;
        }
        "Duration" => {
            let (seconds, nanos) = time(message);
            if seconds.abs() > MAX_SECONDS
                || nanos.abs() >= 1_000_000_000
                || (seconds < 0 && nanos > 0)
                || (seconds > 0 && nanos < 0)
            {
                return Err(Problem::Range("a Duration is out of range").into());
            }
            let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
            let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
            let fraction = match digits(nanos.cast_signed()) {
                0 => String::new(),
                digits => format!(".{nanos:09}")[..=digits].to_owned(),
            };
            writer
                .output
                .display(format_args!("{sign}{seconds}{fraction}s"))?;
        }
        "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value"
        | "UInt32Value" | "BoolValue" | "StringValue" | "BytesValue" => {
            if let Some(value) = member(message, 1) {
                writer.value(&value, &Kind::Bool, depth)?;
            }
        }
        "FieldMask" => {
            let paths = member(message, 1);
            let paths = paths
                .as_deref()
                .and_then(Value::as_list)
                .unwrap_or_default();
            let paths = paths.iter().filter_map(Value::as_str).map(camel_case);
            let paths: Vec<String> = paths.collect();
            writer.output.scalar(paths.join(","))?;
        }
        "Struct" => structure(writer, message, depth)?,
        "ListValue" => list(writer, message, depth)?,
        "Value" => value(writer, message, depth)?,
        "Any" => any(writer, message, depth)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn member(message: &DynamicMessage, number: u32) -> Option<Cow<'_, Value>> {
    message.get_field_by_number(number)
}

/// Seconds and nanoseconds.
fn time(message: &DynamicMessage) -> (i64, i32) {
    let seconds = member(message, 1).and_then(|value| value.as_i64());
    let nanos = member(message, 2).and_then(|value| value.as_i32());
    (seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// As many decimals as nanoseconds need, in groups of three.
fn digits(nanos: i32) -> usize {
    match nanos {
        0 => 0,
        nanos if nanos % 1_000_000 == 0 => 3,
        nanos if nanos % 1_000 == 0 => 6,
        _ => 9,
    }
}

fn camel_case(path: &str) -> String {
    let mut upper = false;
    let letters = path.chars().filter_map(|letter| {
        if letter == '_' {
            upper = true;
            return None;
        }
        Some(if std::mem::take(&mut upper) {
            letter.to_ascii_uppercase()
        } else {
            letter
        })
    });
    letters.collect()
}

fn structure(writer: &mut Writer, message: &DynamicMessage, depth: usize) -> Result<(), Decode> {
    let fields = member(message, 1);
    let mut entries: Vec<(&MapKey, &Value)> = Vec::new();
    if let Some(fields) = fields.as_deref().and_then(Value::as_map) {
        entries.extend(fields);
    }
    entries.sort_unstable_by_key(|(key, _)| *key);
    writer.output.raw("{")?;
    let mut is_first = true;
    for (key, value) in entries {
        let key = key.as_str().unwrap_or_default();
        writer.output.comma(&mut is_first)?;
        writer.output.name(key)?;
        nested(writer, value, depth).map_err(|error| error.within(key))?;
    }
    Ok(writer.output.raw("}")?)
}

fn list(writer: &mut Writer, message: &DynamicMessage, depth: usize) -> Result<(), Decode> {
    let values = member(message, 1);
    let values = values
        .as_deref()
        .and_then(Value::as_list)
        .unwrap_or_default();
    writer.output.raw("[")?;
    let mut is_first = true;
    for (index, value) in values.iter().enumerate() {
        writer.output.comma(&mut is_first)?;
        nested(writer, value, depth).map_err(|error| error.within(index))?;
    }
    Ok(writer.output.raw("]")?)
}

/// A `Value` inside a `Struct` or `ListValue`.
fn nested(writer: &mut Writer, value: &Value, depth: usize) -> Result<(), Decode> {
    match value.as_message() {
        Some(message) => writer.message(message, depth + 1),
        None => Ok(writer.output.raw("null")?),
    }
}

fn value(writer: &mut Writer, message: &DynamicMessage, depth: usize) -> Result<(), Decode> {
    let Some((field, value)) = message.fields().next() else {
        // Protobuf's own JSON has no form for it.
        return Ok(writer.output.raw("null")?);
    };
    match value {
        // Null, as the number of an enum.
        Value::EnumNumber(_) => Ok(writer.output.raw("null")?),
        value => writer.value(value, &field.kind(), depth),
    }
}

fn any(writer: &mut Writer, message: &DynamicMessage, depth: usize) -> Result<(), Decode> {
    let url = member(message, 1);
    let url = url.as_deref().and_then(Value::as_str).unwrap_or_default();
    if url.is_empty() {
        return Ok(writer.output.raw("{}")?);
    }
    if depth >= MAX_DEPTH {
        return Err(Problem::TooDeep.into());
    }
    let name = url.rsplit('/').next().unwrap_or_default();
    let of = message.descriptor().parent_pool().get_message_by_name(name);
    let of = of.ok_or_else(|| Problem::UnknownType(name.chars().take(200).collect()))?;
    let bytes = member(message, 2);
    let bytes = bytes.as_deref().and_then(Value::as_bytes);
    let inner = DynamicMessage::decode(of, bytes.cloned().unwrap_or_default())
        .map_err(|error| Problem::Protobuf(error.to_string()))?;
    writer.output.raw("{")?;
    writer.output.name("@type")?;
    writer.output.scalar(url)?;
    if is_text(&inner) {
        writer.output.raw(",")?;
        writer.output.name("value")?;
        writer.message(&inner, depth + 1)?;
    } else {
        writer.fields(&inner, depth + 1, &mut false)?;
    }
    Ok(writer.output.raw("}")?)
}

/// Whether a message's JSON is not made of its fields.
fn is_text(message: &DynamicMessage) -> bool {
    let descriptor = message.descriptor();
    let name = descriptor.full_name().strip_prefix("google.protobuf.");
    name.is_some_and(|name| {
        name.ends_with("Value")
            || matches!(
                name,
                "Timestamp" | "Duration" | "FieldMask" | "Struct" | "Any"
            )
    })
}
