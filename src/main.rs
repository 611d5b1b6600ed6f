//! The binary: everything is in the library, so that tests reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(hookstream::cli::main(std::env::args_os()) as u8)
}
