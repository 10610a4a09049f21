//! Times as Kubernetes writes them, to and from numbers. No clock in here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// A `metav1.Time` from milliseconds since the epoch, cut to whole seconds as Kubernetes serialises it. Out of range gives the epoch.
pub fn to_time(ms: i64) -> Time {
    Time(Timestamp::from_second(ms.div_euclid(1_000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Milliseconds since the epoch.
pub fn from_time(time: &Time) -> i64 {
    time.0.as_millisecond()
}

/// RFC 3339 in UTC with exactly nine digits: the time stamp of the CRI log format.
pub fn rfc3339_nanos(nanos: i64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

/// Reads an RFC 3339 time stamp; nanoseconds since the epoch.
pub fn parse_nanos(text: &str) -> Option<i64> {
    let time: Timestamp = text.parse().ok()?;
    i64::try_from(time.as_nanosecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_round_trip() {
        let nanos = 1_764_000_000_123_456_789;
        assert_eq!(parse_nanos(&rfc3339_nanos(nanos)), Some(nanos));
        assert_eq!(rfc3339_nanos(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(parse_nanos("yesterday"), None);
        assert_eq!(from_time(&to_time(1_999)), 1_000);
    }
}
