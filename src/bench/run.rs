//! One run of one cell against one store.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kontiki_proto::env::SystemEnv;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::callers::{Call, Callers, Data, Holders, Script, Tally, Times, Watchers, drive};
use super::cells::{Cell, Workload};
use super::fleet::{self, Target};
use super::procs::{Machine, Usage};

/// What all keys of ordinary workloads begin with, and those that are read 10,000 at once.
pub(super) const KEYS: &str = "/registry/bench/";
const RANGE_KEYS: &str = "/registry/range/";

/// How many keys are read at once.
const RANGE: u64 = 10_000;

/// Watches on one stream.
const WATCHES: u32 = 100;

/// Callers that fill a store.
const FILLERS: u32 = 256;

/// A fill may take this long.
const FILL: Duration = Duration::from_secs(3600);

/// How runs are done.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// Load before it is measured.
    pub(super) warmup: Duration,
    /// How long is measured.
    pub(super) duration: Duration,
    /// Connections at most.
    pub(super) connections: u32,
    /// Different keys.
    pub(super) keys: u64,
    /// Callers talk to all members, not only to the leader.
    pub(super) spread: bool,
}

/// What a run has shown.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// How long it was measured.
    pub(super) seconds: f64,
    /// Calls that went well, or events.
    pub(super) done: u64,
    /// Calls that were refused.
    pub(super) refused: u64,
    /// Of latencies, in nanoseconds.
    pub(super) p50: u64,
    /// Of latencies, in nanoseconds.
    pub(super) p99: u64,
    /// Of latencies, in nanoseconds.
    pub(super) p999: u64,
    /// What all members used meanwhile, and how much memory they had at the end; `None` if they run elsewhere.
    pub(super) servers: Option<Usage>,
    /// Processor time of this process, in microseconds.
    pub(super) loader_us: u64,
    /// Processor time of everybody else on the machine, in microseconds.
    pub(super) others_us: u64,
    /// Bytes that went to the disk meanwhile, whoever wrote them.
    pub(super) disk_written: u64,
}

/// What is known at one moment.
struct Moment {
    servers: Usage,
    me: Usage,
    machine: Machine,
}

impl Moment {
    fn now(pids: &BTreeSet<u32>, target: &Target) -> Self {
        let me = Usage::of(&BTreeSet::from([std::process::id()]));
        Self { servers: Usage::of(pids), me, machine: Machine::now(&target.folder()) }
    }
}

/// Everything that is fixed for a run.
struct Plan<'a> {
    options: &'a Options,
    endpoints: Vec<SocketAddr>,
    times: Times,
}

impl Plan<'_> {
    fn connections(&self, callers: u32) -> u32 {
        self.options.connections.min(callers).max(1)
    }

    fn endpoint(&self, connection: u32) -> SocketAddr {
        self.endpoints[connection as usize % self.endpoints.len()]
    }
}

/// How callers are shared out among connections: first and count of each.
fn shares(callers: u32, connections: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..connections).scan(0, move |first, n| {
        let count = callers / connections + u32::from(n < callers % connections);
        let share = (*first, count);
        *first += count;
        Some(share)
    })
}

fn callers(plan: &Plan<'_>, call: &Call, data: &Data, count: u32) -> Vec<Box<dyn Script>> {
    let connections = plan.connections(count);
    let script = |(first, count): (u32, u32)| {
        let call = match call {
            Call::Fill { .. } => Call::Fill { next: u64::from(first), step: 1 },
            other => other.clone(),
        };
        Box::new(Callers::new(call, data.clone(), u64::from(first), count, u64::from(first) ^ plan.times.begin)) as Box<dyn Script>
    };
    shares(count, connections).map(script).collect()
}

/// The scripts of a cell; the flag says whose figures count.
async fn scripts(plan: &Plan<'_>, cell: Cell) -> Result<Vec<(Box<dyn Script>, bool)>> {
    let data = Data::new(if cell.workload == Workload::Range { RANGE_KEYS } else { KEYS }, plan.options.keys, cell.value);
    let call = match cell.workload {
        Workload::Put | Workload::Restart => Call::Put,
        Workload::Get => Call::Get { serializable: false },
        Workload::Serializable => Call::Get { serializable: true },
        Workload::GetAny => Call::GetAny,
        Workload::Mixed => Call::Mixed,
        Workload::Cas => Call::Cas,
        Workload::Range => Call::Range,
        Workload::Watch => {
            let streams = cell.callers.div_ceil(WATCHES);
            let watchers = shares(cell.callers, streams).map(|(_, each)| (Box::new(Watchers::new(1, each)) as Box<dyn Script>, true));
            let writer = callers(plan, &Call::Stamp, &data, 1).into_iter().map(|script| (script, false));
            return Ok(watchers.chain(writer).collect());
        }
        Workload::Lease => {
            let mut scripts = Vec::new();
            for (connection, (_, count)) in (0..).zip(shares(cell.callers, plan.connections(cell.callers))) {
                let leases = fleet::grant(plan.endpoint(connection), count).await?;
                scripts.push((Box::new(Holders::new(leases)) as Box<dyn Script>, true));
            }
            return Ok(scripts);
        }
    };
    Ok(callers(plan, &call, &data, cell.callers).into_iter().map(|script| (script, true)).collect())
}

/// Puts so many keys, each once.
pub(super) async fn fill(target: &Target, options: &Options, prefix: &'static str, keys: u64, value: usize) -> Result<()> {
    let clock = SystemEnv::new();
    let times = Times { clock, begin: 0, end: u64::try_from(FILL.as_nanos()).unwrap_or(u64::MAX) };
    let plan = Plan { options, endpoints: vec![target.leader().await?.0], times };
    let mut running = JoinSet::new();
    let connections = u64::from(plan.connections(FILLERS));
    for (connection, (_, count)) in (0..).zip(shares(FILLERS, plan.connections(FILLERS))) {
        let call = Call::Fill { next: connection, step: connections };
        let mut script = Callers::new(call, Data::new(prefix, keys, value), 0, count, connection);
        let (address, times) = (plan.endpoints[0].to_string(), plan.times.clone());
        running.spawn(async move {
            drive(&address, &mut script, &times).await?;
            Ok::<u64, std::io::Error>(script.tally().refused)
        });
    }
    while let Some(refused) = running.join_next().await {
        let refused = refused.context("a caller panicked")?.with_context(|| format!("filling {}", target.name))?;
        if refused > 0 {
            anyhow::bail!("filling {}: {refused} puts were refused: {}", target.name, fleet::explain(plan.endpoints[0]).await);
        }
    }
    Ok(())
}

/// What a cell needs to be there.
pub(super) async fn prepare(target: &Target, options: &Options, cell: Cell) -> Result<()> {
    match cell.workload {
        Workload::Get | Workload::Serializable => fill(target, options, KEYS, 1, cell.value).await,
        Workload::Range => fill(target, options, RANGE_KEYS, RANGE, cell.value).await,
        Workload::Mixed | Workload::GetAny => fill(target, options, KEYS, options.keys, cell.value).await,
        Workload::Restart => fill(target, options, KEYS, u64::from(cell.callers), cell.value).await,
        Workload::Put | Workload::Cas | Workload::Watch | Workload::Lease => Ok(()),
    }
}

/// Measures a cell once.
///
/// # Errors
/// A store that cannot be reached, or ends a connection.
pub(super) async fn run(target: &Target, options: &Options, cell: Cell) -> Result<Sample> {
    let leader = target.leader().await?.0;
    let pids = target.pids();
    let endpoints = if options.spread { target.endpoints.clone() } else { vec![leader] };
    let clock = SystemEnv::new();
    let mut plan = Plan { options, endpoints, times: Times { clock, begin: 0, end: u64::MAX } };
    let scripts = scripts(&plan, cell).await?;
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    plan.times.begin = plan.times.now() + nanos(options.warmup);
    plan.times.end = plan.times.begin + nanos(options.duration);
    let mut running = JoinSet::new();
    for (connection, (mut script, counts)) in (0..).zip(scripts) {
        let (address, times) = (plan.endpoint(connection).to_string(), plan.times.clone());
        running.spawn(async move {
            let driven = drive(&address, &mut *script, &times).await;
            driven.map(|()| (script, counts))
        });
    }
    sleep(options.warmup).await;
    let before = Moment::now(&pids, target);
    sleep(options.duration).await;
    let after = Moment::now(&pids, target);
    let mut tally = Tally::default();
    while let Some(ended) = running.join_next().await {
        let (script, counts) = ended.context("a caller panicked")?.with_context(|| format!("{cell} on {}", target.name))?;
        if counts {
            tally.merge(script.tally());
        }
    }
    Ok(sample(&tally, options, &before, &after, !pids.is_empty()))
}

fn sample(tally: &Tally, options: &Options, before: &Moment, after: &Moment, local: bool) -> Sample {
    let servers = Usage {
        cpu_us: after.servers.cpu_us - before.servers.cpu_us,
        written: after.servers.written.saturating_sub(before.servers.written),
        resident: after.servers.resident,
    };
    let loader_us = after.me.cpu_us - before.me.cpu_us;
    let busy_us = after.machine.busy_us - before.machine.busy_us;
    Sample {
        seconds: options.duration.as_secs_f64(),
        done: tally.done,
        refused: tally.refused,
        p50: tally.latencies.quantile(0.5),
        p99: tally.latencies.quantile(0.99),
        p999: tally.latencies.quantile(0.999),
        servers: local.then_some(servers),
        loader_us,
        others_us: busy_us.saturating_sub(servers.cpu_us + loader_us),
        disk_written: after.machine.disk_written - before.machine.disk_written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_shared_out_evenly() {
        assert_eq!(shares(10, 3).collect::<Vec<_>>(), [(0, 4), (4, 3), (7, 3)]);
        assert_eq!(shares(1, 1).collect::<Vec<_>>(), [(0, 1)]);
    }
}
