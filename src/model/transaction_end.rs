//! How a transaction ended, as far as a stage acts on it.
//!
//! | end | what is known | what a stage does |
//! |---|---|---|
//! | committed | all records and positions are visible | goes on |
//! | too large | the broker refused a record for its size | sets the record's input aside |
//! | aborted | nothing is visible | renews the producer, reads again from the committed positions |
//! | fenced | nothing is visible; another producer took the transactional id | the same |
//! | ambiguous | all is visible or nothing; renewing the producer settles which | the same |
//! | fatal | this process cannot write | ends |

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Its records and positions are visible.
    Committed,
    /// The broker refused one of its records for its size.
    TooLarge {
        /// The input that the record was made from.
        tag: usize,
    },
    /// Nothing of it is visible.
    Aborted,
    /// Nothing of it is visible, since another producer has taken the transactional id over.
    Fenced,
    /// It may be visible; once the producer is renewed, the committed positions tell.
    Ambiguous,
    /// This process cannot write.
    Fatal,
}
