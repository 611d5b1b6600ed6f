//! A progress bar on standard error.

use std::io::IsTerminal;

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
