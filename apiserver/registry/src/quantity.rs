//! Kubernetes quantities: numbers with a decimal or binary suffix (`100m`, `1.5Gi`, `1e3`), held exactly.
//!
//! The rules are those of `k8s.io/apimachinery/pkg/api/resource`: nothing finer than a nano (finer rounds up), a canonical text per form, and a parsed
//! value that prints the text it came from while that text is already in its form.

use std::cmp::Ordering;
use std::fmt;

/// The form in which a quantity prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `500m`, `2`, `3k`: powers of 1000.
    DecimalSi,
    /// `512Mi`: powers of 1024.
    BinarySi,
    /// `1e3`: powers of 1000 as an exponent.
    DecimalExponent,
}

/// Why text is not a quantity. The texts are Kubernetes' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The characters are wrong.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is unknown.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An exact quantity.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// The value in nanos. Inputs are bounded so that this cannot overflow.
    nanos: i128,
    format: Format,
    /// The text that it was parsed from, if that is how it prints.
    text: Option<String>,
}

const NANO: i128 = 1_000_000_000;
/// The largest magnitude that is kept; Kubernetes caps binary values there, and so do all its consumers.
const MAX: i128 = i64::MAX as i128;
/// Larger than any quantity that means something, small enough to multiply without overflow. Bigger inputs saturate here.
const CAP: i128 = MAX * 1_000_000_000 * NANO;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// A whole number.
    pub const fn from_value(value: i64) -> Self {
        Self { nanos: value as i128 * NANO, format: Format::DecimalSi, text: None }
    }

    /// A number of thousandths.
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * 1_000_000, format: Format::DecimalSi, text: None }
    }

    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(split);
        if number.is_empty() || !suffix_is_well_formed(suffix) || number.matches('.').count() > 1 || number == "." {
            return Err(QuantityError::Format);
        }
        let (format, scale) = parse_suffix(suffix)?;
        let (magnitude, exact) = nanos_of(number, scale);
        let mut nanos = if format == Format::BinarySi { magnitude.min(MAX * NANO) } else { magnitude };
        let capped = nanos != magnitude;
        if negative {
            nanos = -nanos;
        }
        let mut quantity = Self { nanos, format, text: None };
        if quantity.prints_as_read(number, format, scale, exact && !capped) {
            quantity.text = Some(text.to_owned());
        }
        Ok(quantity)
    }

    /// Small values without a fraction are kept as scaled integers upstream, and those print the text that they were read from.
    fn prints_as_read(&self, number: &str, format: Format, scale: Scale, exact: bool) -> bool {
        let Scale::Ten(exponent) = scale else { return false };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let canonical = self.canonical_text();
        exact && fraction.is_empty() && whole.len() < 19 && exponent % 3 == 0 && {
            // Only when the canonical form would not choose another suffix.
            let digits = whole.trim_start_matches('0');
            let suffix = suffix_text(format, exponent);
            let plain = format!("{}{}{}", if self.nanos < 0 { "-" } else { "" }, if digits.is_empty() { "0" } else { digits }, suffix);
            plain.eq_ignore_ascii_case(&canonical)
        }
    }

    /// The form.
    pub const fn format(&self) -> Format {
        self.format
    }

    /// The value rounded up to a whole number, saturating.
    pub fn value(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANO))
    }

    /// The value rounded up to thousandths, saturating.
    pub fn milli_value(&self) -> i64 {
        saturate(ceil_div(self.nanos, 1_000_000))
    }

    /// The value as nanos.
    pub const fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The value as a floating point number, for ratios.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// True if it is zero.
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// The sum. The form is the left one's, or the right one's if the left is zero.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-CAP, CAP), format, text: None }
    }

    /// The difference. The form is the left one's, or the right one's if the left is zero.
    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: (self.nanos - other.nanos).clamp(-CAP, CAP), format, text: None }
    }

    /// Rounded up to thousandths, as the API server does to resources of pods.
    #[must_use]
    pub fn rounded_to_milli(&self) -> Self {
        let nanos = ceil_div(self.nanos, 1_000_000) * 1_000_000;
        if nanos == self.nanos { self.clone() } else { Self { nanos, format: self.format, text: None } }
    }

    /// The canonical text, whatever the quantity was read from.
    pub fn canonical_text(&self) -> String {
        match self.format {
            Format::BinarySi if self.nanos.abs() >= 1024 * NANO && self.nanos % NANO == 0 => binary_text(self.nanos / NANO),
            // Small or fractional binary values print as decimals.
            Format::BinarySi | Format::DecimalSi => decimal_text(self.nanos, false),
            Format::DecimalExponent => decimal_text(self.nanos, true),
        }
    }
}

/// Equality and order are of the value: `1000m` equals `1`.
impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => f.write_str(&self.canonical_text()),
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

/// What a suffix multiplies by.
#[derive(Clone, Copy, Debug)]
enum Scale {
    /// A power of ten.
    Ten(i32),
    /// A power of two.
    Two(u32),
}

/// `[eEinumkKMGTP]*[-+]?[0-9]*`.
fn suffix_is_well_formed(suffix: &str) -> bool {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    rest.bytes().all(|b| b.is_ascii_digit())
}

fn parse_suffix(suffix: &str) -> Result<(Format, Scale), QuantityError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, Scale::Ten(*exponent)));
    }
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::BinarySi, Scale::Two(*bits)));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
    let exponent: i64 = exponent.parse().map_err(|_| QuantityError::Suffix)?;
    Ok((Format::DecimalExponent, Scale::Ten(exponent.clamp(-1000, 1000) as i32)))
}

fn suffix_text(format: Format, exponent: i32) -> String {
    match (format, exponent) {
        (_, 0) => String::new(),
        (Format::DecimalExponent, e) => format!("e{e}"),
        (_, e) => DECIMAL.iter().find(|(_, x)| *x == e).map_or_else(String::new, |(s, _)| (*s).to_owned()),
    }
}

/// A decimal number times a scale, in nanos, rounded away from zero; and whether it was exact. Saturates at [`CAP`].
fn nanos_of(number: &str, scale: Scale) -> (i128, bool) {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return (0, true);
    }
    let (bits, exponent) = match scale {
        Scale::Ten(e) => (0, e),
        Scale::Two(bits) => (bits, 0),
    };
    // value = digits * 10^power * 2^bits nanos
    let power = exponent - fraction.len() as i32 + 9;
    if digits.len() as i32 + power > 37 {
        return (CAP, false);
    }
    // 10^-k * 2^bits: take the twos first, they may cancel the tens.
    if digits.len() > 37 || (bits > 0 && digits.len() > 18) {
        // More digits than any form can print: round the number itself to 18 digits, up.
        let kept: i128 = digits[..18].parse().unwrap_or(0) + 1;
        return scaled(kept, power + digits.len() as i32 - 18, bits);
    }
    scaled(digits.parse().unwrap_or(0), power, bits)
}

fn scaled(digits: i128, power: i32, bits: u32) -> (i128, bool) {
    let Some(shifted) = digits.checked_mul(1i128 << bits) else { return (CAP, false) };
    if power >= 0 {
        return match 10i128.checked_pow(power as u32).and_then(|p| shifted.checked_mul(p)) {
            Some(n) if n <= CAP => (n, true),
            _ => (CAP, false),
        };
    }
    match 10i128.checked_pow(power.unsigned_abs()) {
        None => (1, false),
        Some(p) => (ceil_div(shifted, p).min(CAP), shifted % p == 0),
    }
}

/// Division rounding away from zero.
const fn ceil_div(n: i128, d: i128) -> i128 {
    let q = n / d;
    if n % d == 0 {
        q
    } else if n < 0 {
        q - 1
    } else {
        q + 1
    }
}

fn saturate(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

fn binary_text(mut value: i128) -> String {
    let mut unit = 0;
    while unit < BINARY.len() && value % 1024 == 0 && value != 0 {
        value /= 1024;
        unit += 1;
    }
    let suffix = unit.checked_sub(1).map_or("", |i| BINARY[i].0);
    format!("{value}{suffix}")
}

fn decimal_text(nanos: i128, exponent_form: bool) -> String {
    if nanos == 0 {
        return "0".into();
    }
    let (mut value, mut exponent) = (nanos, -9);
    while value % 1000 == 0 && (exponent < 18) {
        value /= 1000;
        exponent += 3;
    }
    if exponent_form && exponent != 0 {
        return format!("{value}e{exponent}");
    }
    format!("{value}{}", suffix_text(Format::DecimalSi, exponent))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn golden_quantities() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/quantity.jsonl")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 60);
        for case in cases {
            let text = case["in"].as_str().unwrap();
            match (Quantity::parse(text), case["error"].as_str()) {
                (Err(e), Some(want)) => assert_eq!(e.to_string(), want, "{text}"),
                (Ok(q), None) => {
                    assert_eq!(q.to_string(), case["out"].as_str().unwrap(), "{text}");
                    // Beyond an int64 Go wraps around; here it saturates.
                    if q.nanos().abs() <= MAX * NANO {
                        assert_eq!(q.value(), case["value"].as_i64().unwrap(), "{text}");
                    }
                    if q.nanos().abs() <= MAX * 1_000_000 {
                        assert_eq!(q.milli_value(), case["milli"].as_i64().unwrap(), "{text}");
                    }
                }
                (got, want) => panic!("{text}: got {got:?}, want {want:?}"),
            }
        }
    }

    #[test]
    fn sums_keep_the_form_of_the_left_side() {
        let sum = |a: &str, b: &str| Quantity::parse(a).unwrap().add(&Quantity::parse(b).unwrap()).to_string();
        assert_eq!(sum("1Gi", "512Mi"), "1536Mi");
        assert_eq!(sum("0", "512Mi"), "512Mi");
        assert_eq!(sum("500m", "500m"), "1");
        assert_eq!(sum("1", "1Ki"), "1025");
        assert_eq!(Quantity::parse("1").unwrap().sub(&Quantity::parse("250m").unwrap()).to_string(), "750m");
        assert_eq!(Quantity::parse("100u").unwrap().rounded_to_milli().to_string(), "1m");
        assert_eq!(Quantity::from_milli(1500).to_string(), "1500m");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn canonical_text_reads_back_equal(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(n|u|m|k|M|G|Ki|Mi|Gi|e[0-9]|E-[0-9])?") {
            let q = Quantity::parse(&text).unwrap();
            let canonical = q.canonical_text();
            let again = Quantity::parse(&canonical).unwrap();
            prop_assert_eq!(&again, &q);
            prop_assert_eq!(again.canonical_text(), canonical);
        }

        #[test]
        fn any_text_is_an_answer(text in "[-+0-9.eEinumkKMGTP]{0,60}") {
            let _ = Quantity::parse(&text).map(|q| (q.to_string(), q.value(), q.milli_value(), q.add(&q), q.sub(&q)));
        }

        #[test]
        fn addition_commutes_and_orders(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            let (x, y) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!(x.add(&y), y.add(&x));
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.add(&y).sub(&y), x);
        }
    }
}
