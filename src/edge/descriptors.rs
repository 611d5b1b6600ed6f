//! The number of files and sockets that the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, since the soft one is often only 1,024, and returns the limit in force.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!("the limit of open files stays as it is: {error}");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_in_force_is_the_hard_one() {
        let limit = super::raise_limit();
        let hard = super::getrlimit(super::Resource::Nofile).maximum;
        assert_eq!(limit, hard.unwrap_or(u64::MAX));
        assert!(limit > 3);
    }
}
