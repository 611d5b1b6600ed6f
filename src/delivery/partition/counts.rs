//! Attempts by class of response, as plain integers: a lane counts each attempt without a lock, an allocation or a name
//! lookup. The worker reports them every 100 ms.

use crate::model::outcome::Class;

/// Attempts that ended since the last report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptCounts {
    classes: [u64; Class::ALL.len()],
    failed: u64,
}

impl AttemptCounts {
    /// Counts one attempt. The caller decides whether it failed: that depends on the subscription's status rules, not
    /// on the class.
    pub fn count(&mut self, class: Class, failed: bool) {
        self.classes[class as usize] += 1;
        self.failed += u64::from(failed);
    }

    /// Adds all attempts of `other`.
    pub fn add(&mut self, other: &Self) {
        for (own, other) in self.classes.iter_mut().zip(other.classes) {
            *own += other;
        }
        self.failed += other.failed;
    }

    /// Takes the counts, if any, and resets them to zero.
    pub fn take(&mut self) -> Option<Self> {
        (self.attempts() > 0).then(|| std::mem::take(self))
    }

    /// All attempts.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.classes.iter().sum()
    }

    /// Attempts that did not deliver.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// Attempts by class.
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
