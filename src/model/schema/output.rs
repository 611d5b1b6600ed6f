//! JSON text that is bounded while it is written.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::error::Problem;

/// The JSON that was written so far.
#[derive(Debug)]
pub(super) struct Output {
    text: Vec<u8>,
    limit: usize,
}

impl Output {
    /// Empty; takes at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            text: Vec::new(),
            limit,
        }
    }

    /// Adds JSON as it is.
    pub(super) fn raw(&mut self, json: &str) -> Result<(), Problem> {
        self.text.extend_from_slice(json.as_bytes());
        self.check()
    }

    /// Adds a string, number or boolean.
    pub(super) fn scalar(&mut self, value: impl Serialize) -> Result<(), Problem> {
        // Neither writing to a vector nor a scalar can fail.
        serde_json::to_writer(&mut self.text, &value)
            .map_err(|_| Problem::Range("a value has no JSON"))?;
        self.check()
    }

    /// Adds a number, or the name of one that is none (as Protobuf's JSON has it).
    pub(super) fn double(&mut self, value: f64) -> Result<(), Problem> {
        match unusual(value) {
            Some(name) => self.scalar(name),
            None => self.scalar(value),
        }
    }

    /// The same, with the fewest digits that give this number of 32 bits.
    pub(super) fn float(&mut self, value: f32) -> Result<(), Problem> {
        match unusual(f64::from(value)) {
            Some(name) => self.scalar(name),
            None => self.scalar(value),
        }
    }

    /// Adds a string of base64, with padding.
    pub(super) fn base64(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        if bytes.len() > self.limit {
            return Err(Problem::TooLarge(self.limit));
        }
        self.scalar(STANDARD.encode(bytes))
    }

    /// Adds a string that is displayed.
    pub(super) fn display(&mut self, value: impl fmt::Display) -> Result<(), Problem> {
        self.scalar(value.to_string())
    }

    /// Adds the comma between two members or items, unless this is the first one.
    pub(super) fn comma(&mut self, is_first: &mut bool) -> Result<(), Problem> {
        if std::mem::take(is_first) {
            return Ok(());
        }
        self.raw(",")
    }

    /// Adds a member's name.
    pub(super) fn name(&mut self, name: &str) -> Result<(), Problem> {
        self.scalar(name)?;
        self.raw(":")
    }

    /// The whole.
    pub(super) fn finish(self) -> Vec<u8> {
        self.text
    }

    fn check(&self) -> Result<(), Problem> {
        if self.text.len() > self.limit {
            Err(Problem::TooLarge(self.limit))
        } else {
            Ok(())
        }
    }
}

fn unusual(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value.is_finite() {
        None
    } else if value > 0.0 {
        Some("Infinity")
    } else {
        Some("-Infinity")
    }
}
