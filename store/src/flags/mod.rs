//! etcd's flags: what `kontiki store` takes, whatever it is started by.
//!
//! | file | what |
//! |---|---|
//! | [`table`] | every flag: name, default, what it does here, or why it does nothing |
//! | [`given`] | values from the command line, `ETCD_…` variables, a YAML file |
//! | [`value`] | durations, lists of members, addresses |
//! | [`apply`] | the values as a [`StoreConfig`](crate::config::StoreConfig) |

pub mod apply;
pub mod given;
pub mod table;
pub mod value;

pub use apply::{Applied, apply};
pub use given::{Given, Source};
pub use table::{Effect, FLAGS, Flag, Kind, flag};

/// Why flags cannot be used. Every text says which flag, and what would do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No such flag.
    #[error("unknown flag --{name} ({from}); `kontiki store --help` lists them all")]
    Unknown {
        /// As it was written.
        name: String,
        /// Where it stood.
        from: Source,
    },
    /// A value that its flag cannot have.
    #[error("--{name}={value:?} ({from}): {why}")]
    Value {
        /// Which flag.
        name: String,
        /// What was given.
        value: String,
        /// Where.
        from: Source,
        /// What is wrong with it, and what would do.
        why: String,
    },
    /// The flag asks for something that is not built, and that nobody may believe to be there.
    #[error("--{name}={value} ({from}) cannot be honoured: {why}")]
    NotBuilt {
        /// Which flag.
        name: String,
        /// What was given.
        value: String,
        /// Where.
        from: Source,
        /// What is missing.
        why: &'static str,
    },
    /// The file does not open, or is not a flat list of flags.
    #[error("--config-file {path}: {why}")]
    File {
        /// Which.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Flags that contradict each other.
    #[error("{0}")]
    Contradiction(String),
}
