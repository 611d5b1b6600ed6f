//! Attempts counted by class of answer, as plain integers: what a lane adds to with each attempt, without a lock, an
//! allocation or a look at a name. Every 100 ms its worker hands it over.

use crate::model::outcome::Class;

/// Attempts that ended, since it was last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    classes: [u64; Class::ALL.len()],
    failed: u64,
}

impl AttemptCounts {
    /// One attempt; whether it failed is for the subscription's status rules to say, not for its class.
    pub fn count(&mut self, class: Class, failed: bool) {
        self.classes[class as usize] += 1;
        self.failed += u64::from(failed);
    }

    /// All of another's attempts.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.classes.iter_mut().zip(other.classes) {
            *own += other;
        }
        self.failed += other.failed;
    }

    /// What was counted, if anything; counting goes on at nothing.
    pub fn take(&mut self) -> Option<Self> {
        (self.attempts() > 0).then(|| std::mem::take(self))
    }

    /// All of them.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Those that did not deliver.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// How many of each class.
    pub fn by_class(&self) -> impl Iterator<Item = (Class, u64)> {
        Class::ALL.into_iter().zip(self.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_counts_in_its_class_and_is_taken_once() {
        for class in Class::ALL {
            let mut counts = AttemptCounts::default();
            counts.count(class, true);
            let counted: Vec<_> = counts.by_class().filter(|(_, count)| *count > 0).collect();
            assert_eq!(counted, [(class, 1)]);
            let mut sum = AttemptCounts::default();
            sum.add(&counts);
            sum.add(&counts);
            assert_eq!((sum.attempts(), sum.failed()), (2, 2));
            assert_eq!(counts.take().map(|taken| taken.attempts()), Some(1));
            assert_eq!(counts.take(), None);
        }
    }
}
