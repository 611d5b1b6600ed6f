//! Encrypts the literal secrets of a document, and replaces the secrets that sign. Pure; chance is an argument.

use serde_json::{Map, Value};

use super::keep::{Kind, each_in_record};
use super::record::read_object;
use super::reference::signing_secret;
use crate::model::envelope::{ENCRYPTED, EnvelopeError, Keys, Owner, RANDOM_BYTES, Sealed};
use crate::model::units::EpochMs;

/// Encrypts the literal secrets of a valid document with the key that encrypts, those that are encrypted with another one
/// too. A secret that the stored document holds encrypted with that key keeps its text, so that an unchanged document stays
/// unchanged. `random` must be secure, and differ at each call.
///
/// # Errors
/// What cannot be encrypted or decrypted, each with its field; then the document must not be written.
pub fn seal(
    document: &mut Value,
    stored: Option<&[u8]>,
    keys: &Keys,
    mut random: impl FnMut() -> [u8; RANDOM_BYTES],
) -> Result<(), Vec<String>> {
    let text = |field: &str| document.get(field).and_then(Value::as_str);
    let (subscriber, id) = (
        text("subscriber").unwrap_or_default().to_owned(),
        text("id").unwrap_or_default().to_owned(),
    );
    let owner = Owner {
        subscriber: &subscriber,
        id: &id,
    };
    let known = known(stored, keys, owner);
    let mut problems = Vec::new();
    each_in_record(document, |field, kind, text| {
        let (prefix, secret) = match kind {
            Kind::Literal => ("", Ok(text.clone())),
            Kind::Encrypted => {
                let (prefix, sealed) = text.split_at(text.rfind(ENCRYPTED).unwrap_or(0));
                match Sealed::read(sealed) {
                    Ok(sealed) => match keys.open(&sealed, owner) {
                        Ok(_) if keys.is_current(&sealed) => return,
                        opened => (prefix, opened),
                    },
                    Err(error) => {
                        problems.push(format!("{field}: {error}"));
                        return;
                    }
                }
            }
        };
        let sealed = secret.and_then(|secret| {
            let same = known.iter().find(|(known, _)| *known == secret);
            same.map_or_else(
                || encrypted(keys, &secret, owner, &random()),
                |(_, text)| Ok(text.clone()),
            )
        });
        match sealed {
            Ok(sealed) => *text = format!("{prefix}{sealed}"),
            Err(error) => problems.push(format!("{field}: {error}")),
        }
    });
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}

fn encrypted(
    keys: &Keys,
    secret: &str,
    owner: Owner<'_>,
    random: &[u8; RANDOM_BYTES],
) -> Result<String, EnvelopeError> {
    Ok(keys.seal(secret, owner, random)?.to_string())
}

/// The secrets that a stored document holds encrypted with the key that encrypts, each with its text there.
fn known(stored: Option<&[u8]>, keys: &Keys, owner: Owner<'_>) -> Vec<(String, String)> {
    let mut known = Vec::new();
    let Some(Ok(stored)) = stored.map(read_object) else {
        return known;
    };
    each_in_record(&mut Value::Object(stored), |_, kind, text| {
        let at = text.rfind(ENCRYPTED).filter(|_| kind == Kind::Encrypted);
        let sealed = at.and_then(|at| Sealed::read(&text[at..]).ok());
        if let Some(sealed) = sealed.filter(|sealed| keys.is_current(sealed))
            && let Ok(secret) = keys.open(&sealed, owner)
        {
            known.push((secret, sealed.to_string()));
        }
    });
    known
}

/// The most secrets of a subscription, as in its schema.
const MAX_SECRETS: usize = 8;

/// Makes `secret` the first one of a valid document. The others stop signing at `until` at the latest; those that have
/// stopped at `now` are removed.
///
/// # Errors
/// When there are too many.
pub fn rotated(
    document: &mut Map<String, Value>,
    secret: &str,
    until: EpochMs,
    now: EpochMs,
) -> Result<(), String> {
    let former = match document.remove("secrets") {
        Some(Value::Array(former)) => former,
        _ => Vec::new(),
    };
    let mut secrets = vec![Value::from(secret)];
    for item in former {
        let own = signing_secret(&item).ok().and_then(|secret| secret.until);
        let until = own.map_or(until, |own| own.min(until));
        if until <= now {
            continue;
        }
        let text = match item {
            Value::Object(mut item) => item.remove("secret").unwrap_or_default(),
            text => text,
        };
        secrets.push(serde_json::json!({"secret": text, "until": until.rfc3339()}));
    }
    let count = secrets.len();
    document.insert("secrets".to_owned(), Value::Array(secrets));
    match count <= MAX_SECRETS {
        true => Ok(()),
        false => Err(format!(
            "it would have {count} secrets, the limit is {MAX_SECRETS}; wait until older ones stop signing, or remove them with `subscriptions apply`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;
    use crate::model::subscription::parse;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn keys(bytes: &[u8]) -> Keys {
        let lines: Vec<_> = bytes.iter().map(|&b| STANDARD.encode([b; 32])).collect();
        Keys::read(&lines.join("\n")).unwrap()
    }

    fn document() -> Value {
        json!({
            "id": "a", "subscriber": "acme", "url": "https://acme.example/", "events": ["**"],
            "secrets": [SECRET, "env:OLD", {"secret": OTHER, "until": "2026-11-27T18:00:00Z"}],
            "headers": {"authorization": "Bearer hunter2", "x-tenant": "acme", "x-token": "file:/t"},
        })
    }

    fn sealed(mut document: Value, stored: Option<&Value>, keys: &Keys) -> Value {
        let mut count = 0;
        let stored = stored.map(|stored| stored.to_string().into_bytes());
        let random = || {
            count += 1;
            [count; RANDOM_BYTES]
        };
        seal(&mut document, stored.as_deref(), keys, random).unwrap();
        parse(None, document.to_string().as_bytes()).unwrap();
        document
    }

    #[test]
    fn every_literal_is_encrypted_and_all_else_stays() {
        let found = sealed(document(), None, &keys(&[1]));
        let text = found.to_string();
        assert!(
            !text.contains("MfKQ9r8") && !text.contains("hunter2") && !text.contains("AAAAAA"),
            "{text}"
        );
        assert_eq!(text.matches("enc:v1:").count(), 3);
        for kept in [
            "env:OLD",
            "file:/t",
            "2026-11-27T18:00:00Z",
            "\"x-tenant\":\"acme\"",
        ] {
            assert!(text.contains(kept), "{kept} is missing in {text}");
        }
        assert!(
            !text.contains("Bearer"),
            "the whole value is the credential"
        );
    }

    #[test]
    fn what_is_stored_keeps_its_text_until_the_key_is_replaced() {
        let one = keys(&[1]);
        let stored = sealed(document(), None, &one);
        assert_eq!(
            sealed(document(), Some(&stored), &one),
            stored,
            "from literals"
        );
        assert_eq!(
            sealed(stored.clone(), Some(&stored), &one),
            stored,
            "from its own text"
        );
        let both = keys(&[2, 1]);
        let again = sealed(stored.clone(), Some(&stored), &both);
        let name = both.names().next().unwrap().to_owned();
        assert_eq!(again.to_string().matches(&name).count(), 3);
        let last = sealed(again.clone(), Some(&again), &keys(&[2]));
        assert_eq!(last, again);
    }

    #[test]
    fn a_missing_key_is_an_error_for_each_field_and_never_a_literal() {
        let stored = sealed(document(), None, &keys(&[1]));
        let mut again = stored.clone();
        let problems = seal(&mut again, None, &keys(&[2]), || [9; RANDOM_BYTES]).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(
            problems[0].starts_with("secrets.0: is encrypted with the key"),
            "{problems:?}"
        );
        let mut other = stored;
        other["id"] = json!("b");
        let problems = seal(&mut other, None, &keys(&[1]), || [9; RANDOM_BYTES]).unwrap_err();
        assert!(problems[0].contains("another subscription"), "{problems:?}");
    }

    #[test]
    fn a_scheme_before_an_encrypted_credential_stays() {
        let keys = keys(&[1]);
        let owner = Owner {
            subscriber: "acme",
            id: "a",
        };
        let text = keys
            .seal("hunter2", owner, &[5; RANDOM_BYTES])
            .unwrap()
            .to_string();
        let mut given = document();
        given["headers"]["authorization"] = json!(format!("Bearer {text}"));
        assert_eq!(
            sealed(given.clone(), None, &keys)["headers"],
            given["headers"]
        );
        let both = self::keys(&[2, 1]);
        let again = sealed(given, None, &both);
        let value = again["headers"]["authorization"].as_str().unwrap();
        let name = both.names().next().unwrap();
        assert!(
            value.starts_with(&format!("Bearer enc:v1:{name}:")),
            "{value}"
        );
    }

    #[test]
    fn a_new_secret_signs_first_and_the_others_end() {
        let now = EpochMs(1_000_000);
        let secrets = |document: &Map<String, Value>| document["secrets"].clone();
        let mut record = document().as_object().unwrap().clone();
        record["secrets"] = json!([
            SECRET,
            {"secret": "env:A", "until": EpochMs(999_999).rfc3339()},
            {"secret": "env:B", "until": EpochMs(1_000_500).rfc3339()},
        ]);
        rotated(&mut record, OTHER, EpochMs(1_002_000), now).unwrap();
        let expected = json!([
            OTHER,
            {"secret": SECRET, "until": EpochMs(1_002_000).rfc3339()},
            {"secret": "env:B", "until": EpochMs(1_000_500).rfc3339()},
        ]);
        assert_eq!(secrets(&record), expected);
        parse(None, Value::Object(record.clone()).to_string().as_bytes()).unwrap();
        rotated(&mut record, SECRET, now, now).unwrap();
        assert_eq!(secrets(&record), json!([SECRET]), "no overlap");
        record.remove("secrets");
        rotated(&mut record, SECRET, EpochMs(2_000_000), now).unwrap();
        assert_eq!(secrets(&record), json!([SECRET]), "the first one");
        for _ in 0..7 {
            rotated(&mut record, OTHER, EpochMs(2_000_000), now).unwrap();
        }
        let error = rotated(&mut record, OTHER, EpochMs(2_000_000), now).unwrap_err();
        assert!(error.contains("the limit is 8"), "{error}");
    }
}
