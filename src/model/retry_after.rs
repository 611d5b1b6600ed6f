//! `Retry-After` (RFC 9110, section 10.2.3), as servers really send it.
//!
//! The RFC allows whole seconds and an HTTP date. Some servers send decimals, which are rounded up, or the time in
//! seconds or milliseconds since the epoch, which is recognised when it lies within a day of now. Of several values the
//! longest wait counts: a proxy may have added its own.

use std::time::{Duration, UNIX_EPOCH};

use super::units::EpochMs;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// The wait that the values of the header ask for; `None` when none of them can be read. A time in the past is zero.
pub fn wait<'a>(values: impl Iterator<Item = &'a [u8]>, now: EpochMs) -> Option<Duration> {
    values.filter_map(|value| one(value, now)).max()
}

fn one(value: &[u8], now: EpochMs) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if let Ok(date) = httpdate::parse_http_date(text) {
        let since_epoch = date.duration_since(UNIX_EPOCH).ok()?;
        let at = i64::try_from(since_epoch.as_millis()).ok()?;
        return Some(EpochMs(at).since(now));
    }
    // Several headers that a proxy has joined into one.
    text.split(',')
        .map(|part| seconds(part.trim(), now))
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .max()
}

fn seconds(text: &str, now: EpochMs) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let has_rest = fraction.bytes().any(|digit| digit != b'0');
    let whole: u64 = whole.parse().unwrap_or(u64::MAX);
    let count = whole.saturating_add(u64::from(has_rest));
    let near = |at: i64| (at.abs_diff(now.0) <= DAY_MS.unsigned_abs()).then_some(EpochMs(at));
    let in_ms = i64::try_from(count).ok();
    let in_seconds = in_ms.and_then(|count| count.checked_mul(1000));
    let time = in_seconds.and_then(near).or_else(|| in_ms.and_then(near));
    Some(time.map_or(Duration::from_secs(count), |time| time.since(now)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_counts_in_whatever_form_it_comes() {
        const NOW: i64 = 1_795_000_000_000;
        let secs = |count| Some(Duration::from_secs(count));
        for (values, expected) in [
            (&["120"][..], secs(120)),
            (&["0"], secs(0)),
            (&["1.5"], secs(2)),
            (&["8.0"], secs(8)),
            (&["8."], secs(8)),
            (&["1.000001"], secs(2)),
            (&[" 7 "], secs(7)),
            (&["8", "120"], secs(120)),
            (&["120", "8"], secs(120)),
            (&["8, 120"], secs(120)),
            (&["soon", "8"], secs(8)),
            (&["99999999999999999999999"], secs(u64::MAX)),
            // Now is 11:06:40 of that day.
            (&["Wed, 18 Nov 2026 11:06:50 GMT"], secs(10)),
            (&["5", "Wed, 18 Nov 2026 11:06:50 GMT"], secs(10)),
            (&["Sun, 06 Nov 1994 08:49:37 GMT"], secs(0)),
            // Seconds and milliseconds since the epoch.
            (&["1795000030"], secs(30)),
            (&["1795000000"], secs(0)),
            (&["1794999000"], secs(0)),
            (&["1795000030000"], secs(30)),
            (&["1795086400"], secs(86_400)),
            // Too far away to be a time: it is a number of seconds.
            (&["1795086401"], secs(1_795_086_401)),
            (&["-1"], None),
            (&["+1"], None),
            (&["1e3"], None),
            (&[".5"], None),
            (&["1.5s"], None),
            (&["1.2.3"], None),
            (&["8, soon"], None),
            (&[""], None),
            (&[], None),
        ] {
            let bytes = values.iter().map(|value| value.as_bytes());
            assert_eq!(wait(bytes, EpochMs(NOW)), expected, "{values:?}");
        }
        assert_eq!(wait([&b"\xff"[..]].into_iter(), EpochMs(NOW)), None);
    }
}
