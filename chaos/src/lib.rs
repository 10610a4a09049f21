//! Break it, and prove what held.
//!
//! One **history** is recorded by the clients of a run; one set of **checkers** judges it. The checkers share no code with the state
//! machine that they judge: a model that imports what it checks agrees with its bugs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | the command line of `kontiki chaos` |
//! | [`history`] | what clients saw, operation by operation |
//! | [`check`] | what must hold: of the store, and of the control plane |
//! | [`load`] | clients that record |
//! | [`sim`] | the real store in a world that is simulated from a seed |
//! | [`real`] | the real binary as processes, and faults on them |
//! | [`plan`] | what runs, what breaks when and where, and what must hold: from a file, a table or a seed |
//! | [`fault`] | the vocabulary of faults, and the table of what is known of each |
//! | [`measure`] | what each fault cost |
//! | [`mutants`] | planted bugs, and the score of the harness that must find them |
//! | [`report`] | what a run is told as: a page, JSON, JUnit |
//!
//! The simulated world is of the store alone, and its schedules come from seeds and files of its own.

pub mod check;
pub mod cli;
pub mod fault;
pub mod history;
pub mod load;
pub mod measure;
pub mod mutants;
pub mod plan;
pub mod real;
pub mod report;
pub mod sim;

use std::path::{Path, PathBuf};

/// Makes a certificate in a folder, and the authority if there is none yet: `(folder, name of the files, user, group, names and addresses)`.
/// Gives the paths of certificate and key; the authority's certificate is `ca.crt` in the same folder.
pub type Certify = fn(&Path, &str, &str, &str, &[String]) -> anyhow::Result<(PathBuf, PathBuf)>;

/// What the program hands to the harness.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Makes certificates.
    pub certify: Certify,
    /// What is running: version, and commit if it is known.
    pub version: &'static str,
    /// What servers and nodes run instead of this very program.
    pub program: Option<PathBuf>,
}
