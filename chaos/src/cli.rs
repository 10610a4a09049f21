//! The command line of `kontiki chaos`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// `kontiki chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Which world.
    #[command(subcommand)]
    pub world: World,
}

/// The worlds in which a plan can run.
#[derive(Debug, Subcommand)]
pub enum World {
    /// Break a cluster of real processes, started for the purpose
    ///
    /// Exit code 0: everything held. 1: something was violated, or the run proved nothing.
    Real(RealArgs),
    /// List the plans and the checks
    List,
}

/// What happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Plan {
    /// kill -9 the leader every few seconds; it is started again at once
    LeaderKill,
    /// Nothing at all: the numbers to compare with
    Calm,
}

impl Plan {
    /// What the plan does, for `chaos list`.
    pub const fn about(self) -> &'static str {
        match self {
            Self::LeaderKill => "kill -9 the process that leads, every --every seconds; it is started again at once",
            Self::Calm => "no fault: the numbers to compare with",
        }
    }
}

/// `kontiki chaos real`.
#[derive(Debug, Args)]
pub struct RealArgs {
    /// What happens
    #[arg(long, value_enum, default_value_t = Plan::LeaderKill)]
    pub plan: Plan,

    /// How long faults are injected
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub duration: Duration,

    /// Time between two faults
    #[arg(long, value_name = "SECONDS", default_value = "6", value_parser = seconds)]
    pub every: Duration,

    /// Clients of the store, spread over the members; one whose member fails goes to the next
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub clients: u16,

    /// Decides what clients do; faults come by the clock
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Write the recorded history here, an operation a line (JSON)
    #[arg(long, value_name = "FILE")]
    pub history: Option<PathBuf>,

    /// Keep the cluster's data folder, for a look at its logs
    #[arg(long)]
    pub keep: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    match number.parse::<u64>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n)),
        _ => Err(format!("{text:?} is not a positive number of seconds")),
    }
}

/// Runs the command. `true`: everything held.
///
/// # Errors
/// The run could not be carried out: nothing was proved.
pub async fn run(args: &ChaosArgs) -> anyhow::Result<bool> {
    match &args.world {
        World::Real(real) => crate::real::run(real).await,
        World::List => {
            list();
            Ok(true)
        }
    }
}

fn list() {
    println!("plans");
    for plan in Plan::value_variants() {
        let name = plan.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
        println!("  {name:<14} {}", plan.about());
    }
    println!("checks");
    for check in crate::check::Violation::CHECKS {
        println!("  {:<22} {}", check.0, check.1);
    }
}
