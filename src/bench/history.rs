//! Many puts over few keys while old revisions go by themselves: what that takes on the disk, and what compaction does to latency.
//!
//! The run is cut into windows. A window counts as "during compaction" if removed history was being taken from the disk at its beginning or its
//! end, or the compact revision moved in it. Versions that must be kept are known from the revisions alone: the puts since the compact revision, and
//! one version of each key.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kontiki_proto::etcd::etcdserverpb as pb;
use pb::kv_client::KvClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};

use super::cells::{Cell, Workload};
use super::fleet::{self, Kind, Special, Target};
use super::run::{self, KEYS, Options, Sample};
use super::stats::Spread;

/// At the end everything but the newest version of each key goes; its space may take so long to return.
const RETURN: Duration = Duration::from_secs(120);

/// Bytes of a key that the load writes: its prefix and twenty digits.
const KEY: u64 = KEYS.len() as u64 + 20;

/// `kontiki bench history`.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Puts in all
    #[arg(long, value_name = "N", default_value_t = 24_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    puts: u64,

    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,

    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value: usize,

    /// How long revisions are kept, as --auto-compaction-retention has it
    #[arg(long, value_name = "TIME", default_value = "5m")]
    retention: String,

    /// Callers
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    callers: u32,

    /// Connections that callers share
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,

    /// Members of the cluster that is started
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    members: u8,

    /// Seconds of a window
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = crate::cli::seconds)]
    window: Duration,

    /// Where the temporary folder is made: the disk that is measured
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What a store says of its history at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    revision: u64,
    compact: u64,
    /// Removed up to here: behind `compact` while that goes on.
    swept: u64,
    /// Bytes of the whole folder.
    disk: u64,
    /// Bytes of the state, as the store says.
    db: u64,
}

impl State {
    async fn of(target: &Target) -> Result<Self> {
        let (endpoint, _) = target.leader().await?;
        let text = metrics(endpoint).await?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            // A revision below 0 stands for "never".
            line.and_then(|value| value.parse::<f64>().ok()).map_or(0, floor)
        };
        Ok(Self {
            revision: number("etcd_debugging_mvcc_current_revision"),
            compact: number("etcd_debugging_mvcc_compact_revision"),
            swept: number("kontiki_store_swept_revision"),
            disk: size_of(&target.folder()),
            db: number("etcd_mvcc_db_total_size_in_bytes"),
        })
    }

    /// Bytes of what can be read: the versions since the compact revision, and one of each key before.
    const fn needed(&self, keys: u64, value: u64) -> u64 {
        (self.revision.saturating_sub(self.compact) + keys) * (KEY + value)
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count below 2^53, or a negative number that counts as none")]
fn floor(value: f64) -> u64 {
    value.max(0.0) as u64
}

/// The metrics page of a member.
async fn metrics(endpoint: SocketAddr) -> Result<String> {
    let mut stream = tokio::net::TcpStream::connect(endpoint).await?;
    stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {endpoint}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    if !text.starts_with("HTTP/1.1 200") {
        bail!("{endpoint} has no metrics: {}", text.lines().next().unwrap_or_default());
    }
    Ok(text)
}

/// Bytes that a folder takes on its disk, with all that is in it. Files that go meanwhile count nothing.
pub(super) fn size_of(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().map_or(0, |meta| if meta.is_dir() { size_of(&entry.path()) } else { meta.blocks() * 512 })).sum()
}

/// A piece of the run.
#[derive(Clone, Copy, Debug)]
struct Window {
    sample: Sample,
    compacting: bool,
    disk: u64,
}

/// What the run has shown.
struct Report {
    windows: Vec<Window>,
    puts: u64,
    took: Duration,
    end: State,
    needed: u64,
    /// After everything but the newest versions was compacted, and how long that took.
    last: State,
    last_needed: u64,
    returned: Duration,
}

/// Runs it.
///
/// # Errors
/// A store that does not start, cannot be reached, or refuses writes.
pub(super) async fn run(args: &HistoryArgs) -> Result<()> {
    let special = Special {
        args: vec![
            "--auto-compaction-mode=periodic".into(),
            format!("--auto-compaction-retention={}", args.retention),
            "--quota-backend-bytes=-1".into(),
        ],
        cage: None,
    };
    let binary = std::env::current_exe().context("this program does not know its own file")?;
    let under = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut target = Target::prepared(Kind::Kontiki, binary, args.members, &under, special)?;
    target.begin().await?;
    let told = measure(args, &target).await;
    target.stop().await?;
    println!("{}", told?);
    Ok(())
}

async fn measure(args: &HistoryArgs, target: &Target) -> Result<Report> {
    let options = Options { warmup: Duration::ZERO, duration: args.window, connections: args.connections, keys: args.keys, spread: false };
    let cell = Cell { workload: Workload::Put, callers: args.callers, value: args.value };
    let bar = super::progress(usize::try_from(args.puts).unwrap_or(usize::MAX));
    let (began, mut windows, mut puts) = (Instant::now(), Vec::new(), 0);
    let mut before = State::of(target).await?;
    while puts < args.puts {
        let sample = run::run(target, &options, cell).await?;
        if sample.refused > 0 {
            bail!("{} puts were refused: {}", sample.refused, fleet::explain(target.leader().await?.0).await);
        }
        let after = State::of(target).await?;
        let compacting = before.swept < before.compact || after.swept < after.compact || before.compact != after.compact;
        windows.push(Window { sample, compacting, disk: after.disk });
        puts += sample.done;
        bar.set_position(puts.min(args.puts));
        bar.set_message(line(&sample, &after, compacting));
        if bar.is_hidden() && windows.len().is_multiple_of(12) {
            eprintln!("{:.0} s, {puts} puts: {}", began.elapsed().as_secs_f64(), line(&sample, &after, compacting));
        }
        before = after;
    }
    bar.finish_and_clear();
    let took = began.elapsed();
    let (keys, value) = (args.keys, args.value as u64);
    let end = State::of(target).await?;
    let (last, returned) = shrink(target, end.revision).await?;
    Ok(Report { windows, puts, took, needed: end.needed(keys, value), end, last_needed: last.needed(keys, value), last, returned })
}

/// What happens now, in a line.
fn line(sample: &Sample, state: &State, compacting: bool) -> String {
    let rate = per_second(sample);
    let what = if compacting { ", compacting" } else { "" };
    format!("{rate:.0}/s, p99 {:.1} ms, {} MB on disk{what}", ms(sample.p99), state.disk / 1_000_000)
}

/// Compacts up to a revision, and waits until the space of what is gone has come back, or for as long as that may take.
async fn shrink(target: &Target, revision: u64) -> Result<(State, Duration)> {
    let mut client = KvClient::new(fleet::connect(target.leader().await?.0).await?);
    let began = Instant::now();
    let request = pb::CompactionRequest { revision: i64::try_from(revision).unwrap_or(i64::MAX), physical: false };
    client.compact(request).await.context("the last compaction")?;
    let (mut state, mut still) = (State::of(target).await?, 0);
    // Five looks without a change: nothing more will come.
    while began.elapsed() < RETURN && still < 5 {
        sleep(Duration::from_secs(1)).await;
        let now = State::of(target).await?;
        still = if now.swept >= now.compact && now.db == state.db { still + 1 } else { 0 };
        state = now;
    }
    Ok((state, began.elapsed()))
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn per_second(sample: &Sample) -> f64 {
    sample.done as f64 / sample.seconds
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn ms(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn times(bytes: u64, needed: u64) -> f64 {
    bytes as f64 / needed.max(1) as f64
}

impl Report {
    /// Medians of the windows of one kind: puts per second, p50, p99, p99.9; and how many there are.
    fn windows(&self, compacting: bool) -> Option<(usize, [f64; 4], f64)> {
        let of_kind: Vec<&Sample> = self.windows.iter().filter(|w| w.compacting == compacting).map(|w| &w.sample).collect();
        let median =
            |figure: fn(&Sample) -> f64| Spread::of(of_kind.iter().map(|sample| figure(sample)).collect()).map(|spread| spread.median);
        let four = [median(per_second)?, median(|s| ms(s.p50))?, median(|s| ms(s.p99))?, median(|s| ms(s.p999))?];
        let worst = of_kind.iter().map(|sample| ms(sample.p99)).fold(0.0, f64::max);
        Some((of_kind.len(), four, worst))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes / 1_000_000;
        let seconds = self.took.as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let rate = self.puts as f64 / seconds;
        writeln!(f, "{} puts in {seconds:.0} s: {rate:.0}/s", self.puts)?;
        let peak = self.windows.iter().map(|window| window.disk).max().unwrap_or(0);
        for (what, state, needed) in
            [("at the end of the load", &self.end, self.needed), ("newest versions alone", &self.last, self.last_needed)]
        {
            let kept = state.revision.saturating_sub(state.compact);
            writeln!(
                f,
                "{what}: {kept} revisions of history, {} MB that can be read; state {} MB ({:.2} times), whole folder {} MB ({:.2} times)",
                mb(needed),
                mb(state.db),
                times(state.db, needed),
                mb(state.disk),
                times(state.disk, needed),
            )?;
        }
        writeln!(f, "most on the disk: {} MB; space came back within {:.0} s", mb(peak), self.returned.as_secs_f64())?;
        for (what, compacting) in [("without compaction", false), ("during compaction", true)] {
            match self.windows(compacting) {
                Some((count, [rate, p50, p99, p999], worst)) => writeln!(
                    f,
                    "{what}, medians of {count} windows: {rate:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms, p99.9 {p999:.2} ms; worst p99 {worst:.2} ms"
                )?,
                None => writeln!(f, "{what}: no window")?,
            }
        }
        match (self.windows(true), self.windows(false)) {
            (Some((_, [_, _, during, _], _)), Some((_, [_, _, without, _], _))) => {
                write!(f, "p99 during / without: {:.2}", during / without)
            }
            _ => write!(f, "p99 during / without: not known, the run was too short"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_kept_is_known_from_the_revisions() {
        let state = State { revision: 1_000, compact: 900, ..State::default() };
        assert_eq!(state.needed(10, 256), 110 * (KEY + 256));
        assert_eq!(State { compact: 0, ..state }.needed(0, 0), 1_000 * KEY);
    }

    #[test]
    fn a_report_compares_windows_of_the_two_kinds() {
        let window =
            |p99: u64, compacting| Window { sample: Sample { seconds: 1.0, done: 5, p99, ..Sample::default() }, compacting, disk: p99 };
        let end = State { revision: 20, compact: 10, disk: 2_000_000, db: 1_000_000, ..State::default() };
        let mut report = Report {
            windows: vec![window(2_000_000, false), window(4_000_000, false), window(6_000_000, true)],
            puts: 15,
            took: Duration::from_secs(3),
            end,
            needed: 1_000_000,
            last: end,
            last_needed: 500_000,
            returned: Duration::from_secs(1),
        };
        let text = report.to_string();
        for part in [
            "15 puts in 3 s: 5/s",
            "state 1 MB (1.00 times), whole folder 2 MB (2.00 times)",
            "state 1 MB (2.00 times)",
            "p99 3.00 ms",
            "during / without: 2.00",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        report.windows.pop();
        assert!(report.to_string().ends_with("the run was too short"));
    }

    #[test]
    fn folders_are_as_large_as_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("in")).unwrap();
        std::fs::write(dir.path().join("in/a"), vec![1; 100_000]).unwrap();
        assert!((100_000..200_000).contains(&size_of(dir.path())));
    }
}
