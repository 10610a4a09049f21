//! The laws of a runtime.
