//! Many keys, then: how much memory that takes, and how long a restart takes until the first linearizable read.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::cells::Cell;
use super::fleet::Target;
use super::procs::Usage;
use super::run::{self, Options};

/// What a restart has shown.
pub(super) struct Report {
    store: String,
    keys: u32,
    value: usize,
    fill: Duration,
    before: Usage,
    restart: Duration,
    after: Usage,
}

/// Fills a store and restarts it.
///
/// # Errors
/// A store that cannot be reached or refuses, or that somebody else has started.
pub(super) async fn run(target: &mut Target, options: &Options, cell: Cell) -> Result<Report> {
    let began = Instant::now();
    run::prepare(target, options, cell).await?;
    let fill = began.elapsed();
    let before = Usage::of(&target.pids());
    let restart = target.restart().await?;
    let after = Usage::of(&target.pids());
    Ok(Report { store: target.name.clone(), keys: cell.callers, value: cell.value, fill, before, restart, after })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes / 1_000_000;
        write!(
            f,
            "restart, {} keys of {} B on {}: filled in {:.1} s, {} MB resident, {} MB written; from restart to first read {:.3} s, {} MB resident",
            self.keys,
            self.value,
            self.store,
            self.fill.as_secs_f64(),
            mb(self.before.resident),
            mb(self.before.written),
            self.restart.as_secs_f64(),
            mb(self.after.resident),
        )
    }
}
