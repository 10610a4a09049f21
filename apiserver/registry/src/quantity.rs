//! Kubernetes quantities: parsing, the canonical form, comparison.
