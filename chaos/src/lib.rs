//! Break it, and prove what held.
//!
//! One **history** is recorded by the clients of a run; one set of **checkers** judges it. The checkers share no code with the state
//! machine that they judge: a model that imports what it checks agrees with its bugs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line of `kontiki chaos` |
//! | [`history`] | what clients saw, operation by operation |
//! | [`check`] | linearizability by certificate, lost writes |
//! | [`load`] | clients that record |
//! | [`real`] | the real binary as processes, and faults on them |
//! | [`plan`] | what runs, what breaks when and where, and what must hold: from a file, a table or a seed |
//! | [`fault`] | the vocabulary of faults, and the table of what is known of each |
//! | [`report`] | the table and the verdict |
//!
//! What stands: the plan `leader-kill` on real processes. The simulated world, the other faults and the score of planted bugs do not
//! exist yet.

pub mod check;
pub mod cli;
pub mod fault;
pub mod history;
pub mod load;
pub mod plan;
pub mod real;
pub mod report;
