//! `kontiki chaos sim`: many seeds. `kontiki chaos replay`: one again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use kontiki_base::env::Env as _;
use kontiki_proto::env::SystemEnv;

use super::nemesis::Tally;
use super::run::{Outcome, run};
use super::schedule::Schedule;
use super::shrink::shrink;
use crate::plan::Plan;

/// `kontiki chaos sim`.
#[derive(Debug, Args)]
pub struct SimArgs {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    pub seeds: u64,

    /// The first seed
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub from: u64,

    /// Begin at a seed that nobody has run before, taken from the time
    #[arg(long, conflicts_with = "from")]
    pub fresh: bool,

    /// Runs at a time, each on a thread of its own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,

    /// Simulated time with faults in each run
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub time: Duration,

    /// Simulate the control plane, too: API server, controllers and scheduler on every member, and so many nodes
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub nodes: u8,

    /// Run this plan (its name, or a file) instead of schedules from seeds: every seed draws anew what the plan leaves open
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["nodes", "time"])]
    pub plan: Option<String>,

    /// Run every n-th seed twice and compare what happened, event by event; 0: never
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub twice: u64,

    /// First run every schedule in this folder: those of bugs that were found once
    #[arg(long, value_name = "DIR")]
    pub regress: Option<PathBuf>,

    /// Write the smallest schedules that fail into this folder
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub out: PathBuf,

    /// Go on after a failure, and do not shrink
    #[arg(long)]
    pub keep_going: bool,

    /// A line for every run
    #[arg(long, short)]
    pub verbose: bool,
}

/// `kontiki chaos replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A seed, or a file with a schedule
    #[arg(value_name = "SEED|FILE")]
    pub what: String,

    /// Print every event
    #[arg(long)]
    pub trace: bool,

    /// Print the schedule
    #[arg(long)]
    pub schedule: bool,

    /// Simulated time with faults, for a seed
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub time: Duration,

    /// As for `sim`, for a seed
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub nodes: u8,

    /// The plan whose seed it is
    #[arg(long, value_name = "PLAN", conflicts_with_all = ["nodes", "time"])]
    pub plan: Option<String>,

    /// If it fails, find the smallest schedule that does, and write it here
    #[arg(long, value_name = "FILE")]
    pub shrink: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<u64>() {
        Ok(n) if n > 0 => Ok(Duration::from_secs(n)),
        _ => Err(format!("{text:?} is not a positive number of seconds")),
    }
}

/// What all runs came to.
#[derive(Default)]
struct Total {
    runs: u64,
    simulated: Duration,
    events: u64,
    ops: BTreeMap<&'static str, usize>,
    faults: Tally,
    elections: usize,
    committed: usize,
    messages: u64,
    twice: u64,
    /// In how many runs each check saw what it is about.
    checks: BTreeMap<&'static str, u64>,
    failed: Vec<String>,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.simulated += outcome.simulated;
        self.events += outcome.events;
        self.elections += outcome.seen.elections;
        self.committed += outcome.seen.committed;
        self.messages += outcome.messages.0;
        outcome.checks.iter().for_each(|(name, saw)| *self.checks.entry(name).or_default() += u64::from(*saw));
        outcome.ops.iter().for_each(|(name, count)| *self.ops.entry(name).or_default() += count);
        for (kind, (done, left)) in &outcome.faults {
            let sum = self.faults.entry(kind).or_default();
            sum.0 += done;
            sum.1 += left;
        }
    }

    fn print(&self, wall: Duration, cpu: Duration) {
        println!("faults             carried out   left out");
        for (kind, (done, left)) in &self.faults {
            println!("  {kind:<18} {done:>9}  {left:>9}");
        }
        let ops: Vec<String> = self.ops.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("operations         {} ({})", self.ops.values().sum::<usize>(), ops.join(", "));
        println!(
            "consensus          {} elections, {} entries committed, {} messages, {} events",
            self.elections, self.committed, self.messages, self.events
        );
        let (seen, blind): (Vec<_>, Vec<_>) = self.checks.iter().partition(|(_, count)| **count > 0);
        let seen: Vec<String> = seen.iter().map(|(name, count)| format!("{name} {count}")).collect();
        println!("checks             runs in which each saw what it is about: {}", seen.join(", "));
        if !blind.is_empty() {
            let blind: Vec<&str> = blind.iter().map(|(name, _)| **name).collect();
            println!("                   saw nothing in any run: {}", blind.join(", "));
        }
        println!("determinism        {} runs done twice", self.twice);
        let per = |d: Duration| if d.is_zero() { 0.0 } else { self.simulated.as_secs_f64() / d.as_secs_f64() };
        println!(
            "speed              {:.0} s simulated in {:.1} s: {:.1} per second, {:.1} per CPU second",
            self.simulated.as_secs_f64(),
            wall.as_secs_f64(),
            per(wall),
            per(cpu)
        );
        println!("verdict: {} of {} runs held", self.runs - self.failed.len() as u64, self.runs);
    }
}

fn schedule_of(seed: u64, time: Duration, nodes: u8) -> Schedule {
    if nodes == 0 { Schedule::from_seed(seed, time) } else { Schedule::with_nodes(seed, time, nodes) }
}

fn one_line(outcome: &Outcome) -> String {
    let ops: Vec<String> = outcome.ops.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let faults: Vec<String> = outcome.faults.iter().map(|(kind, (done, _))| format!("{done} {kind}")).collect();
    format!(
        "{:.0} s, hash {:032x}, {}; {}; {} elections",
        outcome.simulated.as_secs_f64(),
        outcome.hash,
        ops.join(", "),
        faults.join(", "),
        outcome.seen.elections
    )
}

/// CPU time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted behind the name, which may contain anything.
    let ticks = stat.rsplit(')').next().map(|rest| rest.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum());
    // A tick is 10 ms to user space on every Linux.
    Duration::from_millis(ticks.unwrap_or(0) * 10)
}

/// A line for a table of contents: the first violation.
fn why(outcome: &Outcome) -> String {
    outcome.violations.first().map(ToString::to_string).unwrap_or_default()
}

fn print_failure(reproduce: &str, outcome: &Outcome) {
    println!("REPRODUCE: kontiki chaos replay {reproduce}");
    outcome.violations.iter().take(8).for_each(|violation| println!("  VIOLATION {violation}"));
    println!("  {}", one_line(outcome));
}

fn read(file: &Path) -> anyhow::Result<Schedule> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not a schedule", file.display()))
}

fn write(file: &Path, schedule: &Schedule) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(schedule)?;
    std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// The smallest schedule that fails in the same way.
fn smallest(schedule: &Schedule, outcome: &Outcome) -> (Schedule, usize) {
    let checks: Vec<&str> = outcome.violations.iter().map(|violation| violation.check).collect();
    shrink(schedule, |candidate| run(candidate, false).is_ok_and(|o| o.violations.iter().any(|v| checks.contains(&v.check))))
}

/// Runs the schedules of a folder, in order of their names.
fn regress(dir: &Path, total: &mut Total) -> anyhow::Result<()> {
    let files = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = files.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "json"));
    files.sort();
    for file in files {
        let outcome = run(&read(&file)?, false)?;
        total.add(&outcome);
        if !outcome.violations.is_empty() {
            print_failure(&file.display().to_string(), &outcome);
            total.failed.push(format!("{}: {}", file.display(), why(&outcome)));
        }
    }
    Ok(())
}

struct Work<'a> {
    args: &'a SimArgs,
    plan: Option<Plan>,
    first: u64,
    next: AtomicU64,
    over: AtomicBool,
    total: Mutex<Total>,
}

impl Work<'_> {
    fn lock(&self) -> std::sync::MutexGuard<'_, Total> {
        self.total.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) -> anyhow::Result<()> {
        while !self.over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.args.seeds {
                break;
            }
            self.seed(self.first + number, self.args.twice > 0 && number.is_multiple_of(self.args.twice))?;
        }
        Ok(())
    }

    fn seed(&self, seed: u64, twice: bool) -> anyhow::Result<()> {
        let schedule = match &self.plan {
            Some(plan) => Schedule::from_plan(&Plan { seed, ..plan.clone() })?,
            None => schedule_of(seed, self.args.time, self.args.nodes),
        };
        let mut outcome = run(&schedule, false)?;
        if twice {
            let again = run(&schedule, false)?;
            self.lock().twice += 1;
            if (again.hash, again.events) != (outcome.hash, outcome.events) {
                let detail = format!("{:032x} of {} events, then {:032x} of {}", outcome.hash, outcome.events, again.hash, again.events);
                outcome.violations.push(crate::check::Violation::new("same-seed", detail));
            }
        }
        let mut total = self.lock();
        total.add(&outcome);
        if self.args.verbose {
            println!("seed {seed}: {}", one_line(&outcome));
        }
        if outcome.violations.is_empty() {
            return Ok(());
        }
        let nodes = if self.args.nodes > 0 { format!(" --nodes {}", self.args.nodes) } else { String::new() };
        let again = match &self.args.plan {
            Some(plan) => format!("{seed} --plan {plan}"),
            None => format!("{seed} --time {}s{nodes}", self.args.time.as_secs()),
        };
        print_failure(&again, &outcome);
        total.failed.push(format!("seed {seed}: {}", why(&outcome)));
        drop(total);
        if !self.args.keep_going && !self.over.swap(true, Ordering::Relaxed) {
            let (small, asked) = smallest(&schedule, &outcome);
            let file = self.args.out.join(format!("seed-{seed}.json"));
            write(&file, &small)?;
            println!("  {} of {} faults are left after {asked} more runs: {}", small.faults.len(), schedule.faults.len(), file.display());
        }
        Ok(())
    }
}

/// Runs many seeds. `true`: all held.
///
/// # Errors
/// The machine does not give what the runs need.
pub fn sim(args: &SimArgs) -> anyhow::Result<bool> {
    let env = SystemEnv::new();
    let first = if args.fresh { u64::try_from(env.now_wall().0).unwrap_or(0) } else { args.from };
    let (begun, cpu) = (env.now_mono(), cpu_time());
    let mut total = Total::default();
    if let Some(dir) = &args.regress {
        regress(dir, &mut total)?;
    }
    let plan = args.plan.as_deref().map(Plan::find).transpose()?;
    // What the plan asks for and this world does not have is said before anything runs.
    plan.as_ref().map(Schedule::from_plan).transpose()?;
    let over = AtomicBool::new(!total.failed.is_empty() && !args.keep_going);
    let work = Work { args, plan, first, next: AtomicU64::new(0), over, total: Mutex::new(total) };
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..args.jobs).map(|_| scope.spawn(|| work.work())).collect();
        let mut shown = begun;
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(100));
            if env.now_mono().since(shown) >= Duration::from_secs(10) {
                shown = env.now_mono();
                let total = work.lock();
                eprintln!(
                    "{} of {} seeds, {:.0} s simulated, {} failed",
                    total.runs,
                    args.seeds,
                    total.simulated.as_secs_f64(),
                    total.failed.len()
                );
            }
        }
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        Ok(())
    })?;
    let total = work.total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.print(env.now_mono().since(begun), cpu_time().saturating_sub(cpu));
    total.failed.iter().for_each(|line| println!("FAILED {line}"));
    Ok(total.failed.is_empty())
}

/// Runs one schedule again. `true`: it held.
///
/// # Errors
/// There is no such schedule, or the machine does not give what the run needs.
pub fn replay(args: &ReplayArgs) -> anyhow::Result<bool> {
    let schedule = match args.what.parse::<u64>() {
        Ok(seed) => match &args.plan {
            Some(plan) => Schedule::from_plan(&Plan { seed, ..Plan::find(plan)? })?,
            None => schedule_of(seed, args.time, args.nodes),
        },
        Err(_) => read(Path::new(&args.what))?,
    };
    if args.schedule {
        println!("{}", serde_json::to_string_pretty(&schedule)?);
    }
    let outcome = run(&schedule, args.trace)?;
    println!("{}", one_line(&outcome));
    if outcome.violations.is_empty() {
        println!("verdict: held");
        return Ok(true);
    }
    if !args.trace {
        println!("the last that happened:");
        outcome.lines.iter().for_each(|line| println!("{line}"));
    }
    outcome.violations.iter().for_each(|violation| println!("VIOLATION {violation}"));
    if let Some(file) = &args.shrink {
        let (small, asked) = smallest(&schedule, &outcome);
        write(file, &small)?;
        println!("{} of {} faults are left after {asked} more runs: {}", small.faults.len(), schedule.faults.len(), file.display());
    }
    Ok(false)
}
