//! The JSON of an Avro value, written while it is read.
//!
//! | Avro | JSON |
//! |---|---|
//! | record | object, members in the order of the schema |
//! | map | object, members in the order of the value |
//! | union | the value alone, without the name of its branch |
//! | int, long | number, all digits |
//! | float, double | number with the fewest digits that give it; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | bytes, fixed | string of base64 |
//! | enum | string |
//! | decimal | string with as many decimals as the scale: `"12.50"` |
//! | uuid | string |
//! | date, time-… | `"2026-07-01"`, `"12:00:00.250"` |
//! | timestamp-… | RFC 3339, UTC, with 3, 6 or 9 decimals: `"2026-07-01T12:00:00.250Z"` |
//! | local-timestamp-… | the same without `Z` |
//! | duration | ISO 8601: `"P1M2DT3.004S"` |

use std::collections::HashSet;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::super::error::{Decode, MAX_DEPTH, Problem};
use super::super::framing::{write_uuid, zigzag};
use super::super::output::Output;
use super::types::{Schema, Type, Unit, Width};

/// The longest unscaled number of a decimal, bytes: 308 digits. Converting it takes time in the square of this.
const MAX_DECIMAL_BYTES: usize = 128;
const DAY: i64 = 86_400;

pub(crate) fn value(schema: &Schema, value: &[u8], max_bytes: usize) -> Result<Vec<u8>, Decode> {
    let mut decoder = Decoder {
        types: &schema.types,
        input: value,
        output: Output::new(max_bytes),
    };
    decoder.any(schema.root, 0)?;
    match decoder.input.len() {
        0 => Ok(decoder.output.finish()),
        left => Err(Problem::Left(left).into()),
    }
}

struct Decoder<'a> {
    types: &'a [Type],
    input: &'a [u8],
    output: Output,
}

impl<'a> Decoder<'a> {
    fn any(&mut self, of: usize, depth: usize) -> Result<(), Decode> {
        let types = self.types;
        match &types[of] {
            Type::Record(_) | Type::Array(_) | Type::Map(_) if depth >= MAX_DEPTH => {
                Err(Problem::TooDeep.into())
            }
            Type::Record(fields) => {
                self.output.raw("{")?;
                let mut is_first = true;
                for field in fields {
                    self.output.comma(&mut is_first)?;
                    self.output.name(&field.name)?;
                    self.any(field.of, depth + 1)
                        .map_err(|error| error.within(&field.name))?;
                }
                Ok(self.output.raw("}")?)
            }
            &Type::Array(items) => self.array(items, depth + 1),
            &Type::Map(values) => self.map(values, depth + 1),
            Type::Union(branches) => {
                let index = self.long()?;
                let branch = at(branches, index, "branch")?;
                // No level of its own: a union contains itself only by way of a named type, all of which are.
                self.any(*branch, depth)
            }
            scalar => Ok(self.scalar(scalar)?),
        }
    }

    fn scalar(&mut self, of: &Type) -> Result<(), Problem> {
        match *of {
            Type::Null => self.output.raw("null"),
            Type::Boolean => match self.take(1)? {
                [0] => self.output.raw("false"),
                [1] => self.output.raw("true"),
                other => Err(Problem::Boolean(other.first().copied().unwrap_or_default())),
            },
            Type::Int => {
                let number = self.int()?;
                self.output.scalar(number)
            }
            Type::Long => {
                let number = self.long()?;
                self.output.scalar(number)
            }
            Type::Float => {
                let number = f32::from_le_bytes(self.chunk()?);
                self.output.float(number)
            }
            Type::Double => {
                let number = f64::from_le_bytes(self.chunk()?);
                self.output.double(number)
            }
            Type::Bytes => {
                let bytes = self.bytes()?;
                self.output.base64(bytes)
            }
            Type::String => {
                let text = self.text()?;
                self.output.scalar(text)
            }
            Type::Enum(ref symbols) => {
                let index = self.int()?;
                self.output.scalar(at(symbols, i64::from(index), "symbol")?)
            }
            Type::Fixed(size) => {
                let bytes = self.take(size)?;
                self.output.base64(bytes)
            }
            Type::Decimal { scale, fixed } => {
                let bytes = match fixed {
                    Some(size) => self.take(size)?,
                    None => self.bytes()?,
                };
                self.output.scalar(decimal(bytes, scale)?)
            }
            Type::Uuid => {
                let mut text = String::new();
                write_uuid(&mut text, &self.chunk()?).map_err(|_| Problem::Length)?;
                self.output.scalar(text)
            }
            Type::Date => {
                let days = i64::from(self.int()?);
                let date = utc(days * DAY, 0)?.date();
                self.output.display(date)
            }
            Type::TimeOfDay(unit, width) => {
                let units = match width {
                    Width::Int => i64::from(self.int()?),
                    Width::Long => self.long()?,
                };
                if !(0..DAY * unit.per_second()).contains(&units) {
                    return Err(Problem::Range("a time of day is not within a day"));
                }
                let (seconds, nanos) = split(units, unit);
                let time = utc(seconds, nanos)?.time();
                self.output
                    .display(format_args!("{time:.0$}", unit.digits()))
            }
            Type::Timestamp(unit) => {
                let at = self.date_time(unit)?;
                self.output
                    .display(format_args!("{at:.0$}Z", unit.digits()))
            }
            Type::LocalTimestamp(unit) => {
                let at = self.date_time(unit)?;
                self.output.display(format_args!("{at:.0$}", unit.digits()))
            }
            Type::Duration => {
                let mut next = || self.chunk().map(u32::from_le_bytes);
                let (months, days, millis) = (next()?, next()?, next()?);
                let (seconds, millis) = (millis / 1000, millis % 1000);
                self.output
                    .display(format_args!("P{months}M{days}DT{seconds}.{millis:03}S"))
            }
            // Handled where the depth is known; a schema is complete when it is compiled.
            Type::Undefined | Type::Record(_) | Type::Array(_) | Type::Map(_) | Type::Union(_) => {
                Err(Problem::TooDeep)
            }
        }
    }

    fn date_time(&mut self, unit: Unit) -> Result<jiff::civil::DateTime, Problem> {
        let (seconds, nanos) = split(self.long()?, unit);
        utc(seconds, nanos)
    }

    fn array(&mut self, items: usize, depth: usize) -> Result<(), Decode> {
        self.output.raw("[")?;
        let (mut index, mut is_first) = (0_u64, true);
        while let Some(count) = self.block()? {
            for _ in 0..count {
                self.output.comma(&mut is_first)?;
                self.any(items, depth)
                    .map_err(|error| error.within(index))?;
                index += 1;
            }
        }
        Ok(self.output.raw("]")?)
    }

    fn map(&mut self, values: usize, depth: usize) -> Result<(), Decode> {
        self.output.raw("{")?;
        let (mut keys, mut is_first) = (HashSet::new(), true);
        while let Some(count) = self.block()? {
            for _ in 0..count {
                let key = self.text()?;
                if !keys.insert(key) {
                    return Err(Problem::Key(key.chars().take(100).collect()).into());
                }
                self.output.comma(&mut is_first)?;
                self.output.name(key)?;
                self.any(values, depth).map_err(|error| error.within(key))?;
            }
        }
        Ok(self.output.raw("}")?)
    }

    /// The number of items in the next block; `None` at the end. Every item writes something, so a claim of too many ends
    /// at the limit of the output.
    fn block(&mut self) -> Result<Option<u64>, Problem> {
        match self.long()? {
            0 => Ok(None),
            count if count < 0 => {
                // The size of the block, for readers that skip it.
                self.long()?;
                Ok(Some(count.unsigned_abs()))
            }
            count => Ok(Some(count.unsigned_abs())),
        }
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.input.split_at_checked(size).ok_or(Problem::Ends)?;
        self.input = rest;
        Ok(taken)
    }

    fn chunk<const SIZE: usize>(&mut self) -> Result<[u8; SIZE], Problem> {
        let (taken, rest) = self.input.split_first_chunk().ok_or(Problem::Ends)?;
        self.input = rest;
        Ok(*taken)
    }

    fn bytes(&mut self) -> Result<&'a [u8], Problem> {
        let size = usize::try_from(self.long()?).map_err(|_| Problem::Length)?;
        self.take(size)
    }

    fn text(&mut self) -> Result<&'a str, Problem> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Problem::NotUtf8)
    }

    fn int(&mut self) -> Result<i32, Problem> {
        i32::try_from(self.long()?).map_err(|_| Problem::Number(32))
    }

    fn long(&mut self) -> Result<i64, Problem> {
        zigzag(&mut self.input)
    }
}

fn at<'t, T>(all: &'t [T], index: i64, what: &'static str) -> Result<&'t T, Problem> {
    let found = usize::try_from(index).ok().and_then(|index| all.get(index));
    found.ok_or(Problem::Index {
        what,
        index,
        count: all.len(),
    })
}

/// Whole seconds, and nanoseconds from there on.
fn split(units: i64, unit: Unit) -> (i64, i32) {
    let per_second = unit.per_second();
    let nanos = units.rem_euclid(per_second) * (Unit::Nano.per_second() / per_second);
    (
        units.div_euclid(per_second),
        i32::try_from(nanos).unwrap_or_default(),
    )
}

/// Date and time in UTC.
pub(crate) fn utc(seconds: i64, nanos: i32) -> Result<jiff::civil::DateTime, Problem> {
    const RANGE: Problem = Problem::Range("a time is not in the years 0000 to 9999");
    let at = Timestamp::new(seconds, nanos).map_err(|_| RANGE)?;
    let at = TimeZone::UTC.to_datetime(at);
    if at.year() < 0 { Err(RANGE) } else { Ok(at) }
}

/// The text of a number in two's complement, big-endian, with `scale` decimals.
fn decimal(bytes: &[u8], scale: usize) -> Result<String, Problem> {
    if bytes.len() > MAX_DECIMAL_BYTES {
        return Err(Problem::Range("a decimal has more than 128 bytes"));
    }
    let is_negative = bytes.first().is_some_and(|first| *first >= 0x80);
    let mut magnitude = bytes.to_vec();
    if is_negative {
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let mut digits = digits(magnitude);
    while digits.len() <= scale {
        digits.push(b'0');
    }
    let mut text = String::with_capacity(digits.len() + 2);
    if is_negative {
        text.push('-');
    }
    for (index, digit) in digits.iter().enumerate().rev() {
        text.push(char::from(*digit));
        if index == scale && scale > 0 {
            text.push('.');
        }
    }
    Ok(text)
}

/// The decimal digits of a number in base 256, the last one first; none for zero.
fn digits(mut magnitude: Vec<u8>) -> Vec<u8> {
    let mut digits = Vec::new();
    let mut first = 0;
    loop {
        while magnitude.get(first) == Some(&0) {
            first += 1;
        }
        if first == magnitude.len() {
            return digits;
        }
        let mut rest = 0_u16;
        for byte in &mut magnitude[first..] {
            let value = rest << 8 | u16::from(*byte);
            // Below 256, since the rest is below 10.
            *byte = u8::try_from(value / 10).unwrap_or_default();
            rest = value % 10;
        }
        digits.push(b'0' + u8::try_from(rest).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_keep_all_digits_and_the_scale() {
        let cases: [(&[u8], usize, &str); 9] = [
            (&[], 0, "0"),
            (&[], 2, "0.00"),
            (&[0x04, 0xe2], 2, "12.50"),
            (&[0xff], 3, "-0.001"),
            (&[0x80], 0, "-128"),
            (&[0x00, 0x80], 0, "128"),
            (&[0x80, 0x00], 1, "-3276.8"),
            (&[0xff, 0xff, 0xfb, 0x1e], 2, "-12.50"),
            (
                &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                0,
                "604462909807314587353087",
            ),
        ];
        for (bytes, scale, expected) in cases {
            assert_eq!(decimal(bytes, scale).unwrap(), expected, "{bytes:?}");
        }
        assert!(decimal(&[1; 129], 0).is_err());
    }
}
