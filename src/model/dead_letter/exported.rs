//! A dead letter as a line of JSON, whole: `dead-letters export` writes it, `import` reads it.
//!
//! It keeps where it came from and what had become of it, so that an import can tell what a topic has, or had.

use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::fact::{Coordinates, DeadLetter, Fact, IMPORTED, Settled, Settlement};
use super::open::State;
use crate::model::units::{EpochMs, Offset};

/// The version of this format.
const VERSION: u32 = 1;

/// A dead letter as exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// The version of this format.
    pub version: u32,
    /// `partition:offset`, where it was.
    pub place: String,
    /// The Kafka cluster that it was on.
    pub cluster: String,
    /// When it was exported, RFC 3339.
    pub exported_at: String,
    /// Up to which offset its partition had been read: what settles it later is at this offset or behind it.
    pub read_to: i64,
    /// `open`, `replayed` or `discarded`.
    pub state: String,
    /// When it was replayed or discarded, epoch ms.
    pub settled_at: Option<i64>,
    /// The key of the record.
    pub subscriber: String,
    /// The headers of the record, in order.
    pub headers: Vec<ExportedHeader>,
    /// The body, if it is UTF-8.
    pub body: Option<String>,
    /// The body, if it is not.
    pub body_base64: Option<String>,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedHeader {
    /// Its name.
    pub name: String,
    /// Its value, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value: Option<String>,
    /// Its value, if it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub value_base64: Option<String>,
}

/// A dead letter to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Importable {
    /// The dead letter, with the place that it was exported from.
    pub letter: DeadLetter,
    /// The cluster that it was exported from.
    pub cluster: String,
    /// See [`Exported::read_to`].
    pub read_to: i64,
    /// What had become of it.
    pub state: State,
    /// All headers of the record to write.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its body.
    pub body: Option<Vec<u8>>,
}

/// A text, or its bytes in base64.
fn halves(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

fn whole(text: Option<String>, base64: Option<String>) -> Result<Option<Vec<u8>>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err("has both a text and base64".to_owned()),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(base64)) => STANDARD
            .decode(base64)
            .map(Some)
            .map_err(|error| format!("is not base64: {error}")),
        (None, None) => Ok(None),
    }
}

impl Exported {
    /// The line of a dead letter that was read with its `headers` and `body` from `cluster`, up to `read_to`.
    #[must_use]
    pub fn new(
        letter: &DeadLetter,
        state: State,
        headers: &[(&str, &[u8])],
        body: Option<&[u8]>,
        (cluster, read_to): (&str, i64),
        now: EpochMs,
    ) -> Self {
        let (text, base64) = body.map_or((None, None), halves);
        let settled_at = match state {
            State::Open => None,
            State::Settled(_, at) => Some(at.0),
        };
        let header = |(name, value): &(&str, &[u8])| {
            let (text, base64) = halves(value);
            ExportedHeader {
                name: (*name).to_owned(),
                value: text,
                value_base64: base64,
            }
        };
        Self {
            version: VERSION,
            place: letter.at.to_string(),
            cluster: cluster.to_owned(),
            exported_at: now.rfc3339(),
            read_to,
            state: state.as_str().to_owned(),
            settled_at,
            subscriber: letter.subscriber.clone(),
            headers: headers.iter().map(header).collect(),
            body: text,
            body_base64: base64,
        }
    }

    /// Checks the line.
    ///
    /// # Errors
    /// One sentence that names the field.
    pub fn check(self) -> Result<Importable, String> {
        if self.version != VERSION {
            return Err(format!(
                "version {} of the format, but this program supports only version {VERSION}",
                self.version
            ));
        }
        let at: Coordinates = self
            .place
            .parse()
            .map_err(|error| format!("place: {error}"))?;
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        for header in self.headers {
            let value = whole(header.value, header.value_base64)
                .map_err(|error| format!("header {}: {error}", header.name))?;
            headers.push((header.name, value.unwrap_or_default()));
        }
        let body = whole(self.body, self.body_base64).map_err(|error| format!("body: {error}"))?;
        let pairs: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        let fact = Fact::decode(at, Some(self.subscriber.as_bytes()), &pairs)
            .map_err(|error| error.to_string())?;
        let Fact::DeadLettered(letter) = fact else {
            return Err("is not a dead letter: the header hs-fact says something else".to_owned());
        };
        let state = state(&self.state, self.settled_at)?;
        // The first import counts: it names the place where the command was given up.
        if !headers.iter().any(|(name, _)| name == IMPORTED) {
            let from = format!("{}/{at}", self.cluster);
            headers.push((IMPORTED.to_owned(), from.into_bytes()));
        }
        Ok(Importable {
            letter: *letter,
            cluster: self.cluster,
            read_to: self.read_to,
            state,
            headers,
            body,
        })
    }
}

impl FromStr for Exported {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| error.to_string())
    }
}

fn state(text: &str, at: Option<i64>) -> Result<State, String> {
    let how = match text {
        "open" => return Ok(State::Open),
        "replayed" => Settlement::Replayed,
        "discarded" => Settlement::Discarded,
        _ => {
            return Err(format!(
                "state: {text:?} must be open, replayed or discarded"
            ));
        }
    };
    let at = at.ok_or_else(|| format!("settled_at: missing, although the state is {text}"))?;
    Ok(State::Settled(how, EpochMs(at)))
}

impl Importable {
    /// The fact that settled it, if one had.
    #[must_use]
    pub fn settling(&self) -> Option<Settled> {
        match self.state {
            State::Open => None,
            State::Settled(how, at) => Some(Settled::new(&self.letter, how, at, &self.cluster)),
        }
    }

    /// Whether the facts that may have settled it since its export are all there still, on the cluster `here` whose
    /// partition now begins at `low`.
    #[must_use]
    pub fn is_traceable(&self, here: &str, low: Option<Offset>) -> bool {
        self.cluster == here && low.is_some_and(|low| low.0 <= self.read_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dead_letter::{DeadLetterInfo, Reason};

    fn letter() -> (DeadLetter, Vec<(String, Vec<u8>)>) {
        let info = DeadLetterInfo {
            reason: Reason::PermanentStatus,
            status: Some(400),
            error: "the endpoint responded 400".to_owned(),
            first_failure: EpochMs(1),
            last_failure: EpochMs(2),
        };
        let mut headers: Vec<(String, Vec<u8>)> = [
            ("webhook-id", "msg_1"),
            ("hs-subscription", "orders"),
            ("hs-event-id", "e1"),
            ("hs-event-type", "order.created"),
            ("hs-attempt", "3"),
            ("x-odd", ""),
        ]
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .into();
        headers.push(("x-bytes".to_owned(), vec![0xff, 0]));
        headers.extend(
            info.headers()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.into_bytes())),
        );
        let pairs: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect();
        let at = "3:42".parse().unwrap();
        let Ok(Fact::DeadLettered(letter)) = Fact::decode(at, Some(b"acme"), &pairs) else {
            panic!("a dead letter")
        };
        (*letter, headers)
    }

    fn exported(state: State, body: Option<&[u8]>) -> Exported {
        let (letter, headers) = letter();
        let pairs: Vec<(&str, &[u8])> = headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect();
        Exported::new(&letter, state, &pairs, body, ("cluster-a", 50), EpochMs(9))
    }

    #[test]
    fn an_export_comes_back_byte_for_byte_and_keeps_its_lineage() {
        let settled = State::Settled(Settlement::Replayed, EpochMs(7));
        for (state, body) in [
            (State::Open, Some(&b"{}"[..])),
            (settled, Some(&[0xff, 0xfe][..])),
            (State::Open, None),
            (State::Open, Some(&b""[..])),
        ] {
            let line = serde_json::to_string(&exported(state, body)).unwrap();
            let back = line.parse::<Exported>().unwrap().check().unwrap();
            let (letter, mut headers) = letter();
            headers.push((IMPORTED.to_owned(), b"cluster-a/3:42".to_vec()));
            assert_eq!((&back.letter, &back.headers), (&letter, &headers));
            assert_eq!((back.state, back.body.as_deref()), (state, body));
            assert_eq!(back.settling().is_some(), state != State::Open);
        }
    }

    #[test]
    fn the_first_place_stays_when_an_import_is_exported_again() {
        let first = exported(State::Open, None).check().unwrap();
        let pairs: Vec<(&str, &[u8])> = first
            .headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect();
        let again = Exported::new(
            &first.letter,
            State::Open,
            &pairs,
            None,
            ("cluster-b", 1),
            EpochMs(9),
        );
        assert_eq!(again.check().unwrap().headers, first.headers);
    }

    #[test]
    fn what_settles_it_is_seen_only_on_its_cluster_and_while_it_is_retained() {
        let open = exported(State::Open, None).check().unwrap();
        assert!(open.is_traceable("cluster-a", Some(Offset(50))));
        assert!(
            !open.is_traceable("cluster-a", Some(Offset(51))),
            "facts may have expired"
        );
        assert!(!open.is_traceable("cluster-a", None), "no such partition");
        assert!(!open.is_traceable("cluster-b", Some(Offset(0))));
    }

    #[test]
    fn a_broken_line_is_refused_with_the_field() {
        let edit = |edit: &dyn Fn(&mut Exported)| {
            let mut line = exported(State::Open, Some(b"{}"));
            edit(&mut line);
            line.check().unwrap_err()
        };
        assert!(edit(&|line| line.version = 2).contains("version 2"));
        assert!(edit(&|line| line.place = "x".to_owned()).starts_with("place"));
        assert!(edit(&|line| line.state = "gone".to_owned()).starts_with("state"));
        assert!(edit(&|line| line.state = "replayed".to_owned()).starts_with("settled_at"));
        assert!(edit(&|line| line.body_base64 = Some(String::new())).starts_with("body"));
        assert!(edit(&|line| drop(line.headers.remove(0))).contains("webhook-id"));
        assert!(
            "{}".parse::<Exported>()
                .unwrap_err()
                .contains("missing field")
        );
    }
}
