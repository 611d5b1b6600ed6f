//! What a panic prints: where it is, never a value (**Secret**).
//!
//! The standard library's own report prints the message, and a message can be formatted from anything: a slice of a text at
//! a wrong place prints the whole text, `expect` the `Debug` of the error, a dependency what it was given. So of a
//! formatted message only what is known to be free of values is printed. The place is enough to find the code, and a
//! backtrace (`RUST_BACKTRACE=1`) holds names of functions only.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::PanicHookInfo;

/// In the place of a message that may hold a secret.
const WITHHELD: &str = "(the message is not shown, it may hold a secret)";

/// Beginnings of the standard library's messages that hold numbers only.
const NUMBERS_ONLY: &[&str] = &[
    "index out of bounds: the len is ",
    "range start index ",
    "range end index ",
    "slice index starts at ",
    "mid > len",
];

/// What the standard library writes before an error's value.
const BEFORE_A_VALUE: &[&str] = &[
    "called `Result::unwrap()` on an `Err` value",
    "called `Result::unwrap_err()` on an `Ok` value",
    "assertion `left == right` failed",
    "assertion `left != right` failed",
    "cannot access a Thread Local Storage value during or after destruction",
];

/// Reports panics of this process without values, from now on.
pub fn withhold_values() {
    std::panic::set_hook(Box::new(|info| {
        let text = report(info, &Backtrace::capture());
        // Standard error may be closed; `eprintln!` would panic again.
        std::io::stderr().write_all(text.as_bytes()).ok();
    }));
}

fn report(info: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let place = info.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("an unknown place");
    let mut text = format!(
        "thread '{name}' panicked at {place}:\n{}\n",
        shown(info.payload())
    );
    // Writing to a text does not fail.
    match backtrace.status() {
        BacktraceStatus::Captured => writeln!(text, "{backtrace}").ok(),
        _ => writeln!(text, "set RUST_BACKTRACE=1 for a backtrace").ok(),
    };
    text
}

/// What may be shown of a panic's message: all of a text that is part of the program, and of a formatted one the beginning
/// that holds no value.
fn shown(payload: &dyn Any) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        return (*text).to_owned();
    }
    let Some(text) = payload.downcast_ref::<String>() else {
        return WITHHELD.to_owned();
    };
    if NUMBERS_ONLY.iter().any(|start| text.starts_with(start)) {
        return text.clone();
    }
    match BEFORE_A_VALUE.iter().find(|start| text.starts_with(*start)) {
        Some(start) => format!("{start} {WITHHELD}"),
        None => WITHHELD.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    const SECRET: &str = "s3cret-é-hunter2";

    /// What is shown of the panic that `run` ends with.
    fn shown_of(run: impl FnOnce()) -> String {
        let payload = catch_unwind(AssertUnwindSafe(run)).expect_err("it panics");
        shown(&*payload)
    }

    #[test]
    fn a_text_of_the_program_and_numbers_are_shown() {
        let list: Vec<u8> = SECRET.bytes().collect();
        let at = list.len() + 3;
        assert_eq!(
            shown_of(|| panic!("a text of the program")),
            "a text of the program"
        );
        assert_eq!(
            shown_of(|| assert_ne!(list[at], 0)),
            "index out of bounds: the len is 17 but the index is 20"
        );
        assert!(shown_of(|| drop(list[..at].to_vec())).contains("17"));
        assert_eq!(
            shown_of(|| assert_ne!(black_box(None::<u8>).unwrap(), 0)),
            "called `Option::unwrap()` on a `None` value"
        );
    }

    #[test]
    fn no_value_is_shown_whatever_formats_it() {
        let not_a_number = || SECRET.parse::<u8>().map_err(|_| SECRET);
        let panics: [&dyn Fn(); 7] = [
            &|| panic!("{SECRET}"),
            &|| panic!("{} is wrong", SECRET.to_owned()),
            // Within é.
            &|| drop(SECRET[..8].to_owned()),
            &|| assert_ne!(not_a_number().unwrap(), 0),
            &|| assert_ne!(not_a_number().expect("a number"), 0),
            &|| assert_eq!(SECRET, "another"),
            &|| std::panic::panic_any(SECRET.to_owned()),
        ];
        for (at, panic) in panics.iter().enumerate() {
            let shown = shown_of(panic);
            assert!(!shown.contains("s3cret"), "{at}: {shown}");
            assert!(shown.contains("not shown"), "{at}: {shown}");
        }
        assert_eq!(
            shown_of(|| assert_ne!(not_a_number().unwrap(), 0)),
            format!("called `Result::unwrap()` on an `Err` value {WITHHELD}")
        );
    }
}
