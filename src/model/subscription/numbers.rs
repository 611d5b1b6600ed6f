//! The numbers of filters: only those that are compared exactly are accepted.
//!
//! Numbers are integers of 64 bits or doubles, in filters and in events. An integer that fits is exact. Any other number
//! stands for the nearest double, and is exact if its text is what a double prints: `0.1`, `0.10`, `1e300`, and each
//! decimal of at most 15 digits. `9007199254740993.0`, `18446744073709551617` and `1e400` are not, and would match other
//! numbers than they say. A value that has been parsed no longer shows this, so the text is checked.

use serde::Deserialize;
use serde_json::value::RawValue;

/// A subscription, as far as this check needs it.
#[derive(Deserialize)]
struct Filtered<'a> {
    #[serde(borrow, default)]
    filter: Option<&'a RawValue>,
}

/// Checks the filters of JSON documents, each a subscription or a list of them, one after the other. Text that cannot be
/// read is left to its reader.
///
/// # Errors
/// One sentence about the first number that is not exact.
pub fn check_numbers(documents: &str) -> Result<(), String> {
    let stream = serde_json::Deserializer::from_str(documents).into_iter::<&RawValue>();
    for document in stream.map_while(Result::ok) {
        let text = document.get();
        let found: Vec<Filtered<'_>> = if text.starts_with('[') {
            serde_json::from_str(text).unwrap_or_default()
        } else {
            serde_json::from_str(text).into_iter().collect()
        };
        let filters = found.iter().filter_map(|found| found.filter);
        filters.map(RawValue::get).try_for_each(check_filter)?;
    }
    Ok(())
}

fn check_filter(filter: &str) -> Result<(), String> {
    let mut rest = filter;
    while let Some(start) = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) {
        rest = &rest[start..];
        let end = if rest.starts_with('"') {
            end_of_string(rest)
        } else {
            let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
            let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            check_number(&rest[..end])?;
            end
        };
        rest = &rest[end..];
    }
    Ok(())
}

/// The length of the string at the beginning.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = true;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn check_number(number: &str) -> Result<(), String> {
    const SHOWN: usize = 40;
    if is_exact(number) {
        return Ok(());
    }
    let shown: String = number.chars().take(SHOWN).collect();
    let more = if shown.len() < number.len() {
        "…"
    } else {
        ""
    };
    Err(format!(
        "filter: the number {shown}{more} cannot be compared exactly; numbers are integers from {} to {}, or what a double \
         holds, which every decimal of at most 15 digits is",
        i64::MIN,
        u64::MAX
    ))
}

fn is_exact(number: &str) -> bool {
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else {
        return false;
    };
    double.is_finite() && Decimal::of(number) == Decimal::of(&format!("{double:e}"))
}

/// The absolute value of a number, as digits without zeros around them, and a power of ten; zero has no digits.
#[derive(PartialEq, Eq)]
struct Decimal {
    digits: String,
    exponent: i64,
}

impl Decimal {
    fn of(number: &str) -> Self {
        let number = number.trim_start_matches('-');
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let significant = digits.trim_end_matches('0');
        let zeros = digits.len() - significant.len();
        let significant = significant.trim_start_matches('0');
        // An exponent that does not fit is that of a number that no double holds, or of zero.
        let exponent = exponent.parse().unwrap_or(i64::MAX);
        let length = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        Self {
            digits: significant.to_owned(),
            exponent: match significant {
                "" => 0,
                _ => exponent
                    .saturating_sub(length(fraction.len()))
                    .saturating_add(length(zeros)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_a_double_or_64_bits_do_not_hold_are_refused() {
        for number in [
            "0",
            "-0",
            "-0.0",
            "0e999999999999999999999",
            "0.1",
            "0.10",
            "1e-1",
            "10E-2",
            "0.10000000000000000000000000000000",
            "5.0",
            "5e0",
            "9007199254740993",
            "-9223372036854775808",
            "18446744073709551615",
            "123456789.012345",
            "0.30000000000000004",
            "1e300",
            "1e-300",
            "1.7976931348623157e308",
            "9007199254740992.0",
        ] {
            assert!(is_exact(number), "{number}");
        }
        for number in [
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999999",
            "9007199254740993.0",
            "9.007199254740993e15",
            "18446744073709551617",
            "-9223372036854775809",
            "0.1000000000000000000001",
            "0.1000000000000000055511151231257827",
        ] {
            assert!(!is_exact(number), "{number}");
        }
    }

    #[test]
    fn the_numbers_of_all_filters_are_checked_and_no_others() {
        for text in [
            r#"{"id":"a","filter":{"data.x":[{"numeric":[">",1e400]}]}}"#,
            r#"{"id":"a"} {"id":"b","filter":{"data.x":[1e400]}}"#,
            r#"[{"id":"a"},{"filter":{"data.x":["a\"",1e400]}}]"#,
            "{\"\\u0066ilter\":{\"data.x\":[-1e400]}}",
        ] {
            let error = check_numbers(text).unwrap_err();
            assert!(error.contains("1e400 cannot be compared"), "{error}");
        }
        let long = format!("{{\"filter\":{{\"data.x\":[{}]}}}}", "9".repeat(1000));
        assert!(check_numbers(&long).unwrap_err().len() < 300);
        for text in [
            r#"{"filter":{"data.1e400":["1e400","\\",{"prefix":"\"1e400"}]}}"#,
            r#"{"rate_limit":{"per_second":0.1000000000000000000001},"filter":{}}"#,
            "not JSON 1e400",
            "",
            "{\"filter\":",
        ] {
            assert_eq!(check_numbers(text), Ok(()), "{text}");
        }
    }
}
