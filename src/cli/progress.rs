//! A progress bar on standard error.

use std::io::{IsTerminal, Write as _};

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar, hidden unless standard error is a terminal.
#[must_use]
pub fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{msg:<28} {wide_bar} {percent:>3}%  {elapsed}")
    {
        bar.set_style(style);
    }
    bar
}

/// Leaves the bar at its end, or where it was interrupted, and ends its line: what is printed next begins a new one.
pub fn leave(bar: &ProgressBar, is_complete: bool) {
    if is_complete {
        bar.finish();
    } else {
        bar.abandon();
    }
    if !bar.is_hidden() {
        // A terminal that is gone shows nothing.
        writeln!(std::io::stderr()).ok();
    }
}
