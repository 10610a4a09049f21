//! Seeds of chaos.
