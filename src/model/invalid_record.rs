//! A record that could not be read, as it is kept in `webhook-invalid-events`.

use crate::model::units::Offset;

/// A record that could not be read, as it came, and why.
#[derive(Debug)]
pub struct InvalidRecord {
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// The original headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// One sentence.
    pub error: String,
    /// Topic that it was read from.
    pub topic: String,
    /// Partition that it was read from.
    pub partition: i32,
    /// Offset that it was read from.
    pub offset: Offset,
}

impl InvalidRecord {
    /// What it takes in memory, bytes, near enough for a cap.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len) + 512
    }

    /// The headers that go behind the original ones: what is wrong, and where the record was.
    #[must_use]
    pub fn source_headers(&self) -> [(&'static str, String); 4] {
        [
            ("hookstream-error", self.error.clone()),
            ("hookstream-topic", self.topic.clone()),
            ("hookstream-partition", self.partition.to_string()),
            ("hookstream-offset", self.offset.to_string()),
        ]
    }
}
