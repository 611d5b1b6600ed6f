//! A URL as a request line carries it.
//!
//! The parser of the URL standard (WHATWG) leaves characters in a path or query that RFC 3986 does not allow there, such as
//! `|`, `[` and a `%` that begins no escape. Servers and proxies in front of them refuse these, or read them differently. So
//! they are percent-encoded; what is valid stays as it is.

use url::{Position, Url};

/// The URL with its path and query percent-encoded, and without a fragment, which no server gets.
#[must_use]
pub fn as_sent(url: &Url) -> String {
    let target = &url[Position::BeforePath..Position::AfterQuery];
    let mut sent = String::with_capacity(url.as_str().len());
    sent.push_str(&url[..Position::BeforePath]);
    for (at, byte) in target.bytes().enumerate() {
        let allowed = match byte {
            b'%' => is_escape(&target.as_bytes()[at..]),
            other => is_allowed(other),
        };
        if allowed {
            sent.push(char::from(byte));
        } else {
            sent.push_str(&format!("%{byte:02X}"));
        }
    }
    sent
}

fn is_escape(bytes: &[u8]) -> bool {
    matches!(bytes, [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

/// Whether RFC 3986 (sections 3.3 and 3.4) allows it in a path and a query.
fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_in_a_path_or_query_is_encoded_and_the_rest_is_kept() {
        for (typed, expected) in [
            ("https://h.example/a/b?c=d", "https://h.example/a/b?c=d"),
            ("https://h.example", "https://h.example/"),
            (
                "https://h.example:8443/?q#part",
                "https://h.example:8443/?q",
            ),
            (
                "https://h.example/a|b[c]^d",
                "https://h.example/a%7Cb%5Bc%5D%5Ed",
            ),
            (
                "https://h.example/{id}?q={x}|`y`",
                "https://h.example/%7Bid%7D?q=%7Bx%7D%7C%60y%60",
            ),
            (
                "https://h.example/100%?a=%zz%2",
                "https://h.example/100%25?a=%25zz%252",
            ),
            (
                "https://h.example/%7c%2F?a=%5b",
                "https://h.example/%7c%2F?a=%5b",
            ),
            (
                "https://h.example/gr\u{fc}n?a=\u{fc}",
                "https://h.example/gr%C3%BCn?a=%C3%BC",
            ),
            (
                "https://h.example/a b?c d'e\"",
                "https://h.example/a%20b?c%20d%27e%22",
            ),
            (
                "https://h.example/a;b=c,d/(e)*!$&'+:@~",
                "https://h.example/a;b=c,d/(e)*!$&'+:@~",
            ),
            (
                "https://h.example/?a[]=1&b=?/:@",
                "https://h.example/?a%5B%5D=1&b=?/:@",
            ),
        ] {
            let url: Url = typed.parse().unwrap();
            let sent = as_sent(&url);
            assert_eq!(sent, expected);
            assert_eq!(as_sent(&sent.parse().unwrap()), sent, "as it is");
        }
    }
}
