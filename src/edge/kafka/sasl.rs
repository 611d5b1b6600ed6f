//! Changes what a running client logs in with: the calls of librdkafka that rust-rdkafka does not wrap.
//!
//! All `unsafe` code about logins is here. A client takes passwords and tokens at any time and from any thread; it copies
//! them under locks of its own.

use std::ffi::{CStr, CString, c_char};

use rdkafka::bindings;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;

use crate::config::credentials::{Login, Token};

/// Room for a reason of librdkafka, bytes.
const REASON: usize = 256;

/// Gives a login to a client. A login for another mechanism than the client's has no effect.
pub(super) fn set_login<C: ClientContext>(client: &Client<C>, login: &Login) {
    match login {
        Login::Password { user, password } => set_password(client, user, password),
        Login::Token(token) => {
            if let Err(RDKafkaErrorCode::InvalidArgument) = set_token(client, token) {
                tracing::warn!(
                    "the Kafka client refuses the token: it has expired, or it has a character that no token has"
                );
            }
        }
        Login::NoToken(reason) => set_failure(client, reason),
    }
}

#[allow(unsafe_code, reason = "rust-rdkafka has no safe call for this")]
fn set_password<C: ClientContext>(client: &Client<C>, user: &CStr, password: &CStr) {
    // SAFETY: all three pointers are valid for the call, since what they point to is borrowed; librdkafka copies the
    // strings under a lock of its own (rdkafka.h, `rd_kafka_sasl_set_credentials`). An error object, which is returned
    // only for null pointers, is ours to destroy, and is used for nothing else.
    unsafe {
        let error = bindings::rd_kafka_sasl_set_credentials(
            client.native_ptr(),
            user.as_ptr(),
            password.as_ptr(),
        );
        if !error.is_null() {
            bindings::rd_kafka_error_destroy(error);
        }
    }
}

#[allow(
    unsafe_code,
    reason = "rust-rdkafka calls this only inside a consumer's poll"
)]
fn set_token<C: ClientContext>(client: &Client<C>, token: &Token) -> Result<(), RDKafkaErrorCode> {
    let mut extensions: Vec<*const c_char> =
        token.extensions.iter().map(|text| text.as_ptr()).collect();
    // Never read, since librdkafka quotes the token in it (**Secret**).
    let mut reason = [0 as c_char; REASON];
    // SAFETY: the client, the strings and the array of pointers to strings are borrowed, and so valid for the call, in
    // which librdkafka copies them (rdkafka.h, `rd_kafka_oauthbearer_set_token`); it reads exactly `extension_size`
    // pointers, and writes at most `errstr_size` bytes into the buffer.
    let code = unsafe {
        bindings::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            token.value.as_ptr(),
            token.expires_ms,
            token.principal.as_ptr(),
            extensions.as_mut_ptr(),
            extensions.len(),
            reason.as_mut_ptr(),
            REASON,
        )
    };
    match code {
        bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        refused => Err(refused.into()),
    }
}

#[allow(
    unsafe_code,
    reason = "rust-rdkafka calls this only inside a consumer's poll"
)]
fn set_failure<C: ClientContext>(client: &Client<C>, reason: &CString) {
    // SAFETY: both pointers are valid for the call, since what they point to is borrowed; librdkafka copies the string
    // under a lock of its own (rdkafka.h, `rd_kafka_oauthbearer_set_token_failure`). The code that it returns says that
    // the client has another mechanism or the reason is empty, and there is nothing to do about either.
    unsafe {
        bindings::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), reason.as_ptr());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
    use rdkafka::error::KafkaError;

    use super::*;

    /// Keeps what the client reports.
    #[derive(Clone, Default)]
    struct Reports(Arc<Mutex<Vec<String>>>);

    impl ClientContext for Reports {
        fn error(&self, error: KafkaError, reason: &str) {
            self.0.lock().unwrap().push(format!("{error}: {reason}"));
        }
    }

    impl ConsumerContext for Reports {}

    fn client(reports: &Reports) -> BaseConsumer<Reports> {
        ClientConfig::new()
            .set("group.id", "g")
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "OAUTHBEARER")
            .create_with_context(reports.clone())
            .unwrap()
    }

    fn token(value: &str, expires_ms: i64) -> Token {
        Token {
            value: CString::new(value).unwrap(),
            expires_ms,
            principal: CString::new("me").unwrap(),
            extensions: ["a", "1", "b", "2"]
                .map(|text| CString::new(text).unwrap())
                .into(),
        }
    }

    #[test]
    fn a_client_takes_a_token_that_is_valid_and_refuses_another() {
        let client = client(&Reports::default());
        let now = crate::edge::clock::now().0;
        assert_eq!(
            set_token(client.client(), &token("a.b.c", now + 60_000)),
            Ok(())
        );
        let refused = Err(RDKafkaErrorCode::InvalidArgument);
        assert_eq!(
            set_token(client.client(), &token("a.b.c", now - 1)),
            refused
        );
        let wrong = token("hunter2\u{1}", now + 60_000);
        assert_eq!(set_token(client.client(), &wrong), refused);
    }

    #[test]
    fn a_client_without_a_token_reports_why() {
        let reports = Reports::default();
        let client = client(&reports);
        let reason = CString::new("the token server is down").unwrap();
        set_login(client.client(), &Login::NoToken(reason));
        for _ in 0..20 {
            drop(client.poll(std::time::Duration::from_millis(50)));
            if !reports.0.lock().unwrap().is_empty() {
                break;
            }
        }
        let reports = reports.0.lock().unwrap();
        assert!(
            reports[0].contains("the token server is down"),
            "{reports:?}"
        );
    }

    #[test]
    fn a_login_of_another_mechanism_has_no_effect() {
        let client: BaseConsumer = ClientConfig::new().create().unwrap();
        let now = crate::edge::clock::now().0;
        set_login(client.client(), &Login::Token(token("a.b.c", now + 60_000)));
        set_login(client.client(), &Login::NoToken(CString::new("x").unwrap()));
    }
}
