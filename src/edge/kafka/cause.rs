//! Why no broker can be reached, in this program's words.
//!
//! librdkafka has one code for most causes and tells them apart only in a text for its own users. Nothing is decided by that
//! text: what is not recognised is reported as it is.

/// Parts of librdkafka's texts, and what they mean. The first that matches counts.
const CAUSES: &[(&[&str], &str)] = &[
    (
        // Before all others, since the reason of the token server follows.
        &[
            "Failed to acquire SASL OAUTHBEARER token",
            "there is no token available",
        ],
        "there is no token to log in with, see sasl.oauthbearer.token.endpoint.url",
    ),
    (
        &["OAUTHBEARER authentication failed", "invalid_token"],
        "the broker rejects the token, see sasl.oauthbearer.scope and the broker's settings of OAUTHBEARER",
    ),
    (
        // The first request of every connection.
        &["connecting to a SSL listener", "in state APIVERSION_QUERY"],
        "the broker closes connections of this kind: its listener may want TLS or a login, see security.protocol",
    ),
    (
        &[
            "connecting to a PLAINTEXT broker listener",
            "wrong version number",
        ],
        "the broker does not speak TLS there: its listener may be a plaintext one, see security.protocol",
    ),
    (
        &["might require SASL authentication"],
        "the broker closes connections without a login: its listener may want SASL, see security.protocol",
    ),
    (
        &["mechanism handshake failed"],
        "the broker does not offer the mechanism of sasl.mechanism",
    ),
    (
        &["hostname mismatch", "IP address mismatch"],
        "the broker's certificate is for another host than the one of --brokers or of its advertised listener",
    ),
    (
        &["certificate has expired"],
        "the broker's certificate, or that of its issuer, has expired",
    ),
    (
        &["certificate is not yet valid"],
        "the broker's certificate is not valid yet",
    ),
    (
        &[
            "self-signed certificate in certificate chain",
            "self signed certificate in certificate chain",
        ],
        "the broker's certificate comes from an authority that is not trusted, see ssl.ca.location and ssl.ca.pem",
    ),
    (
        &["self-signed certificate", "self signed certificate"],
        "the broker's certificate is self-signed and not trusted, see ssl.ca.location and ssl.ca.pem",
    ),
    (
        &[
            "broker certificate could not be verified",
            "unable to get local issuer certificate",
            "certificate verify failed",
        ],
        "the broker's certificate comes from an authority that is not trusted, see ssl.ca.location and ssl.ca.pem",
    ),
    (
        &[
            "certificate required",
            "bad certificate",
            "client SSL authentication might be required",
        ],
        "the broker demands a client certificate or rejects the one that it got, see ssl.certificate.location and ssl.key.location",
    ),
    (
        &["unknown ca", "certificate unknown"],
        "the broker does not trust the client's certificate, see ssl.certificate.location",
    ),
    (
        &[
            "unsupported protocol",
            "protocol version",
            "handshake failure",
            "no protocols available",
        ],
        "the broker and this client have no TLS version or cipher in common",
    ),
    (
        &[
            "Authentication failed",
            "authentication failed",
            "invalid credentials",
            "Invalid username or password",
        ],
        "the broker rejects the user or the password, see sasl.username and sasl.password",
    ),
    (
        &["in state SSL_HANDSHAKE"],
        "the broker ends TLS before it begins: its listener may be a plaintext one, see security.protocol",
    ),
    (
        &["Failed to resolve"],
        "the broker's name has no address, see --brokers",
    ),
    (
        &["Connection refused"],
        "nothing listens at the broker's address",
    ),
];

/// The meaning of a text of librdkafka, followed by the text.
pub(super) fn of(reason: &str) -> String {
    let known = CAUSES
        .iter()
        .find(|(parts, _)| parts.iter().any(|part| reason.contains(part)));
    match known {
        Some((_, meaning)) => format!("{meaning} ({reason})"),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_client_are_explained() {
        for (reason, expected) in [
            (
                "h:9092/bootstrap: Disconnected: requesting ApiVersion: might be caused by incorrect security.protocol configuration (connecting to a SSL listener?) or broker version is < 0.10 (see api.version.request) (after 3ms in state APIVERSION_QUERY)",
                "the broker closes connections of this kind",
            ),
            (
                "ssl://h:9092/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (after 1ms in state SSL_HANDSHAKE)",
                "the broker does not speak TLS",
            ),
            (
                "sasl_plaintext://h:1/bootstrap: SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: PLAIN (after 0ms in state AUTH_HANDSHAKE)",
                "the broker does not offer the mechanism",
            ),
            (
                "sasl_plaintext://h:1/bootstrap: SASL authentication error: Authentication failed: Invalid username or password (after 30ms in state AUTH_REQ)",
                "the broker rejects the user or the password",
            ),
            (
                "ssl://h:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed (install ca-certificates package)",
                "the broker's certificate comes from an authority that is not trusted",
            ),
            (
                "ssl://h:1/1: SSL handshake failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116",
                "the broker demands a client certificate",
            ),
            (
                "h:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused",
                "nothing listens",
            ),
        ] {
            let text = of(reason);
            assert!(text.starts_with(expected), "{text}");
            assert!(text.ends_with(&format!("({reason})")), "{text}");
        }
        assert_eq!(of("something new"), "something new");
    }
}
