//! What must hold of objects: syntax of names and metadata, and the rules of single kinds.

pub mod meta;
pub mod names;
pub mod pod;
