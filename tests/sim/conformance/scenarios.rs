//! What is compared. Each scenario shows some behaviours, which are the rows of the table in `docs/simulation.md`.

use super::step::Step::{self, Until};

mod groups;
mod topics;
mod transactions;

/// A scenario.
pub struct Scenario {
    /// Its name, unique.
    pub name: &'static str,
    /// The behaviours that it compares.
    pub shows: &'static [&'static str],
    /// It takes several seconds on a real broker.
    pub is_slow: bool,
    /// What is done.
    pub steps: Vec<Step>,
}

fn quick(name: &'static str, shows: &'static [&'static str], steps: Vec<Step>) -> Scenario {
    Scenario {
        name,
        shows,
        is_slow: false,
        steps,
    }
}

fn slow(name: &'static str, shows: &'static [&'static str], steps: Vec<Step>) -> Scenario {
    Scenario {
        is_slow: true,
        ..quick(name, shows, steps)
    }
}

fn until(step: Step, shown: &'static str) -> Step {
    Until(Box::new(step), shown)
}

/// All scenarios.
pub fn scenarios() -> Vec<Scenario> {
    let mut all = transactions::transactions();
    all.extend(transactions::fencing());
    all.extend(topics::topics());
    all.extend(groups::groups());
    all.extend(groups::offsets());
    all
}
