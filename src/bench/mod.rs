//! `kontiki bench`: our store and any other etcd under the same load, in turns, on the same machine.
//!
//! | file | what it holds |
//! |---|---|
//! | `cells` | which workloads there are |
//! | `run` | one run of one cell |
//! | `callers` | what the clients do |
//! | `wire` | a client that costs little |
//! | `fleet` | members that are started for the purpose |
//! | `procs` | what processes use, from `/proc` |
//! | `history` | many puts over few keys, while history is compacted |
//! | `large` | a store beyond the memory it is allowed |
//! | `cage` | a limit on the memory of members |
//! | `restart` | memory, and the time from a restart to the first read |
//! | `stats`, `report` | figures |

mod cage;
mod callers;
mod cells;
mod fleet;
mod history;
mod large;
mod procs;
mod report;
mod restart;
mod run;
mod stats;
mod wire;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use cells::{Cell, QUICK, USUAL, Workload};
use fleet::{Kind, Target};
use report::Measured;
use run::{Options, Sample};

/// `kontiki bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What is measured
    #[command(subcommand)]
    bench: Bench,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
enum Bench {
    /// A store that speaks etcd v3, alone or against another
    ///
    /// Runs every cell in turns (ours, theirs, ours, theirs, …) and prints medians, ranges and ratios. What generates the load runs on
    /// the same machine: compare ratios, and look at `others`, the processors that somebody else used meanwhile. Processor time, memory
    /// and bytes written are those of all members, if they run on this machine.
    ///
    /// Against a real etcd, all on this machine: `kontiki bench etcd --start`. Stores that run already:
    /// `kontiki bench etcd --endpoints 127.0.0.1:2379 --vs 127.0.0.1:3379`. The benchmark writes keys under /registry/bench,
    /// /registry/range, /registry/pods/bench and /registry/watched: never point it at a store in use.
    #[command(after_help = cells::help())]
    Etcd(Box<EtcdArgs>),
    /// Many puts over few keys while old revisions go by themselves
    ///
    /// Starts a cluster of `kontiki store` in a temporary folder, puts until there were enough, and prints: what is on the disk
    /// against what can be read, before and after a last compaction; and latency in the windows in which compacted history was being
    /// removed against the others. The whole run takes 20 minutes and more: begin with `--puts 1000000 --retention 30s`.
    History(Box<history::HistoryArgs>),
    /// A store that is larger than the memory it is allowed
    ///
    /// Makes the data of a small and of a large store (each once, in order, without a log), starts each with a limit on its
    /// memory, page cache included, and prints how long it takes until the first read, and how fast random keys are read and
    /// written. Needs root for the limit, and room on the disk: 29 GB as it stands; begin with `--large 4000 --small 400 --memory 800`: a member needs 600 MB for its caches and buffers, whatever it holds.
    Large(Box<large::LargeArgs>),
}

/// `kontiki bench etcd`.
#[derive(Debug, Args)]
struct EtcdArgs {
    /// Members of the store that is measured: host:port,…
    #[arg(long, value_name = "LIST", value_delimiter = ',', required_unless_present = "start")]
    endpoints: Vec<SocketAddr>,

    /// Members of a store to compare with: host:port,…
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "endpoints")]
    vs: Vec<SocketAddr>,

    /// Start both: members of `kontiki store`, and of a real etcd, in temporary folders; they are ended with the benchmark
    #[arg(long, conflicts_with = "endpoints")]
    start: bool,

    /// With --start: start ours alone
    #[arg(long, requires = "start")]
    alone: bool,

    /// With --start: members of each
    #[arg(long, requires = "start", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    members: u8,

    /// With --start: the etcd to compare with; by default the one in PATH
    #[arg(long, requires = "start", value_name = "FILE")]
    etcd: Option<PathBuf>,

    /// With --start: another binary of ours to measure, instead of this one
    #[arg(long, requires = "start", value_name = "FILE")]
    kontiki: Option<PathBuf>,

    /// With --start: another binary of ours to compare with, instead of an etcd
    #[arg(long, requires = "start", conflicts_with = "etcd", value_name = "FILE")]
    vs_kontiki: Option<PathBuf>,

    /// With --start: where the temporary folders are made: the disk that is measured
    #[arg(long, requires = "start", value_name = "DIR")]
    dir: Option<PathBuf>,

    /// What to measure: WORKLOAD[:CALLERS[:VALUE_BYTES]],…
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    run: Vec<Cell>,

    /// Fewer cells, one run each
    #[arg(long)]
    quick: bool,

    /// Runs of each cell on each store
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,

    /// Seconds that are measured in a run
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = crate::cli::seconds)]
    duration: Duration,

    /// Seconds of load before that
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = crate::cli::seconds)]
    warmup: Duration,

    /// Connections that callers share
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,

    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,

    /// Talk to all members, not only to the leader
    #[arg(long)]
    spread: bool,

    /// Write all figures of all runs there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Print a Markdown table at the end
    #[arg(long)]
    markdown: bool,
}

/// Runs until everything is measured, or Ctrl-C.
pub(crate) async fn run(args: BenchArgs) -> Result<()> {
    tokio::select! {
        biased;
        () = crate::store::terminated() => bail!("ended early: what was printed so far counts, the members have been killed"),
        done = async {
            match args.bench {
                Bench::Etcd(args) => etcd(&args).await,
                Bench::History(args) => history::run(&args).await,
                Bench::Large(args) => large::run(&args).await,
            }
        } => done,
    }
}

/// How this program was built. The three profiles of the workspace differ in just this.
const BUILD: &str = if cfg!(debug_assertions) {
    "dev"
} else if cfg!(panic = "abort") {
    "dist"
} else {
    "release"
};

async fn etcd(args: &EtcdArgs) -> Result<()> {
    println!("kontiki {}, {BUILD} build\n", env!("CARGO_PKG_VERSION"));
    if BUILD != "dist" {
        eprintln!("what is shipped is faster: `make dist` builds it, in target/dist/kontiki\n");
    }
    let cells = cells_of(args)?;
    let mut targets = targets(args).await?;
    let mut measured = Vec::new();
    let done = measure(args, &cells, &mut targets, &mut measured).await;
    // What was measured is told in any case.
    let told = tell(args, &targets, &measured).await;
    for target in targets {
        target.stop().await?;
    }
    done.and(told)
}

fn cells_of(args: &EtcdArgs) -> Result<Vec<Cell>> {
    let usual = if args.quick { QUICK } else { USUAL };
    let cells = if args.run.is_empty() { usual.iter().filter_map(|text| text.parse().ok()).collect() } else { args.run.clone() };
    if !args.start && cells.iter().any(|cell| cell.workload == Workload::Restart) {
        bail!("restart needs --start: the benchmark does not restart what it has not started");
    }
    Ok(cells)
}

async fn targets(args: &EtcdArgs) -> Result<Vec<Target>> {
    if !args.start {
        let vs = (!args.vs.is_empty()).then(|| Target::running("theirs", args.vs.clone()));
        return Ok(std::iter::once(Target::running("ours", args.endpoints.clone())).chain(vs).collect());
    }
    let other = match &args.vs_kontiki {
        _ if args.alone => None,
        Some(binary) => Some((Kind::Kontiki, binary.clone())),
        None => Some((Kind::Etcd, fleet::find_etcd(args.etcd.as_deref())?)),
    };
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let ours = args.kontiki.clone().map_or_else(std::env::current_exe, Ok).context("this program does not know its own file")?;
    let mut targets = vec![Target::start(Kind::Kontiki, ours, args.members, &dir).await?];
    if let Some((kind, binary)) = other {
        let mut other = Target::start(kind, binary, args.members, &dir).await?;
        if kind == Kind::Kontiki {
            "before".clone_into(&mut other.name);
        }
        targets.push(other);
    }
    Ok(targets)
}

/// Says what is going on, where somebody looks.
fn progress(steps: usize) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(steps as u64) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} {msg}");
    style.map_or_else(|_| ProgressBar::hidden(), |style| bar.with_style(style))
}

async fn measure(args: &EtcdArgs, cells: &[Cell], targets: &mut [Target], measured: &mut Vec<Measured>) -> Result<()> {
    let repeat = args.repeat.unwrap_or(if args.quick { 1 } else { 3 });
    let options =
        Options { warmup: args.warmup, duration: args.duration, connections: args.connections, keys: args.keys, spread: args.spread };
    let bar = progress(cells.len() * repeat as usize * targets.len());
    for cell in cells {
        if cell.workload == Workload::Restart {
            for target in &mut *targets {
                bar.set_message(format!("{cell} on {}", target.name));
                let report = restart::run(target, &options, *cell).await?;
                bar.suspend(|| println!("{report}"));
            }
            continue;
        }
        let mut runs: Vec<(String, Vec<Sample>)> = targets.iter().map(|target| (target.name.clone(), Vec::new())).collect();
        for target in &*targets {
            bar.set_message(format!("{cell}: preparing {}", target.name));
            run::prepare(target, &options, *cell).await?;
        }
        for _ in 0..repeat {
            for (target, (_, samples)) in targets.iter().zip(&mut runs) {
                bar.set_message(format!("{cell} on {}", target.name));
                let sample = run::run(target, &options, *cell).await?;
                if sample.refused > 0 {
                    let why = fleet::explain(target.leader().await?.0).await;
                    bar.suspend(|| eprintln!("{cell} on {}: {} calls were refused: {why}", target.name, sample.refused));
                }
                samples.push(sample);
                bar.inc(1);
            }
        }
        let one = Measured { cell: *cell, runs };
        bar.suspend(|| println!("{}", one.text()));
        measured.push(one);
    }
    bar.finish_and_clear();
    Ok(())
}

async fn tell(args: &EtcdArgs, targets: &[Target], measured: &[Measured]) -> Result<()> {
    if args.markdown {
        println!("{}", report::markdown(measured));
    }
    let Some(file) = &args.json else { return Ok(()) };
    let mut stores = Vec::new();
    for target in targets {
        let version = target.leader().await.map(|(_, version)| version).unwrap_or_default();
        stores.push(json!({ "name": target.name, "version": version, "members": target.endpoints.len() }));
    }
    let about = json!({
        "stores": stores,
        "build": BUILD,
        "seconds": args.duration.as_secs_f64(),
        "connections": args.connections,
        "keys": args.keys,
        "to": if args.spread { "all members" } else { "the leader" },
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
    });
    write_json(file, &report::json(&about, measured))
}

fn write_json(file: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("figures are JSON")?;
    std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}
