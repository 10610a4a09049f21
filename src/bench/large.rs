//! A store that is larger than the memory it is allowed: how long it takes to start, and how fast it reads and writes, against a small one in
//! the same cage.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use kontiki_base::env::Env as _;
use kontiki_proto::env::SystemEnv;
use kontiki_store::raft::node::InitialMember;
use kontiki_store::snapshot::Progress;
use kontiki_store::snapshot::generate::generate;
use tokio::time::Instant;

use super::cage::Cage;
use super::callers::Data;
use super::cells::{Cell, Workload};
use super::fleet::{self, Kind, Special, Target};
use super::history::size_of;
use super::procs::Usage;
use super::run::{self, KEYS, Options, Sample};
use super::stats::Dice;

/// A disk must have so much more room than the data: the log, and what compaction writes before it removes.
const SPARE: u64 = 4 << 30;

/// What is measured, and what it is called.
const LOADS: &[(&str, Workload)] = &[("reads of random keys", Workload::GetAny), ("puts at random keys", Workload::Put)];

/// `kontiki bench large`.
#[derive(Debug, Args)]
pub(super) struct LargeArgs {
    /// Data of the large store, in megabytes (10^6 bytes)
    #[arg(long, value_name = "MB", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    large: u64,

    /// Data of the small store, in megabytes
    #[arg(long, value_name = "MB", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    small: u64,

    /// What each member may have of memory, page cache included, in megabytes; 0 for all there is
    #[arg(long, value_name = "MB", default_value_t = 1_000)]
    memory: u64,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    value: u64,

    /// Callers
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    callers: u32,

    /// Connections that callers share
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,

    /// Seconds that are measured of each load
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = crate::cli::seconds)]
    duration: Duration,

    /// Seconds of load before that
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = crate::cli::seconds)]
    warmup: Duration,

    /// Where the temporary folders are made: the disk that is measured
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What one store has shown.
struct Shown {
    megabytes: u64,
    keys: u64,
    made: Duration,
    disk: u64,
    start: Duration,
    again: Duration,
    loads: Vec<Sample>,
    resident: u64,
}

/// Runs it.
///
/// # Errors
/// No room on the disk, no right to limit memory, a store that does not start or refuses.
pub(super) async fn run(args: &LargeArgs) -> Result<()> {
    let under = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    room(&under, args.large.max(args.small) * 1_000_000)?;
    let mut both = Vec::new();
    for megabytes in [args.small, args.large] {
        let shown = one(args, &under, megabytes).await?;
        println!("{shown}");
        both.push(shown);
    }
    for (place, (what, _)) in LOADS.iter().enumerate() {
        let [small, large] = &both[..] else { bail!("two stores were measured") };
        println!("{what}, large / small: {:.2}", per_second(&large.loads[place]) / per_second(&small.loads[place]));
    }
    Ok(())
}

/// Whether so many bytes fit on a disk, with what else a store needs.
fn room(under: &Path, bytes: u64) -> Result<()> {
    let disk = nix::sys::statvfs::statvfs(under).with_context(|| format!("cannot look at {}", under.display()))?;
    let free = disk.blocks_available() * disk.fragment_size();
    let needed = bytes + bytes / 4 + SPARE;
    if free < needed {
        bail!(
            "{} has {} MB of room, and {} MB are needed: name another with --dir, or take less with --large",
            under.display(),
            free / 1_000_000,
            needed / 1_000_000
        );
    }
    Ok(())
}

/// Makes a store, starts it, measures it, and removes it.
async fn one(args: &LargeArgs, under: &Path, megabytes: u64) -> Result<Shown> {
    let cage = if args.memory == 0 { None } else { Some(Cage::new(args.memory * 1_000_000)?) };
    let special = Special { args: vec!["--quota-backend-bytes=-1".into()], cage };
    let binary = std::env::current_exe().context("this program does not know its own file")?;
    let mut target = Target::prepared(Kind::Kontiki, binary, 1, under, special)?;
    let shown = measure(args, &mut target, megabytes).await;
    target.stop().await?;
    shown
}

async fn measure(args: &LargeArgs, target: &mut Target, megabytes: u64) -> Result<Shown> {
    let (began, keys) = (Instant::now(), fill(args, target, megabytes).await?);
    let made = began.elapsed();
    let start = target.begin().await?;
    let disk = size_of(&target.folder());
    let options = Options { warmup: args.warmup, duration: args.duration, connections: args.connections, keys, spread: false };
    let value = usize::try_from(args.value)?;
    let mut loads = Vec::new();
    for (what, workload) in LOADS {
        eprintln!("{megabytes} MB: {what}");
        let sample = run::run(target, &options, Cell { workload: *workload, callers: args.callers, value }).await?;
        if sample.refused > 0 {
            bail!("{what}: {} were refused: {}", sample.refused, fleet::explain(target.leader().await?.0).await);
        }
        loads.push(sample);
    }
    let resident = Usage::of(&target.pids()).resident;
    let again = target.restart().await?;
    Ok(Shown { megabytes, keys, made, disk, start, again, loads, resident })
}

/// Makes the data of the one member; how many keys there are.
async fn fill(args: &LargeArgs, target: &Target, megabytes: u64) -> Result<u64> {
    let (home, url) = target.home(0).context("the member has a folder")?;
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    // Where `kontiki store` keeps its member.
    let dir = home.join("store");
    let member = InitialMember { name: "m0".into(), peer_urls: vec![url], client_urls: Vec::new() };
    let data = Data::new(KEYS, 0, usize::try_from(args.value)?);
    let keys = megabytes * 1_000_000 / (args.value + data.key(0).len() as u64);
    let mut dice = Dice(7);
    let mut all = (0..keys).map(move |number| -> (Bytes, Bytes) { (data.key(number), data.value(&mut dice)) });
    let bar = super::progress(usize::try_from(megabytes)?);
    let show = |progress: Progress| {
        bar.set_message(format!("{megabytes} MB: {}", progress.what));
        bar.set_position(progress.done / 1_000_000);
    };
    eprintln!("{megabytes} MB: making {keys} keys");
    let random = SystemEnv::new().random_u64();
    // The token that members have who are told none.
    let made = generate(&dir, &member, TOKEN, random, &mut all, &show).await.context("making the data")?;
    bar.finish_and_clear();
    Ok(made)
}

/// The cluster's token unless flags say otherwise.
const TOKEN: &str = "etcd-cluster";

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn per_second(sample: &Sample) -> f64 {
    sample.done as f64 / sample.seconds
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes / 1_000_000;
        write!(
            f,
            "{} MB in {} keys, made in {:.0} s, {} MB on disk: first read {:.2} s after the start, {:.2} s after a restart under load; {} MB resident",
            self.megabytes,
            self.keys,
            self.made.as_secs_f64(),
            mb(self.disk),
            self.start.as_secs_f64(),
            self.again.as_secs_f64(),
            mb(self.resident),
        )?;
        for ((what, _), sample) in LOADS.iter().zip(&self.loads) {
            #[allow(clippy::cast_precision_loss, reason = "figures for people")]
            let ms = |nanos: u64| nanos as f64 / 1e6;
            write!(f, "\n  {what}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms", per_second(sample), ms(sample.p50), ms(sample.p99))?;
        }
        Ok(())
    }
}
