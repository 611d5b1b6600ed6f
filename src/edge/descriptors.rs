//! The number of files and sockets that the process may have open.

use std::path::Path;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::small_file::{self, MAX_SECRET_BYTES};

/// Assumed when the limit is not known: the usual one.
const USUAL: u64 = 1024;

/// Raises the soft limit to the hard one, since the soft one is often only 1,024, and returns the limit in force.
pub fn raise_limit() -> u64 {
    let Some((soft, hard)) = limits() else {
        return USUAL;
    };
    let raised = Rlimit {
        current: hard,
        maximum: hard,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => hard.unwrap_or(u64::MAX),
        // As with the system call filter of the systemd unit.
        Err(error) => {
            tracing::debug!(?soft, "the limit of open files stays as it is: {error}");
            soft.unwrap_or(u64::MAX)
        }
    }
}

/// The soft and the hard limit; `None` is no limit. Read from a file, since the system call that reads them can also set
/// them, so that a filter may deny it.
fn limits() -> Option<(Option<u64>, Option<u64>)> {
    let text = small_file::read_text(Path::new("/proc/self/limits"), MAX_SECRET_BYTES).ok()?;
    parse(&text)
}

fn parse(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_in_force_is_the_hard_one() {
        let limit = raise_limit();
        let (soft, hard) = limits().unwrap();
        assert_eq!(soft, hard);
        assert_eq!(limit, hard.unwrap_or(u64::MAX));
        assert!(limit > 3);
    }

    #[test]
    fn both_limits_are_found() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax processes  1  2  processes\nMax open files            1024                 unlimited            files\n";
        assert_eq!(parse(text), Some((Some(1024), None)));
        assert_eq!(parse("Max open files"), None);
    }
}
