//! The laws of an engine, run on every implementation.
