//! Checks of the attributes of an event: length, characters, RFC 3339 times and the CloudEvents version.

use std::borrow::Cow;

use super::error::{InvalidEvent, MAX_ATTRIBUTE_BYTES, MAX_TIME_BYTES};

pub(super) fn required<'a>(
    name: &'static str,
    value: Option<Cow<'a, str>>,
) -> Result<Cow<'a, str>, InvalidEvent> {
    let value = value.ok_or(InvalidEvent::Missing(name))?;
    if value.is_empty() {
        return Err(InvalidEvent::Empty(name));
    }
    check_text(name, &value)?;
    Ok(value)
}

pub(super) fn checked_subject(
    value: Option<Cow<'_, str>>,
) -> Result<Option<Cow<'_, str>>, InvalidEvent> {
    let value = value.filter(|subject| !subject.is_empty());
    value
        .as_deref()
        .map_or(Ok(()), |subject| check_text("subject", subject))?;
    Ok(value)
}

fn check_text(name: &'static str, value: &str) -> Result<(), InvalidEvent> {
    if value.len() > MAX_ATTRIBUTE_BYTES {
        return Err(InvalidEvent::TooLong {
            name,
            size: value.len(),
            limit: MAX_ATTRIBUTE_BYTES,
        });
    }
    match value.chars().find(|c| c.is_control()) {
        Some(c) => Err(InvalidEvent::Control {
            name,
            code: u32::from(c),
        }),
        None => Ok(()),
    }
}

pub(super) fn checked_time(
    value: Option<Cow<'_, str>>,
) -> Result<Option<Cow<'_, str>>, InvalidEvent> {
    match value.as_deref() {
        Some(time) if time.len() > MAX_TIME_BYTES => Err(InvalidEvent::TooLong {
            name: "time",
            size: time.len(),
            limit: MAX_TIME_BYTES,
        }),
        Some(time) if !is_rfc3339(time) => Err(InvalidEvent::Time(time.to_owned())),
        _ => Ok(value),
    }
}

pub(super) fn check_specversion(version: &str) -> Result<(), InvalidEvent> {
    let minor = version.strip_prefix("1.").unwrap_or_default();
    if !minor.is_empty() && minor.len() <= 4 && minor.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err(InvalidEvent::SpecVersion(
            version.chars().take(64).collect(),
        ))
    }
}

/// RFC 3339 section 5.6 `date-time`. Stricter than most parsers, which also take a space, a missing offset or
/// a zone in brackets: receivers would choke on those.
pub(super) fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, d| {
            d.is_ascii_digit().then(|| sum * 10 + u32::from(d - b'0'))
        })
    };
    let within = |from, to, low, high| number(from, to).is_some_and(|n| (low..=high).contains(&n));
    let at =
        |index: usize, wanted: &[u8]| bytes.get(index).is_some_and(|byte| wanted.contains(byte));
    let (Some(year), Some(month)) = (number(0, 4), number(5, 7)) else {
        return false;
    };
    let date =
        at(4, b"-") && within(5, 7, 1, 12) && at(7, b"-") && within(8, 10, 1, days_in(year, month));
    let clock = at(10, b"Tt")
        && within(11, 13, 0, 23)
        && at(13, b":")
        && within(14, 16, 0, 59)
        && at(16, b":")
        && within(17, 19, 0, 60);
    if !date || !clock {
        return false;
    }
    let fraction = match bytes.get(19) {
        Some(b'.') => {
            1 + bytes[20..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        }
        _ => 0,
    };
    let zone = 19 + fraction;
    let offset = at(zone, b"+-") && within(zone + 1, zone + 3, 0, 23) && at(zone + 3, b":");
    fraction != 1
        && ((at(zone, b"Zz") && bytes.len() == zone + 1)
            || (offset && within(zone + 4, zone + 6, 0, 59) && bytes.len() == zone + 6))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        _ => 31,
    }
}
