//! `kontiki chaos bench`: one fault again and again, and the table of what it cost.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::args::BenchArgs;
use super::verdict::Verdict;
use crate::Tools;
use crate::fault::Fault;
use crate::measure::{self, Row, Summary};
use crate::plan::{Plan, Span, builtin};

/// What is written as JSON.
#[derive(Serialize)]
struct Table<'a> {
    plan: &'a str,
    seed: u64,
    version: &'a str,
    verdict: &'a str,
    summaries: &'a [Summary],
    samples: &'a [Row],
}

fn plan(args: &BenchArgs) -> Result<Plan> {
    let mut plan = match Fault::named(&args.fault) {
        Some(fault) => builtin::bench(fault, args.n),
        None => {
            let mut plan = Plan::find(&args.fault)?;
            let every = plan.schedule.first().and_then(|e| e.when.every).context("the plan has no fault that comes again and again")?;
            plan.duration = Span(every.max * args.n + every.max / 2);
            plan.expect.coverage.faults = args.n;
            plan
        }
    };
    plan.seed = args.seed;
    plan.workload.kv.clients = args.clients;
    plan.validate()?;
    Ok(plan)
}

/// Runs it.
///
/// # Errors
/// The run could not be carried out.
pub async fn run(args: &BenchArgs, tools: &Tools) -> Result<Verdict> {
    let plan = plan(args)?;
    let tools = &Tools { program: args.program.clone(), ..tools.clone() };
    let outcome = super::execute(&plan, tools, None, false).await?;
    outcome.findings.print(&plan, &outcome.history, &outcome.rows);
    let verdict = outcome.findings.verdict();
    if let Some(path) = &args.json {
        let summaries = measure::summarize(&outcome.rows);
        let table = Table {
            plan: &plan.name,
            seed: plan.seed,
            version: tools.version,
            verdict: verdict.word(),
            summaries: &summaries,
            samples: &outcome.rows,
        };
        std::fs::write(path, serde_json::to_vec_pretty(&table)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(verdict)
}
