//! Values of flags as types.

use std::time::Duration;

/// A duration as Go writes it: `5s`, `1h30m`, `100ms`. A bare number is nanoseconds, as in etcd's files.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a duration; write 100ms, 5s, 10m or 1h30m");
    if let Ok(nanos) = text.parse::<u64>() {
        return Ok(Duration::from_nanos(nanos));
    }
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (digits, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += digits.parse::<f64>().map_err(|_| bad())? * scale;
        rest = after;
    }
    if text.is_empty() { Err(bad()) } else { Duration::try_from_secs_f64(seconds).map_err(|_| bad()) }
}

/// `true` or `false`, and what Go takes for them.
pub fn truth(text: &str) -> Result<bool, String> {
    match text {
        "true" | "TRUE" | "True" | "1" | "t" | "T" => Ok(true),
        "false" | "FALSE" | "False" | "0" | "f" | "F" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// The items of a list.
pub fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()
}

/// Members as `name=peer-url`, separated by commas; a member with two URLs has two items.
pub fn members(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
    let mut members: Vec<(String, Vec<String>)> = Vec::new();
    for item in list(text) {
        let (name, url) = item.split_once('=').ok_or_else(|| format!("{item:?} is not name=url"))?;
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(format!("{url:?} is not an http or https URL"));
        }
        let url = url.trim_end_matches('/').to_owned();
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(url),
            None => members.push((name.to_owned(), vec![url])),
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("5s", 5_000), ("10m", 600_000), ("1h30m", 5_400_000), ("100ms", 100), ("1.5s", 1_500), ("0s", 0), ("5000000000", 5_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5", "s", "5 s", "5d", "-1s", "1..2s"] {
            assert!(bad == "5" || duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn members_are_names_with_urls() {
        let two = members("a=http://h:1,b=https://h:2,a=http://h:3/").unwrap();
        assert_eq!(two, [("a".into(), vec!["http://h:1".into(), "http://h:3".into()]), ("b".into(), vec!["https://h:2".into()])]);
        assert!(members("a").is_err() && members("a=h:1").is_err());
        assert!(members("").unwrap().is_empty());
    }
}
