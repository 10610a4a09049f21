//! RFC 3339 times with whole seconds, as `metav1.Time` writes them, and with six digits, as `metav1.MicroTime` does.

use jiff::civil::{DateTime, date};
use jiff::{SignedDuration, Timestamp};

const NANOS: i128 = 1_000_000_000;

/// The seconds since the Unix epoch that RFC 3339 can write: the years 1 to 9999.
pub const WRITABLE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// The time of a text in nanoseconds since the Unix epoch.
fn nanos(text: &str) -> Option<i128> {
    match text.parse::<Timestamp>() {
        Ok(t) => Some(t.as_nanosecond()),
        // A timestamp ends a day before the year 9999 does, so that every zone has a name for it; people write the last second of it.
        Err(_) => {
            let t: DateTime = text.strip_suffix('Z')?.parse().ok()?;
            Some(t.duration_since(epoch()).as_nanos())
        }
    }
}

fn epoch() -> DateTime {
    date(1970, 1, 1).at(0, 0, 0, 0)
}

fn civil(nanos: i128) -> DateTime {
    let (seconds, rest) = (nanos.div_euclid(NANOS), nanos.rem_euclid(NANOS));
    let seconds = i64::try_from(seconds).unwrap_or(if seconds < 0 { i64::MIN } else { i64::MAX });
    epoch().saturating_add(SignedDuration::new(seconds, i32::try_from(rest).unwrap_or(0)))
}

/// Seconds since the Unix epoch; any offset and fraction is accepted, the fraction is cut off.
pub fn parse(text: &str) -> Option<i64> {
    i64::try_from(nanos(text)?.div_euclid(NANOS)).ok()
}

/// `2006-01-02T15:04:05Z`. Times that RFC 3339 cannot write print as the last or the first that it can.
pub fn format(seconds: i64) -> String {
    civil(i128::from(seconds) * NANOS).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Seconds since the Unix epoch and nanoseconds within the second; `None` if the text is no time.
pub fn instant(text: &str) -> Option<(i64, u32)> {
    let nanos = nanos(text)?;
    Some((i64::try_from(nanos.div_euclid(NANOS)).ok()?, u32::try_from(nanos.rem_euclid(NANOS)).ok()?))
}

/// `2006-01-02T15:04:05.000000Z`, as a `metav1.MicroTime` is written.
pub fn format_micro(seconds: i64, nanos: i32) -> String {
    micro(i128::from(seconds) * NANOS + i128::from(nanos))
}

fn micro(nanos: i128) -> String {
    civil(nanos).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// What a `metav1.Time` becomes when it is decoded and written again; `None` if it is no time.
pub fn normalize(text: &str) -> Option<String> {
    parse(text).map(format)
}

/// What a `metav1.MicroTime` becomes: exactly six digits of fraction.
pub fn normalize_micro(text: &str) -> Option<String> {
    nanos(text).map(micro)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_to_their_precision() {
        assert_eq!(normalize("2026-01-01T02:00:00.987+02:00").as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(normalize("1969-12-31T23:59:59.5Z").as_deref(), Some("1969-12-31T23:59:59Z"));
        assert_eq!(normalize_micro("2026-01-01T00:00:00Z").as_deref(), Some("2026-01-01T00:00:00.000000Z"));
        assert_eq!(normalize_micro("2026-01-01T00:00:00.1234567Z").as_deref(), Some("2026-01-01T00:00:00.123456Z"));
        assert_eq!(normalize("yesterday"), None);
        for edge in ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"] {
            assert_eq!(normalize(edge).as_deref(), Some(edge));
        }
        assert_eq!(format(i64::MAX), "9999-12-31T23:59:59Z");
        assert_eq!(parse("1970-01-01T00:01:00Z"), Some(60));
        assert_eq!(format(*WRITABLE.start()), "0001-01-01T00:00:00Z");
        assert_eq!(format(*WRITABLE.end()), "9999-12-31T23:59:59Z");
        assert_eq!(instant("1970-01-01T00:00:01.25Z"), Some((1, 250_000_000)));
        assert_eq!(instant("1969-12-31T23:59:59.5Z"), Some((-1, 500_000_000)));
        assert_eq!(format_micro(1, 250_000_000), "1970-01-01T00:00:01.250000Z");
    }
}
