//! The registry seen from outside: answers of a live kube-apiserver and vectors made with its libraries, and a walk over every row.

// Helpers of tests may stop where they stand, as tests do.
#![allow(clippy::unwrap_used)]

mod fuzz;
mod golden;
mod replay;
mod rows;
