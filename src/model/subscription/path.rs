//! The paths of filters: `data.total`, or the name of an attribute.
//!
//! A dot separates the names of members. In a name, `\.` is a dot, and `\\`, `\[`, `\]`, `\*` stand for these characters.
//! What other languages write and what here would be the name of a member that no event has is refused, with the way to
//! write it.

use std::sync::Arc;

/// The maximum length of a path, in bytes.
pub(super) const MAX_PATH_BYTES: usize = 256;

/// Characters that a backslash takes literally.
const ESCAPED: &str = "\\.[]*";
/// Texts in every event.
const REQUIRED: [&str; 3] = ["id", "source", "type"];
/// Texts where an event has them.
const OPTIONAL: [&str; 2] = ["subject", "time"];

/// Parses a path into the names of its members; at least one.
///
/// # Errors
/// A sentence that describes the problem, with the way to write it where that is clear.
pub(super) fn parse(path: &str) -> Result<Arc<[Box<str>]>, String> {
    if path.len() > MAX_PATH_BYTES {
        return Err(format!(
            "the path is {} bytes, the limit is {MAX_PATH_BYTES}",
            path.len()
        ));
    }
    if path.starts_with('$') {
        return Err(format!(
            "a path begins with data. or is the name of an attribute; write {}",
            suggestion(path)
        ));
    }
    if path.starts_with('/') {
        return Err("a path is written with dots, as in data.total".to_owned());
    }
    let segments = split(path)?;
    if segments.iter().any(|segment| segment.is_empty()) {
        return Err("a segment of the path is empty".to_owned());
    }
    let is_attribute = |name: &str| name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    if *segments[0] == *"specversion" {
        return Err(
            "filters do not see specversion, which is 1.0 in every CloudEvent; remove it"
                .to_owned(),
        );
    }
    if *segments[0] != *"data" && (segments.len() > 1 || !is_attribute(&segments[0])) {
        return Err(
            "a path starts with data. or is the name of an attribute (a-z, 0-9), as in type"
                .to_owned(),
        );
    }
    Ok(segments)
}

fn split(path: &str) -> Result<Arc<[Box<str>]>, String> {
    let mut segments = Vec::new();
    let mut segment = String::new();
    let mut rest = path;
    let mut is_start = true;
    while let Some(letter) = rest.chars().next() {
        if is_start && is_wildcard(rest) {
            return Err(refused(path));
        }
        is_start = letter == '.';
        rest = &rest[letter.len_utf8()..];
        match letter {
            '\\' => match rest.chars().next() {
                Some(next) if ESCAPED.contains(next) => {
                    segment.push(next);
                    rest = &rest[next.len_utf8()..];
                }
                _ => {
                    return Err(
                        "a backslash stands before a dot, [, ], * or another backslash that belongs to the name of a member"
                            .to_owned(),
                    );
                }
            },
            '[' | ']' => return Err(refused(path)),
            '.' => segments.push(std::mem::take(&mut segment).into()),
            other => segment.push(other),
        }
    }
    segments.push(segment.into());
    Ok(segments.into())
}

/// Whether the segment at the beginning is `*` or `**`.
fn is_wildcard(rest: &str) -> bool {
    let segment = rest.split('.').next().unwrap_or_default();
    matches!(segment, "*" | "**")
}

fn refused(path: &str) -> String {
    format!(
        "a path has no brackets and no wildcards: lists are searched as a whole; write {}, or \\[, \\], \\* where they \
         belong to the name of a member",
        suggestion(path)
    )
}

/// The path without what looks into lists, and with quoted names as segments.
fn suggestion(path: &str) -> String {
    let mut made = String::new();
    let mut rest = path
        .strip_prefix("$.")
        .or(path.strip_prefix('$'))
        .unwrap_or(path);
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        if letter == '['
            && let Some((inner, behind)) = after.split_once(']')
        {
            let quoted = ['\'', '"'].iter().find_map(|quote| {
                inner
                    .strip_prefix(*quote)
                    .and_then(|inner| inner.strip_suffix(*quote))
            });
            if let Some(name) = quoted {
                if !made.is_empty() {
                    made.push('.');
                }
                for letter in name.chars() {
                    if ESCAPED.contains(letter) {
                        made.push('\\');
                    }
                    made.push(letter);
                }
            }
            rest = behind;
            continue;
        }
        let starts_segment = made.is_empty() || letter == '.';
        let segment = if letter == '.' { after } else { rest };
        if starts_segment && is_wildcard(segment) {
            let end = segment.find('.').unwrap_or(segment.len());
            rest = &segment[end..];
            continue;
        }
        if letter == '\\' {
            let escaped: String = rest.chars().take(2).collect();
            rest = &rest[escaped.len()..];
            made.push_str(&escaped);
            continue;
        }
        made.push(letter);
        rest = after;
    }
    let made = made.trim_matches('.');
    if made.is_empty() {
        "data".to_owned()
    } else {
        made.to_owned()
    }
}

/// Whether the value at the path is a text in every event that has one, and whether every event has one.
pub(super) fn is_text(path: &[Box<str>]) -> (bool, bool) {
    let [name] = path else { return (false, false) };
    let is_required = REQUIRED.contains(&&**name);
    (is_required || OPTIONAL.contains(&&**name), is_required)
}

/// What about a path is probably meant otherwise.
pub(super) fn doubt(path: &[Box<str>]) -> Option<String> {
    if let [name] = path {
        let meant = match &**name {
            "timestamp" | "eventtime" => "time",
            "eventtype" => "type",
            "eventid" => "id",
            "contenttype" => "datacontenttype",
            "schemaurl" => "dataschema",
            "topic" => "source",
            _ => return None,
        };
        return Some(format!(
            "{name} is no attribute of CloudEvents, so it matches only events with an extension of that name; perhaps {meant} is meant"
        ));
    }
    if let Some(padded) = path.iter().find(|name| name.trim() != &***name) {
        return Some(format!("the name {padded:?} begins or ends with a blank"));
    }
    let mut inner = path.iter().skip(1);
    let number = inner.find(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some(format!(
        "{number} is the name of a member, not a position: lists are searched as a whole"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Vec<String> {
        let segments = parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        segments.iter().map(|segment| segment.to_string()).collect()
    }

    #[test]
    fn a_backslash_takes_a_character_literally() {
        for (path, expected) in [
            ("data", &["data"] as &[&str]),
            ("data.total", &["data", "total"]),
            (
                r"data.fields.System\.State",
                &["data", "fields", "System.State"],
            ),
            (r"data.a\\.b", &["data", r"a\", "b"]),
            (r"data.a\[0\].\*", &["data", "a[0]", "*"]),
            (r"data.\*\*", &["data", "**"]),
            ("data.a*b.*c", &["data", "a*b", "*c"]),
            ("subject", &["subject"]),
            ("data.ö.0", &["data", "ö", "0"]),
        ] {
            assert_eq!(parsed(path), expected, "{path}");
        }
    }

    #[test]
    fn what_can_never_match_is_refused_with_the_way_to_write_it() {
        for (path, way) in [
            ("data.items[0].sku", "write data.items.sku,"),
            ("data.items[*].sku", "write data.items.sku,"),
            ("data.items[].sku", "write data.items.sku,"),
            ("data.items[0]", "write data.items,"),
            ("data.items.*.sku", "write data.items.sku,"),
            ("data.**.sku", "write data.sku,"),
            ("data.*", "write data,"),
            ("*", "write data,"),
            ("data.items[?(@.a==1)].sku", "write data.items.sku,"),
            (
                "data.fields['System.State']",
                r"write data.fields.System\.State,",
            ),
            (r#"data["a"]["b.c"]"#, r"write data.a.b\.c,"),
            ("$.data.total", "write data.total"),
            ("$['data']['total']", "write data.total"),
            (r"data.a\.b[0]", r"write data.a\.b,"),
            ("data.a]", "write data.a],"),
            ("/data/total", "as in data.total"),
            ("specversion", "remove it"),
            ("data_base64", "the name of an attribute"),
            ("type.kind", "the name of an attribute"),
            ("Type", "the name of an attribute"),
            ("detail.total", "starts with data."),
            (r"data.a\b", "a backslash stands before"),
            (r"data.a\", "a backslash stands before"),
            ("data..a", "is empty"),
            ("", "is empty"),
        ] {
            let error = parse(path).unwrap_err();
            assert!(error.contains(way), "{path}: {error}");
        }
    }

    #[test]
    fn a_suggestion_is_a_path() {
        for path in [
            "data.items[0].sku",
            "data.*",
            "*",
            "$",
            "$[0]",
            "data.fields['a.b*']",
            "$.data.**.x",
        ] {
            let way = suggestion(path);
            assert!(parse(&way).is_ok(), "{path}: {way}");
        }
    }

    #[test]
    fn a_name_that_is_probably_meant_otherwise_is_doubted() {
        let doubt = |path| doubt(&parse(path).unwrap());
        assert!(
            doubt("data.items.0.sku")
                .unwrap()
                .contains("not a position")
        );
        assert!(doubt("data.total ").unwrap().contains("a blank"));
        assert!(doubt("timestamp").unwrap().contains("perhaps time"));
        for path in ["data.items", "time", "tenantid", "data", "data.v1"] {
            assert_eq!(doubt(path), None, "{path}");
        }
    }
}
