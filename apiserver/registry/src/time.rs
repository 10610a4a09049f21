//! RFC 3339 times with whole seconds, as `metav1.Time` writes them, and with six digits, as `metav1.MicroTime` does.

use jiff::Timestamp;
use jiff::tz::Offset;

/// Seconds since the Unix epoch; any offset and fraction is accepted, the fraction is cut off.
pub fn parse(text: &str) -> Option<i64> {
    text.parse::<Timestamp>().ok().map(|t| t.as_nanosecond().div_euclid(1_000_000_000) as i64)
}

/// `2006-01-02T15:04:05Z`. Years beyond 9999 print as the last one that can be written.
pub fn format(seconds: i64) -> String {
    let t = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
    Offset::UTC.to_datetime(t).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a `metav1.Time` becomes when it is decoded and written again; `None` if it is no time.
pub fn normalize(text: &str) -> Option<String> {
    parse(text).map(format)
}

/// What a `metav1.MicroTime` becomes: exactly six digits of fraction.
pub fn normalize_micro(text: &str) -> Option<String> {
    let t = text.parse::<Timestamp>().ok()?;
    Some(Offset::UTC.to_datetime(t).strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
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
        assert_eq!(parse("1970-01-01T00:01:00Z"), Some(60));
    }
}
