//! Places where the chaos test lets a process die, as by `kill -9`, or something fail; nothing in any other build.
//!
//! With the feature `failpoints`, `FAILPOINTS=end-txn.before=7*off->return` ends the process the eighth time that it
//! comes by that place. Without the feature a place is an empty function.

/// A place, by its name.
#[inline]
pub(crate) fn point(name: &'static str) {
    #[cfg(feature = "failpoints")]
    if is_due(name) {
        // No unwinding, no destructors, no flush: what is not in Kafka is gone.
        std::process::abort();
    }
    #[cfg(not(feature = "failpoints"))]
    let _ = name;
}

/// A place where what is asked for fails instead, as `resolve=200*return->off` wants it for the first 200 times.
#[inline]
pub(crate) fn fails(name: &'static str) -> bool {
    #[cfg(feature = "failpoints")]
    return is_due(name);
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = name;
        false
    }
}

#[cfg(feature = "failpoints")]
fn is_due(name: &str) -> bool {
    fail::fail_point!(name, |_| true);
    false
}
