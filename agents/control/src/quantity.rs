//! Amounts as Kubernetes writes them: `100m`, `1.5Gi`, `2e3`. Read into whole milli-units or units, rounding up as Kubernetes does.

/// Reads an amount as a number of `1/scale` units, rounded up: `scale` 1000 reads milli-units. `None` if it is not an amount or
/// does not fit.
fn parse_scaled(text: &str, scale: i128) -> Option<i64> {
    let text = text.trim();
    let (negative, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, unit) = unsigned.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let mut mantissa: i128 = 0;
    for c in whole.chars().chain(fraction.chars()) {
        mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(c.to_digit(10)?))?;
    }
    let (times, exponent) = unit_of(unit)?;
    let exponent = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let mut up = mantissa.checked_mul(times)?.checked_mul(scale)?;
    let mut down: i128 = 1;
    for _ in 0..exponent.unsigned_abs().min(60) {
        if exponent > 0 {
            up = up.checked_mul(10)?;
        } else {
            down = down.checked_mul(10)?;
        }
    }
    // Rounded away from zero, as `Quantity.ScaledValue` does.
    let rounded = up / down + i128::from(up % down != 0);
    i64::try_from(if negative { -rounded } else { rounded }).ok()
}

/// A suffix as a binary factor and a power of ten.
fn unit_of(unit: &str) -> Option<(i128, i32)> {
    Some(match unit {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (1, unit.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|e| e.abs() <= 60)?),
    })
}

/// Thousandths: `1` is 1000, `250m` is 250.
pub fn milli(text: &str) -> Option<i64> {
    parse_scaled(text, 1000)
}

/// Whole units: bytes, counts.
pub fn units(text: &str) -> Option<i64> {
    parse_scaled(text, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_table() {
        let table = [
            ("0", Some(0)),
            ("1", Some(1000)),
            ("250m", Some(250)),
            ("1.5", Some(1500)),
            (".5", Some(500)),
            ("1.", Some(1000)),
            ("100u", Some(1)),
            ("1n", Some(1)),
            ("-250m", Some(-250)),
            ("2e3", Some(2_000_000)),
            ("1E-3", Some(1)),
            ("1Ki", Some(1_024_000)),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("1Kb", None),
            ("one", None),
            ("9999999999999999999999", None),
        ];
        for (text, want) in table {
            assert_eq!(milli(text), want, "{text}");
        }
        assert_eq!(units("1.5Gi"), Some(1_610_612_736));
        assert_eq!(units("100m"), Some(1), "fractions of a byte round up");
        assert_eq!(units("200M"), Some(200_000_000));
        assert_eq!(units("1E"), Some(1_000_000_000_000_000_000));
    }
}
