//! The registry seen from outside: answers of a live kube-apiserver and vectors made with its libraries, and a walk over every row.

mod golden;
mod replay;
mod rows;
