//! The command line of `kontiki chaos`.

use clap::{Args, Subcommand};

use crate::Tools;
use crate::fault::table::{self, FAULTS, In};
use crate::plan::{Plan, builtin};
use crate::real::args::{BenchArgs, RealArgs};
use crate::real::verdict::Verdict;

/// `kontiki chaos`.
#[derive(Debug, Args)]
pub struct ChaosArgs {
    /// Which world.
    #[command(subcommand)]
    pub world: World,
}

/// The worlds in which a plan can run, and what goes with them.
#[derive(Debug, Subcommand)]
pub enum World {
    /// Break a cluster of real processes, started for the purpose
    ///
    /// Exit code 0: everything held. 1: something was violated. 2: the run could not be carried out, or a fault did not prove that it took
    /// effect. 3: too little happened for a pass to mean anything.
    Real(Box<RealArgs>),
    /// Break simulated clusters: one seed is one cluster, one schedule of faults and one history, the same every time
    ///
    /// Exit code 0: everything held. 1: something was violated; the first line says how to see it again. 2: it could not be run.
    Sim(Box<crate::sim::cli::SimArgs>),
    /// Run one seed of `sim` again, or a schedule from a file
    Replay(Box<crate::sim::cli::ReplayArgs>),
    /// One fault again and again: the table of what it costs
    Bench(BenchArgs),
    /// Judge a recorded run again
    ///
    /// Exit code 0: nothing was violated. 1: something was.
    Check(crate::check::cli::CheckArgs),
    /// Make the report of a recorded run again: a page, JSON, JUnit
    Report(crate::check::cli::ReportArgs),
    /// Plant known bugs one after the other, and count which of them the simulation finds
    ///
    /// Needs a build that contains them: cargo run --release --features mutants -- chaos score
    /// Exit code 0: all were caught. 1: some survived. 2: the score could not be taken.
    Score(crate::mutants::score::ScoreArgs),
    /// List faults, plans, checks and planted bugs
    List,
    /// Everything that is known of a fault: how it is done, how it heals, what proves it, what it needs
    Explain {
        /// Its name.
        #[arg(value_name = "FAULT")]
        fault: String,
    },
    /// Print the JSON schema of plan files
    Schema,
    /// Print a built-in plan as a file, to begin one's own with
    Plan {
        /// Its name.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// What can be broken on this machine, each thing tried live
    Doctor,
    /// Remove what runs that were killed have left on this machine
    Gc,
    /// Undoes what a harness that died has done
    #[command(hide = true)]
    Keeper {
        /// The run.
        id: String,
    },
    /// Undoes one thing on a cluster that is not ours
    #[command(hide = true)]
    Undo {
        /// `namespace` or `cordon`.
        what: String,
        /// The cluster's kubeconfig.
        kubeconfig: std::path::PathBuf,
        /// Which one.
        name: String,
    },
    /// Holds packets
    #[command(hide = true)]
    Delayer {
        /// Milliseconds for every packet.
        by: u64,
        /// Up to so many milliseconds more.
        jitter: u64,
        /// Milliseconds until it ends.
        hold: u64,
        /// Decides the jitter.
        seed: u64,
    },
}

/// Runs the command; the exit code.
pub async fn run(args: &ChaosArgs, tools: &Tools) -> u8 {
    match dispatch(args, tools).await {
        Ok(verdict) => verdict.code(),
        Err(e) => {
            eprintln!("error: {e:#}");
            Verdict::Invalid.code()
        }
    }
}

async fn dispatch(args: &ChaosArgs, tools: &Tools) -> anyhow::Result<Verdict> {
    let held = |yes: bool| if yes { Verdict::Pass } else { Verdict::Invalid };
    let kept = |yes: bool| if yes { Verdict::Pass } else { Verdict::Violation };
    match &args.world {
        World::Real(real) => return crate::real::run(real, tools).await,
        World::Sim(args) => return Ok(kept(tokio::task::block_in_place(|| crate::sim::cli::sim(args))?)),
        World::Replay(args) => return Ok(kept(tokio::task::block_in_place(|| crate::sim::cli::replay(args))?)),
        World::Bench(bench) => return crate::real::bench::run(bench, tools).await,
        World::Check(args) => return Ok(if crate::check::cli::check(args)? { Verdict::Pass } else { Verdict::Violation }),
        World::Report(args) => {
            crate::check::cli::report(args)?;
        }
        World::Score(args) => return Ok(if crate::mutants::arena::run(args)? { Verdict::Pass } else { Verdict::Violation }),
        World::List => list(),
        World::Explain { fault } => explain(fault)?,
        World::Schema => println!("{}", serde_json::to_string_pretty(&Plan::schema())?),
        World::Plan { name } => print!("{}", Plan::find(name)?.to_yaml()),
        World::Doctor => return Ok(held(crate::real::doctor::run().await?)),
        World::Gc => return Ok(held(crate::real::collect_garbage(false).await?)),
        World::Keeper { id } => {
            let id = id.clone();
            tokio::task::spawn_blocking(move || crate::real::keep(&id)).await?;
        }
        World::Undo { what, kubeconfig, name } => crate::real::undo(what, kubeconfig, name).await?,
        World::Delayer { by, jitter, hold, seed } => {
            let (by, jitter, hold, seed) = (*by, *jitter, *hold, *seed);
            tokio::task::spawn_blocking(move || crate::real::delay(by, jitter, hold, seed)).await??;
        }
    }
    Ok(Verdict::Pass)
}

fn list() {
    let mark = |yes: In, word: &'static str| if yes.yes() { word } else { "" };
    println!("faults (sim: simulated world, real: real processes)");
    for row in FAULTS {
        println!("  {:<16} {:<4} {:<5} {}", row.name, mark(row.sim, "sim"), mark(row.real, "real"), row.about);
    }
    println!("plans (each fault is one, too)");
    for name in builtin::names().into_iter().filter(|name| table::row(name).is_none()) {
        println!("  {name:<16} {}", builtin::about(name).unwrap_or_default());
    }
    crate::check::cli::list();
}

fn explain(fault: &str) -> anyhow::Result<()> {
    let names: Vec<&str> = FAULTS.iter().map(|row| row.name).collect();
    let Some(row) = table::row(fault) else { anyhow::bail!("there is no fault {fault:?}; there are: {}", names.join(", ")) };
    let world = |world: In| match world {
        In::Yes => "yes".to_owned(),
        In::No(why) => format!("no: {why}"),
    };
    println!("{}: {}", row.name, row.about);
    println!("  simulated world   {}", world(row.sim));
    println!("  real world        {}", world(row.real));
    for (what, text) in [("how it is done", row.how), ("how it heals", row.heals), ("what proves it", row.proof)] {
        if !text.is_empty() {
            println!("  {what:<17} {text}");
        }
    }
    let needs: Vec<&str> = row.needs.iter().map(|need| need.about()).collect();
    println!("  what it needs     {}", if needs.is_empty() { "nothing".to_owned() } else { needs.join("; ") });
    if let Some(plan) = builtin::plan(row.name) {
        println!("  the plan of its name, as a file:\n");
        plan.to_yaml().lines().for_each(|line| println!("    {line}"));
    }
    Ok(())
}
