//! Rules of the kind.
use super::{PLAIN, Rules};
/// The rules.
pub const RULES: Rules = PLAIN;
