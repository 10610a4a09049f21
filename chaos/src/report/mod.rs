//! What a run is told as, for everybody who was not there: a page that needs nothing but itself, JSON, JUnit.

pub mod data;
pub mod files;
