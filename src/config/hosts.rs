//! Patterns of host names in the egress settings.

/// A host name, or all names below one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPattern {
    /// Just this name, in lower case.
    Name(String),
    /// Written `*.NAME`: every name that ends with this, which begins with a dot.
    Below(String),
}

impl HostPattern {
    /// Reads a pattern. Addresses are no names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let (name, is_below) = match text.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (&*text, false),
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let is_name = name.len() <= 253 && name.split('.').all(is_label);
        let last = name.rsplit('.').next().unwrap_or_default();
        // The last label of an address in any of its forms is a number.
        let is_address = last.starts_with(|letter: char| letter.is_ascii_digit());
        if !is_name || is_address {
            return None;
        }
        Some(match is_below {
            true => Self::Below(format!(".{name}")),
            false => Self::Name(name.to_owned()),
        })
    }

    /// Whether it is the pattern of a name; a dot at the end of the name makes no difference.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match self {
            Self::Name(own) => name.eq_ignore_ascii_case(own),
            Self::Below(end) => {
                let at = name.len().checked_sub(end.len());
                let tail = at.filter(|at| *at > 0).and_then(|at| name.get(at..));
                tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end))
            }
        }
    }
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Below(end) => write!(f, "*{end}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_all_names_below_one() {
        for (pattern, name, expected) in [
            ("a.example", "a.example", true),
            ("a.example", "A.Example.", true),
            ("a.example", "b.a.example", false),
            ("*.example", "a.example", true),
            ("*.EXAMPLE", "b.a.Example.", true),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*.example", "anexample", false),
            ("*.example", "é.example", true),
            ("*.example", "éxample", false),
            ("host", "host", true),
        ] {
            let parsed = HostPattern::parse(pattern).unwrap();
            assert_eq!(parsed.matches(name), expected, "{pattern} {name}");
        }
        for text in [
            "", "*", "*.", "a.*", "a..b", "10.0.0.1", "*.0.0.1", "0x7f", "[::1]", "a b", "a:443",
            "a/b",
        ] {
            assert!(HostPattern::parse(text).is_none(), "{text}");
        }
        assert_eq!(HostPattern::parse("*.A.b").unwrap().to_string(), "*.a.b");
    }
}
