//! Label and field selectors.
use crate::row::Row;
use crate::status::Status;
use serde_json::Value;

/// A label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector;
impl LabelSelector {
    /// Reads `a=b,c in (d,e)`. The empty text selects everything.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let _ = text;
        Ok(Self)
    }
    /// Reads a LabelSelector object. `Null` selects nothing.
    pub fn from_object(v: &Value) -> Result<Self, Status> {
        let _ = v;
        Ok(Self)
    }
    /// Whether an object's labels match.
    pub fn matches(&self, obj: &Value) -> bool {
        let _ = obj;
        true
    }
    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        true
    }
}
/// A field selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector;
impl FieldSelector {
    /// Reads `a=b,c!=d`. The empty text selects everything.
    pub fn parse(row: &Row, text: &str) -> Result<Self, Status> {
        let _ = (row, text);
        Ok(Self)
    }
    /// Whether an object matches.
    pub fn matches(&self, row: &Row, obj: &Value) -> bool {
        let _ = (row, obj);
        true
    }
    /// The name it pins, if it pins one.
    pub fn pinned_name(&self) -> Option<&str> {
        None
    }
    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        true
    }
}
