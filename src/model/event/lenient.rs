//! JSON that is valid and that `serde_json` does not read: numbers beyond a double, and `\u` escapes of half a surrogate
//! pair.
//!
//! The bytes of an event's data are passed on as they are, so only filters need a value for these: the largest double, and
//! the replacement character U+FFFD.

/// The largest double, as JSON.
const LARGEST: &str = "1.7976931348623157e308";
/// As long as the escape that it replaces.
const REPLACEMENT: &str = "\\ufffd";

/// A copy of `raw` that `serde_json` reads; `None` if there is nothing to replace. Linear in `raw`.
pub(super) fn readable(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    let mut made = String::new();
    let (mut at, mut copied) = (0, 0);
    let mut replace = |from: usize, to: usize, by: &str| {
        made.push_str(raw.get(copied..from).unwrap_or_default());
        made.push_str(by);
        copied = to;
    };
    let mut in_string = false;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => {
                in_string = !in_string;
                at += 1;
            }
            b'\\' if in_string => match surrogate(bytes, at) {
                Some(Half::Pair) => at += 12,
                Some(Half::Alone) => {
                    replace(at, at + 6, REPLACEMENT);
                    at += 6;
                }
                None => at += 2,
            },
            b'-' | b'0'..=b'9' if !in_string => {
                let rest = bytes.get(at..).unwrap_or_default();
                let is_part =
                    |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let end = at + rest.iter().take_while(|byte| is_part(byte)).count();
                let number = raw.get(at..end).unwrap_or_default();
                if number.parse().is_ok_and(f64::is_infinite) {
                    if byte == b'-' {
                        replace(at, at + 1, "-");
                        at += 1;
                    }
                    replace(at, end, LARGEST);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return None;
    }
    made.push_str(raw.get(copied..).unwrap_or_default());
    Some(made)
}

/// A `\u` escape of a surrogate.
enum Half {
    /// A leading one, with the trailing one behind it.
    Pair,
    /// Without its other half.
    Alone,
}

/// What the escape at `at` is; `None` if it is not of a surrogate.
fn surrogate(bytes: &[u8], at: usize) -> Option<Half> {
    match code(bytes, at)? {
        0xd800..=0xdbff => match code(bytes, at + 6) {
            Some(0xdc00..=0xdfff) => Some(Half::Pair),
            _ => Some(Half::Alone),
        },
        0xdc00..=0xdfff => Some(Half::Alone),
        _ => None,
    }
}

fn code(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_read_is_replaced() {
        for (raw, expected) in [
            (r#""\ud800""#, Some(r#""\ufffd""#)),
            (
                r#""\uDC00\ud800x\ud83d\ude00""#,
                Some(r#""\ufffd\ufffdx\ud83d\ude00""#),
            ),
            (r#""\ud800\ud83d\ude00""#, Some(r#""\ufffd\ud83d\ude00""#)),
            (r#""\\ud800""#, None),
            (r#""\\\ud800""#, Some(r#""\\\ufffd""#)),
            (r#""\"1e999""#, None),
            (
                r#"{"\ud800":[1e999,-1E+400,1e-999]}"#,
                Some(r#"{"\ufffd":[1.7976931348623157e308,-1.7976931348623157e308,1e-999]}"#),
            ),
            (r#"{"a":[1,2.5,-0,"x"],"é":null}"#, None),
        ] {
            assert_eq!(readable(raw).as_deref(), expected, "{raw}");
            if let Some(made) = readable(raw) {
                serde_json::from_str::<serde_json::Value>(&made).unwrap();
            }
        }
    }

    #[test]
    fn a_text_that_is_cut_anywhere_is_read_without_a_panic() {
        let raw = r#"{"é\ud800\ud83d\ude00":[-1e999,"\ud8"]}"#;
        for end in (0..raw.len()).filter(|end| raw.is_char_boundary(*end)) {
            readable(&raw[..end]);
        }
    }
}
