//! The flags of the commands of the real world.

use std::path::PathBuf;

use clap::Args;

use crate::plan::Span;

/// `kontiki chaos real`.
#[derive(Clone, Debug, Args)]
pub struct RealArgs {
    /// What happens: a built-in plan (`kontiki chaos list`), or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "leader-kill")]
    pub plan: String,

    /// How long faults are injected, instead of what the plan says: 60s, 10m
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Span>,

    /// Pause from one fault to the next, instead of what the plan says
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub every: Option<Span>,

    /// Clients of the store, instead of what the plan says
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub clients: Option<u16>,

    /// Decides what the plan leaves open, instead of what the plan says
    #[arg(long)]
    pub seed: Option<u64>,

    /// Write history and measurements into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Keep the cluster's data folder, for a look at its logs
    #[arg(long)]
    pub keep: bool,

    /// Servers and nodes run this build of kontiki instead of the one that runs the harness
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,

    /// Run against the cluster of this kubeconfig instead of one of our own; faults are those of --allow
    #[arg(long, value_name = "KUBECONFIG")]
    pub target: Option<PathBuf>,

    /// With --target: what may be done to it. Everything lapses by itself
    #[arg(long, value_enum, value_delimiter = ',', requires = "target")]
    pub allow: Vec<Allow>,
}

/// What an operator allows on a running cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Allow {
    /// Delete pods of our own Deployment
    DeletePods,
    /// Cordon a node for a while, and evict our own pods from it
    Drain,
    /// Stop the agents of nodes that run on this machine, for a while (SIGSTOP)
    StopAgents,
}

/// `kontiki chaos bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Which fault (`kontiki chaos list`), or a built-in plan
    #[arg(long, value_name = "NAME", default_value = "crash")]
    pub fault: String,

    /// How often
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub n: u32,

    /// Clients of the store
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub clients: u16,

    /// Decides what the plan leaves open
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Servers and nodes run this build of kontiki instead of the one that runs the harness
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,

    /// Write the table as JSON, every sample included, into this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// A length of time; a bare number is seconds.
fn time(text: &str) -> Result<Span, String> {
    let whole = if text.chars().all(|c| c.is_ascii_digit()) { format!("{text}s") } else { text.to_owned() };
    let span: Span = whole.parse().map_err(|e: crate::plan::BadSpan| e.to_string())?;
    if span.0.is_zero() { Err("more than 0".into()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_lengths_or_seconds() {
        assert_eq!(time("60"), Ok(Span::secs(60)));
        assert_eq!(time("10m"), Ok(Span::secs(600)));
        assert!(time("0").is_err() && time("x").is_err() && time("").is_err());
    }
}
