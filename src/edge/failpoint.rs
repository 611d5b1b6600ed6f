//! Places where the chaos test lets a process die, as by `kill -9`, panic, or something fail; nothing in any other build.
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

/// A place that panics with this text where `name=return` is set, as a mistake in the code there would with the values that
/// it has.
#[inline]
#[track_caller]
pub(crate) fn panics_with(name: &'static str, text: impl Fn() -> String) {
    #[cfg(feature = "failpoints")]
    if is_due(name) {
        panic!("{}", text());
    }
    #[cfg(not(feature = "failpoints"))]
    let _ = (name, text);
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

/// A name lookup that gets no response, for names of the zone in `silent-zone=return(silent.example)`: blocks for as long
/// as a resolver tries, and tells that it found nothing.
#[inline]
pub(crate) fn gets_no_response(host: &str) -> bool {
    #[cfg(feature = "failpoints")]
    {
        /// What a resolver with two servers takes by default.
        const GIVES_UP: std::time::Duration = std::time::Duration::from_secs(20);
        let silent = silent_zone().is_some_and(|zone| host.ends_with(&zone));
        if silent {
            std::thread::sleep(GIVES_UP);
        }
        silent
    }
    #[cfg(not(feature = "failpoints"))]
    {
        let _ = host;
        false
    }
}

#[cfg(feature = "failpoints")]
fn silent_zone() -> Option<String> {
    fail::fail_point!("silent-zone", |zone| zone);
    None
}

#[cfg(feature = "failpoints")]
fn is_due(name: &str) -> bool {
    fail::fail_point!(name, |_| true);
    false
}
