//! The binary: everything is in the library, so that tests reach it.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A command is allocated by a thread of the Kafka client's, read by another and freed by a worker: the system's
/// allocator pays for each crossing with a lock. The Kafka client, which is C, keeps its own.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    hookstream::runtime::panics::withhold_values();
    #[cfg(feature = "failpoints")]
    let _places = fail::FailScenario::setup();
    ExitCode::from(hookstream::cli::main(std::env::args_os()) as u8)
}
