//! Spans of time as text: ages as `kubectl get` prints them, and Go's duration notation. Instants are in [`crate::time`].

use crate::time;

const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// How long ago, as a person wants to read it: two units at most, coarser with growing age.
/// The steps are those of `k8s.io/apimachinery/pkg/util/duration.HumanDuration`.
pub fn human(seconds: i64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    match () {
        () if seconds < -1 => "<invalid>".into(),
        () if seconds < 0 => "0s".into(),
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => two(days, "d", hours % 24, "h"),
        () if days < 2 * 365 => format!("{days}d"),
        () if days < 8 * 365 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

fn two(major: i64, major_unit: &str, minor: i64, minor_unit: &str) -> String {
    if minor == 0 { format!("{major}{major_unit}") } else { format!("{major}{major_unit}{minor}{minor_unit}") }
}

/// The age of an RFC 3339 instant at `now` (seconds since the epoch). Empty or absent is `<unknown>`.
pub fn age(text: &str, now: i64) -> String {
    match time::instant(text) {
        None => "<unknown>".into(),
        Some((then, nanos)) => {
            // Truncation towards zero of (now - then), where then may have a fraction.
            let whole = now.saturating_sub(then);
            human(if nanos > 0 && whole > 0 { whole - 1 } else { whole })
        }
    }
}

/// Reads Go's duration notation (`1h30m`, `-1.5s`, `0`) as nanoseconds; `None` if malformed or too long for an int64.
pub fn parse_go_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|n| *n > 0)?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_len);
        total += scaled(number, unit_nanos(unit)?)?;
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

fn unit_nanos(unit: &str) -> Option<i64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        _ => return None,
    })
}

/// A decimal number times a unit, the fraction cut off.
fn scaled(number: &str, unit: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || whole.len() > 19 {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole * i128::from(unit);
    let mut step = i128::from(unit);
    for digit in fraction.bytes() {
        step /= 10;
        value += step * i128::from(digit - b'0');
    }
    Some(value)
}

/// Writes nanoseconds in Go's duration notation: `1h30m0s`, `1.5s`, `250ms`, `0s`.
pub fn format_go_duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let all = nanos.unsigned_abs();
    let (unit, name) = match all {
        0 => return "0s".into(),
        n if n < 1_000 => (1, "ns"),
        n if n < 1_000_000 => (1_000, "µs"),
        n if n < SECOND as u64 => (1_000_000, "ms"),
        _ => (SECOND as u64, "s"),
    };
    let seconds = if name == "s" { all / SECOND as u64 } else { 0 };
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let in_last_unit = if name == "s" { all % (60 * SECOND as u64) } else { all };
    let mut number = (in_last_unit / unit).to_string();
    if in_last_unit % unit != 0 {
        let width = unit.ilog10() as usize;
        let fraction = format!("{:0width$}", in_last_unit % unit);
        number = format!("{number}.{}", fraction.trim_end_matches('0'));
    }
    match (hours, minutes) {
        (0, 0) => format!("{sign}{number}{name}"),
        (0, m) => format!("{sign}{m}m{number}{name}"),
        (h, m) => format!("{sign}{h}h{m}m{number}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_at_most() {
        let cases = [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (179 * 60 + 59, "179m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 300, "3h5m"),
            (8 * 3600 + 60, "8h"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (50 * 3600, "2d2h"),
            (8 * 86400, "8d"),
            (729 * 86400, "729d"),
            (730 * 86400, "2y"),
            (731 * 86400, "2y1d"),
            (9 * 365 * 86400, "9y"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(seconds), text, "{seconds}");
        }
        assert_eq!(age("1970-01-01T00:00:10Z", 15), "5s");
        assert_eq!(age("1970-01-01T00:00:10.5Z", 15), "4s");
        assert_eq!(age("", 15), "<unknown>");
    }

    #[test]
    fn go_durations_round_trip() {
        for text in ["0s", "1ns", "1.5µs", "250ms", "1.5s", "1m0s", "1h30m0s", "-2h0m0.000000001s", "2562047h47m16.854775807s"] {
            assert_eq!(format_go_duration(parse_go_duration(text).unwrap()), text);
        }
        assert_eq!(parse_go_duration("1h30m"), Some(90 * MINUTE));
        assert_eq!(parse_go_duration(".5s"), Some(SECOND / 2));
        for bad in ["", "-", "1", "1x", ".s", "1.2.3s", "s", "9999999h", "99999999999999999999h"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }
}
