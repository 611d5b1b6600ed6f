//! The size of `docs/sizing.md` in virtual time: 200 replicas of deliver, 1,000 partitions, 1,000,000 subscriptions,
//! 1,000,000 events/s. `make sim-scale` prints the tables, `make sim-scale SCALE=calibrate` plays small scenarios on a
//! real Kafka and beside the model. Without either it is a test: small shapes, the same figures twice, within bounds.
//!
//! | module | |
//! |---|---|
//! | [`scale::group`] | all members and all partitions of the group: a rolling update, the loss of a zone |
//! | [`scale::partition`] | a few partitions with the product's state machine: an outage, a whale |
//! | [`scale::memory`] | bytes of each structure |
//! | [`scale::calibrate`] | the same on a real Kafka |

// As in `tests/it`: a test that cannot go on should stop where it stands.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    dead_code,
    unused_imports,
    missing_docs,
    unreachable_pub
)]

use std::process::ExitCode;

use hookstream::config::{Layers, Machine, Settings, Source};

#[path = "../it"]
mod it {
    pub mod support;
}

mod kafka;
mod scale {
    pub mod calibrate;
    pub mod full;
    pub mod group;
    pub mod memory;
    pub mod partition;
    pub mod short;
}

/// The product's defaults.
pub fn settings() -> Settings {
    settings_with(&[])
}

/// The product's defaults but for these.
pub fn settings_with(flags: &[(&'static str, &'static str)]) -> Settings {
    let mut layers = Layers::new();
    layers.give("brokers", Source::Flag, "kafka:9092");
    for (name, value) in flags {
        layers.give(name, Source::Flag, *value);
    }
    let machine = Machine {
        host_name: "scale".to_owned(),
        cores: 5,
    };
    Settings::check(&layers, &machine).unwrap()
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--list") {
        return ExitCode::SUCCESS;
    }
    match std::env::var("SCALE").as_deref() {
        Ok("full") => scale::full::print(),
        Ok("calibrate") => scale::calibrate::print(),
        Ok("") | Err(_) => scale::short::check(),
        Ok(other) => {
            println!("SCALE={other} is unknown; must be full or calibrate");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
