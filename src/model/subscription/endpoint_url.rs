//! The URL of an endpoint: what is accepted, and the form in which it is used.
//!
//! The WHATWG parser lowers the host, drops a default port and resolves `..`. Beyond that, characters that RFC 3986 does
//! not allow in a path or query (`|`, `^`, `{`, a `%` that is no escape, …) are percent-encoded, since servers and proxies
//! refuse them.

use std::borrow::Cow;
use std::fmt;

use compact_str::CompactString;
use url::Url;

/// The URL of an endpoint: `http` or `https`, with a host, without user info or fragment. Only its text is kept: every
/// replica holds the URLs of all subscriptions in memory, and a parsed one takes 72 bytes more. The default is empty: no
/// URL is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointUrl(CompactString);

impl EndpointUrl {
    /// Of a URL that [`parse`] has returned.
    pub(super) fn new(url: &Url) -> Self {
        Self(url.as_str().into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL, parsed again.
    ///
    /// # Panics
    /// If the URL is empty (the default).
    #[must_use]
    pub fn to_url(&self) -> Url {
        #[allow(
            clippy::expect_used,
            reason = "serialized from a parsed URL, so it parses unless it is the default"
        )]
        Url::parse(&self.0).expect("the text of a URL")
    }

    /// Whether requests to it are encrypted.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Parses a URL. No message shows a URL that may contain a password.
///
/// # Errors
/// All problems, each without the field's name.
pub(super) fn parse(text: &str) -> Result<Url, Vec<String>> {
    // The URL parser silently drops some of these, and treats a backslash as a slash.
    if text
        .chars()
        .any(|letter| letter.is_control() || letter.is_whitespace() || letter == '\\')
    {
        return Err(vec![
            "holds a blank, a control character or a backslash".to_owned(),
        ]);
    }
    let mut url = Url::parse(text).map_err(|error| vec![format!("is not a URL: {error}")])?;
    let mut problems = Vec::new();
    if !url.username().is_empty()
        || url.password().is_some()
        || text.contains('@') && has_user_info(text)
    {
        problems
            .push("must not hold a user name or password; send credentials in headers".to_owned());
    } else if !matches!(url.scheme(), "https" | "http") {
        problems.push(format!(
            "the scheme is {:?}, it must be https or http",
            url.scheme()
        ));
    } else if url.host_str().is_none_or(str::is_empty) {
        problems.push("has no host".to_owned());
    }
    if url.fragment().is_some() {
        problems.push("must not have a fragment (#…), which is never sent".to_owned());
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if let Cow::Owned(path) = encoded(url.path(), b"/") {
        url.set_path(&path);
    }
    if let Some(Cow::Owned(query)) = url.query().map(|query| encoded(query, b"/?")) {
        url.set_query(Some(&query));
    }
    Ok(url)
}

/// Detects `https://@host/` too: the parser drops an empty user name.
fn has_user_info(text: &str) -> bool {
    let authority = text.split_once("//").map_or("", |(_, rest)| {
        rest.split(['/', '?', '#', '\\']).next().unwrap_or("")
    });
    authority.contains('@')
}

/// Percent-encodes what is neither a `pchar` of RFC 3986 nor in `more`. Borrowed when there is nothing to encode.
fn encoded<'t>(text: &'t str, more: &[u8]) -> Cow<'t, str> {
    let bytes = text.as_bytes();
    let is_escape = |at: usize| {
        let digits = bytes.get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let is_allowed = |at: usize, byte: u8| match byte {
        b'%' => is_escape(at),
        _ => {
            byte.is_ascii_alphanumeric()
                || b"-._~!$&'()*+,;=:@".contains(&byte)
                || more.contains(&byte)
        }
    };
    let mut each = bytes.iter().enumerate();
    if each.all(|(at, byte)| is_allowed(at, *byte)) {
        return Cow::Borrowed(text);
    }
    let mut made = String::with_capacity(text.len() + 16);
    for (at, byte) in bytes.iter().enumerate() {
        if is_allowed(at, *byte) {
            made.push(char::from(*byte));
        } else {
            made.push_str(percent_encoding::percent_encode_byte(*byte));
        }
    }
    Cow::Owned(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_used_in_its_normal_form() {
        for (typed, used) in [
            ("https://a.example", "https://a.example/"),
            (
                "HTTPS://A.Example:443/x/../y?q=1",
                "https://a.example/y?q=1",
            ),
            (
                "https://a.example/%7Ea/%2F?x=%20",
                "https://a.example/%7Ea/%2F?x=%20",
            ),
            (
                "https://a.example/a|b^c{d}[e]\"f`g<h>",
                "https://a.example/a%7Cb%5Ec%7Bd%7D%5Be%5D%22f%60g%3Ch%3E",
            ),
            (
                "https://a.example/h?ids[]=1&x={y}|z^`\"<>",
                "https://a.example/h?ids%5B%5D=1&x=%7By%7D%7Cz%5E%60%22%3C%3E",
            ),
            (
                "https://a.example/100%/%zz%4",
                "https://a.example/100%25/%25zz%254",
            ),
            ("https://a.example/ü?ö", "https://a.example/%C3%BC?%C3%B6"),
            (
                "https://a.example/-._~!$&'()*+,;=:@/?-._~!$&()*+,;=:@/?",
                "https://a.example/-._~!$&'()*+,;=:@/?-._~!$&()*+,;=:@/?",
            ),
            ("http://0x7f.1:8080/", "http://127.0.0.1:8080/"),
        ] {
            let url = parse(typed).unwrap();
            assert_eq!(url.as_str(), used);
            assert_eq!(parse(used).unwrap().as_str(), used, "it stays as it is");
            assert!(url.as_str().parse::<http::Uri>().is_ok(), "{url}");
        }
    }
}
