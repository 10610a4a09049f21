//! Helpers for tests that see the project from outside.
