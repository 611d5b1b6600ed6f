//! W3C trace context: parses and formats `traceparent`, and decides whether to trace an event.
//!
//! <https://www.w3.org/TR/trace-context/>, section 3.2. A malformed `traceparent` counts as absent. One of a later
//! version is parsed as far as this version defines it, and written as version 00.
//!
//! `tracestate` is not forwarded: it holds data of the publisher's tracing vendors, and a receiver is a different
//! party. The specification allows removal of its members.
//!
//! Pure: ids and random numbers are arguments.

use std::fmt;

/// Longer values are malformed: no known version needs as much.
const MAX_BYTES: usize = 128;
/// The position of the trace id in a `traceparent`.
const TRACE_ID: std::ops::Range<usize> = 3..35;
/// The flag `sampled`.
const SAMPLED: u8 = 1;
/// The flags of version 00: sampled, and random trace id.
const KNOWN_FLAGS: u8 = 0b11;

/// Identifies a span: its trace, its id, and whether the trace is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

impl TraceContext {
    /// Parses a `traceparent`; `None` if it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let whole = match bytes.len() {
            55 => true,
            56..=MAX_BYTES => {
                !text.starts_with("00")
                    && bytes[55] == b'-'
                    && bytes.iter().all(u8::is_ascii_graphic)
            }
            _ => false,
        };
        let dashes = || [2, 35, 52].iter().all(|&at| bytes[at] == b'-');
        if !whole || !dashes() || text.starts_with("ff") {
            return None;
        }
        hex(text, 0..2)?;
        let context = Self {
            trace_id: hex(text, TRACE_ID)?,
            span_id: u64::try_from(hex(text, 36..52)?).ok()?,
            flags: u8::try_from(hex(text, 53..55)?).ok()?,
        };
        (context.trace_id != 0 && context.span_id != 0).then_some(context)
    }

    /// The first span of a new, recorded trace. Random bits of zero are replaced, because ids must not be zero.
    #[must_use]
    pub fn start(trace_id: u128, span_id: u64) -> Self {
        Self {
            trace_id: trace_id.max(1),
            span_id: span_id.max(1),
            flags: SAMPLED,
        }
    }

    /// Another span of the same trace.
    #[must_use]
    pub fn child(self, span_id: u64) -> Self {
        Self {
            span_id: span_id.max(1),
            flags: self.flags & KNOWN_FLAGS,
            ..self
        }
    }

    /// Whether the originator of the trace records it.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The id of the trace.
    #[must_use]
    pub fn trace_id(self) -> u128 {
        self.trace_id
    }

    /// The id of this span.
    #[must_use]
    pub fn span_id(self) -> u64 {
        self.span_id
    }

    /// The value of the header.
    #[must_use]
    pub fn flags(self) -> u8 {
        self.flags
    }
}

/// Formats a `traceparent` of version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id,
            self.span_id,
            self.flags & KNOWN_FLAGS
        )
    }
}

/// Parses at most 32 digits. Not `from_str_radix`: the specification allows only lower case and no sign. Runs for each
/// command.
fn hex(text: &str, at: std::ops::Range<usize>) -> Option<u128> {
    let digits = text.as_bytes().get(at)?;
    digits.iter().try_fold(0, |number, &digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

/// The trace id of a `traceparent`, for log lines; `None` if it is malformed.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    TraceContext::parse(traceparent)?;
    traceparent.get(TRACE_ID)
}

/// Which events are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// The share of events without a trace for which a trace begins here.
    pub begun_here: f64,
}

/// What to do with an event's trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record nothing, and forward the event's context unchanged.
    PassOn,
    /// Continue the event's trace.
    Join(TraceContext),
    /// Begin a new trace.
    Begin,
}

impl Sampling {
    /// The originator of a trace decides whether it is recorded. `chance`, from 0 to below 1, only decides about traces
    /// that would begin here.
    #[must_use]
    pub fn decide(self, traceparent: Option<&str>, chance: f64) -> Decision {
        match traceparent.and_then(TraceContext::parse) {
            Some(context) if context.is_sampled() => Decision::Join(context),
            None if chance < self.begun_here => Decision::Begin,
            Some(_) | None => Decision::PassOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    proptest! {
        #[test]
        fn what_is_written_is_read_back(trace_id in 1..=u128::MAX, span_id in 1..=u64::MAX, flags in 0..4_u8) {
            let context = TraceContext { trace_id, span_id, flags };
            let text = context.to_string();
            prop_assert_eq!(TraceContext::parse(&text), Some(context));
            prop_assert_eq!(super::trace_id(&text).map(str::to_owned), Some(format!("{trace_id:032x}")));
        }

        #[test]
        fn no_text_makes_reading_panic_or_give_an_id_of_zero(text in "\\PC{0,140}") {
            let read = TraceContext::parse(&text);
            prop_assert!(read.is_none_or(|context| context.trace_id() != 0 && context.span_id() != 0));
        }

        #[test]
        fn a_character_that_is_replaced_is_read_only_if_it_stays_well_formed(at in 0..55_usize, with in "\\PC") {
            let mut text = GOOD.to_owned();
            text.replace_range(at..=at, &with);
            if let Some(context) = TraceContext::parse(&text) {
                prop_assert_eq!(&context.to_string()[2..53], &text[2..53]);
            }
        }
    }

    #[test]
    fn what_is_malformed_is_none() {
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            &GOOD.to_uppercase(),
            &format!("{GOOD}-more"),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replacen("4bf92f3577b34da6", "+bf92f3577b34da6", 1),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            &format!("01{}-{}", &GOOD[2..], "x".repeat(80)),
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad:?}");
            assert_eq!(trace_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known_and_written_as_this_one() {
        let later = format!("cc{}-what-the-future-adds", &GOOD[2..]);
        let context = TraceContext::parse(&later).unwrap();
        assert_eq!(context.to_string(), GOOD);
        let flags = TraceContext::parse(&GOOD.replace("-01", "-ff")).unwrap();
        assert!(flags.child(7).to_string().ends_with("-0000000000000007-03"));
    }

    #[test]
    fn a_child_has_its_trace_and_its_flags_and_a_span_of_its_own() {
        let parent = TraceContext::parse(GOOD).unwrap();
        let child = parent.child(1);
        assert_eq!(child.trace_id(), parent.trace_id());
        assert_eq!((child.span_id(), child.is_sampled()), (1, true));
        assert_ne!(parent.child(0).span_id(), 0, "zero is no id");
        assert_ne!(TraceContext::start(0, 0).trace_id(), 0, "zero is no id");
    }

    #[test]
    fn whoever_began_a_trace_has_decided_and_chance_decides_on_others() {
        let half = Sampling { begun_here: 0.5 };
        let unsampled = GOOD.replace("-01", "-00");
        let joined = Decision::Join(TraceContext::parse(GOOD).unwrap());
        for (traceparent, chance, expected) in [
            (Some(GOOD), 0.9, joined),
            (Some(unsampled.as_str()), 0.0, Decision::PassOn),
            (None, 0.4, Decision::Begin),
            (None, 0.5, Decision::PassOn),
            // As if it were absent.
            (Some("malformed"), 0.4, Decision::Begin),
        ] {
            assert_eq!(
                half.decide(traceparent, chance),
                expected,
                "{traceparent:?}"
            );
        }
        assert_eq!(
            Sampling { begun_here: 0.0 }.decide(None, 0.0),
            Decision::PassOn
        );
    }
}
