//! Lengths of time as people write them: `250ms`, `4s`, `1m30s`, and ranges of them: `4s..9s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::dice::Dice;

/// A length of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A length of time that is drawn when it is needed: evenly between two bounds, both possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

/// Units, longest first.
const UNITS: &[(&str, u64)] = &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time: write numbers with units, as 250ms, 4s or 1m30s{1}")]
pub struct BadSpan(String, &'static str);

impl Span {
    /// This many seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// This many milliseconds.
    pub const fn millis(ms: u64) -> Self {
        Self(Duration::from_millis(ms))
    }
}

impl Spread {
    /// Always this long.
    pub const fn just(length: Duration) -> Self {
        Self { min: length, max: length }
    }

    /// This many seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self::just(Duration::from_secs(seconds))
    }

    /// A length between the bounds.
    pub fn draw(self, dice: &mut Dice) -> Duration {
        dice.between(self.min, self.max)
    }
}

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let bad = || BadSpan(text.to_owned(), "");
        let mut rest = text.trim();
        let mut total = 0_u64;
        let mut smallest = u64::MAX;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let unit = UNITS.iter().find(|(name, _)| *name == &rest[..letters]).ok_or_else(bad)?.1;
            // Descending units only: `5s1m` is a slip, not a length.
            if unit >= smallest {
                return Err(bad());
            }
            smallest = unit;
            total = number.checked_mul(unit).and_then(|ms| total.checked_add(ms)).ok_or_else(bad)?;
            rest = &rest[letters..];
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl FromStr for Spread {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let Some((min, max)) = text.split_once("..") else { return Ok(Self::just(text.parse::<Span>()?.0)) };
        let (min, max) = (min.parse::<Span>()?.0, max.parse::<Span>()?.0);
        if min > max {
            return Err(BadSpan(text.to_owned(), "; a range goes from the shorter to the longer"));
        }
        Ok(Self { min, max })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if left == 0 {
            return f.write_str("0s");
        }
        for (name, unit) in UNITS {
            if left >= *unit {
                write!(f, "{}{name}", left / unit)?;
                left %= unit;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            return Span(self.min).fmt(f);
        }
        write!(f, "{}..{}", Span(self.min), Span(self.max))
    }
}

macro_rules! as_text {
    ($type:ty, $name:literal, $pattern:literal, $about:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $about })
            }
        }
    };
}

as_text!(Span, "Span", r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$", "A length of time: 250ms, 4s, 1m30s.");
as_text!(
    Spread,
    "Spread",
    r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?(\.\.(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)?$",
    "A length of time, or a range from which it is drawn: 4s, 4s..9s."
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written() {
        for (text, ms) in [("250ms", 250), ("4s", 4_000), ("1m30s", 90_000), ("2h", 7_200_000), ("1s500ms", 1_500)] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0.as_millis(), span.to_string()), (ms, text.to_owned()));
        }
        for bad in ["", "4", "s", "4x", "-1s", "5s1m", "1s1s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(Span::default().to_string(), "0s");
    }

    #[test]
    fn ranges_are_drawn_from_within() {
        let spread: Spread = "4s..9s".parse().unwrap();
        let mut dice = Dice::new(3, "test");
        for _ in 0..1_000 {
            let length = spread.draw(&mut dice);
            assert!((Duration::from_secs(4)..=Duration::from_secs(9)).contains(&length));
        }
        assert_eq!(spread.to_string(), "4s..9s");
        assert!("9s..4s".parse::<Spread>().unwrap_err().to_string().contains("shorter"));
    }
}
