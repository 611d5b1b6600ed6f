//! JSON without members that occur twice: readers would disagree on which one counts (RFC 7493, section 2.3).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

/// A JSON value in which no object has two members of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct StrictValue(pub Value);

impl<'de> Deserialize<'de> for StrictValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Strict).map(Self)
    }
}

struct Strict;

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut found = Vec::new();
        while let Some(StrictValue(item)) = items.next_element()? {
            found.push(item);
        }
        Ok(Value::Array(found))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            match found.entry(name) {
                Entry::Occupied(found) => {
                    let name = found.key();
                    let problem = format_args!("the member {name:?} occurs twice");
                    return Err(A::Error::custom(problem));
                }
                Entry::Vacant(place) => {
                    let StrictValue(value) = members.next_value()?;
                    place.insert(value);
                }
            }
        }
        Ok(Value::Object(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_member_that_occurs_twice_is_refused_with_its_place() {
        for (text, name) in [
            ("{\"a\":1,\n \"a\":2}", "\"a\""),
            (r#"{"filter":{"x":[{"b":1,"b":2}]}}"#, "\"b\""),
            (r#"[{"a":1,"\u0061":2}]"#, "\"a\""),
        ] {
            let error = serde_json::from_str::<StrictValue>(text)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(name) && error.contains("occurs twice at line"),
                "{error}"
            );
        }
    }

    proptest! {
        #[test]
        fn everything_else_is_read_as_serde_json_reads_it(text in r#"[\[\]{},:"a0-9.eE\- tfn]{0,40}"#) {
            let ours = serde_json::from_str::<StrictValue>(&text).map(|value| value.0);
            match (serde_json::from_str::<Value>(&text), ours) {
                (Ok(expected), Ok(value)) => prop_assert_eq!(value, expected),
                (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("occurs twice")),
                (Err(_), value) => prop_assert!(value.is_err()),
            }
        }
    }
}
