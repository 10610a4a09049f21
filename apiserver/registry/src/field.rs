//! Errors of single fields and their text, to the letter of Kubernetes' `field.Error` (apimachinery `pkg/util/validation/field`).

use std::fmt;

use serde_json::Value;

use crate::val::{go_json, go_quote};

/// Where in an object: `spec.containers[0].name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The object itself; prints as `<nil>`.
    pub fn root() -> Self {
        Self::default()
    }

    /// A path given as text.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// A field below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.into()) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// An element of this list.
    #[must_use]
    pub fn index(&self, i: usize) -> Self {
        Self(format!("{}[{i}]", self.0))
    }

    /// An entry of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It names something that does not exist.
    NotFound,
    /// It is missing.
    Required,
    /// It is there twice.
    Duplicate,
    /// It breaks a rule.
    Invalid,
    /// It is of another type.
    TypeInvalid,
    /// It is none of the values that are allowed.
    NotSupported,
    /// It may not be set or changed.
    Forbidden,
    /// It is too long.
    TooLong,
    /// It is too short.
    TooShort,
    /// It has too many elements.
    TooMany,
    /// It has too few elements.
    TooFew,
    /// The check itself failed.
    Internal,
}

impl Reason {
    /// The `reason` of a cause.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooShort => "FieldValueTooShort",
            Self::TooMany => "FieldValueTooMany",
            Self::TooFew => "FieldValueTooFew",
            Self::Internal => "InternalError",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooShort => "Too short",
            Self::TooMany => "Too many",
            Self::TooFew => "Too few",
            Self::Internal => "Internal error",
        }
    }

    const fn prints_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::TooShort | Self::Internal)
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// What.
    pub reason: Reason,
    /// Where.
    pub path: Path,
    /// The value as it is; `Null` where the text does not show it.
    pub value: Value,
    /// The rest of the text; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The text after the path: what a cause carries.
    pub fn body(&self) -> String {
        let mut out = String::from(self.reason.label());
        if self.reason.prints_value() {
            out.push_str(": ");
            match &self.value {
                Value::String(s) => out.push_str(&go_quote(s)),
                other => out.push_str(&go_json(other)),
            }
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// What is wrong with an object, in the order in which it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    /// Adds an error.
    pub fn push(&mut self, reason: Reason, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError { reason, path: path.clone(), value: value.into(), detail: detail.into() });
    }

    /// A field is missing.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.push(Reason::Required, path, Value::Null, detail);
    }

    /// A field breaks a rule.
    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(Reason::Invalid, path, value, detail);
    }

    /// A field may not be set or changed.
    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(Reason::Forbidden, path, Value::Null, detail);
    }

    /// An element is there twice.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(Reason::Duplicate, path, value, "");
    }

    /// A field is none of the values that are allowed.
    pub fn unsupported(&mut self, path: &Path, value: impl Into<Value>, allowed: &[&str]) {
        let allowed: Vec<String> = allowed.iter().map(|a| go_quote(a)).collect();
        self.push(Reason::NotSupported, path, value, format!("supported values: {}", allowed.join(", ")));
    }

    /// A field names something that does not exist.
    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(Reason::NotFound, path, value, "");
    }

    /// A field has more bytes than allowed.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        self.push(Reason::TooLong, path, Value::Null, format!("may not be more than {max} bytes"));
    }

    /// Checks that a field did not change.
    pub fn immutable(&mut self, path: &Path, new: &Value, old: &Value) {
        if !crate::val::same(new, old) {
            self.invalid(path, new.clone(), "field is immutable");
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_follows_the_reason() {
        let p = Path::new("spec").child("containers").index(0).child("image");
        let mut e = Errors::default();
        e.required(&p, "");
        e.invalid(&p, "C!", "bad");
        e.invalid(&Path::root(), json!({"a": 1}), "no");
        e.unsupported(&Path::new("t"), "x", &["A", "B"]);
        e.duplicate(&Path::new("data").key("k"), "x");
        e.too_long(&p, 3);
        e.push(Reason::TooMany, &p, 5, "must have at most 3 items");
        let text: Vec<String> = e.0.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "spec.containers[0].image: Required value",
                "spec.containers[0].image: Invalid value: \"C!\": bad",
                "<nil>: Invalid value: {\"a\":1}: no",
                "t: Unsupported value: \"x\": supported values: \"A\", \"B\"",
                "data[k]: Duplicate value: \"x\"",
                "spec.containers[0].image: Too long: may not be more than 3 bytes",
                "spec.containers[0].image: Too many: 5: must have at most 3 items",
            ]
        );
    }
}
