//! Plans are read, refused, drawn and resolved.

use std::time::Duration;

use super::*;

fn bad(text: &str) -> String {
    Plan::parse(text).expect_err(text).to_string()
}

#[test]
fn the_example_of_the_documentation_is_a_plan() {
    let text: String = include_str!("mod.rs")
        .lines()
        .skip_while(|line| !line.contains("```yaml"))
        .skip(1)
        .take_while(|line| !line.contains("```"))
        .map(|line| format!("{}\n", line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default()))
        .collect();
    let plan = Plan::parse(&text).unwrap();
    assert_eq!((plan.name.as_str(), plan.schedule.len(), plan.topology.disk), ("leader-cut-off", 1, Disk::Ext4));
}

#[test]
fn errors_name_the_field() {
    let entry = |rest: &str| format!("name: x\nschedule:\n  - {{{rest}}}\n");
    for (text, field) in [
        ("name: x\nnonsense: 1\n".to_owned(), "nonsense"),
        ("name: Bad Name\n".into(), "name: "),
        ("name: x\ntopology: {servers: 0}\n".into(), "topology.servers: "),
        ("name: x\ntopology: {servers: many}\n".into(), "topology.servers: "),
        ("name: x\nduration: 0s\n".into(), "duration: "),
        ("name: x\nduration: 5\n".into(), "duration: "),
        ("name: x\nworkload: {kv: {keys: 0}}\n".into(), "workload.kv.keys: "),
        ("name: x\nworkload: {kv: {mix: {get: 0, put: 0, cas: 0, delete: 0}}}\n".into(), "workload.kv.mix: "),
        ("name: x\ntopology: {nodes: 0}\nworkload: {deployment: {}}\n".into(), "workload.deployment: "),
        ("name: x\nexpect: {checks: [nonsense]}\n".into(), "expect.checks[0]: "),
        ("name: x\nbudget: {impaired: 2}\n".into(), "budget.impaired: "),
        (entry("when: {}, fault: crash"), "schedule[0].when: "),
        (entry("when: {at: 1s, every: 2s}, fault: crash"), "schedule[0].when: "),
        (entry("when: {at: 1s, p: 0.5}, fault: crash"), "schedule[0].when.p: "),
        (entry("when: {event: elected, p: 2}, fault: crash"), "schedule[0].when.p: "),
        (entry("when: {at: 1s}, fault: nonsense"), "schedule[0].fault"),
        (entry("when: {at: 1s}, fault: {loss: {percent: 0}}"), "schedule[0].fault.loss.percent: "),
        (entry("when: {at: 1s}, fault: {loss: {percents: 7}}"), "schedule[0].fault.loss"),
        (entry("when: {at: 1s}, fault: crash, for: 2h"), "schedule[0].for: "),
        (entry("when: {at: 1s}, fault: crash, where: {server: 4}"), "schedule[0].where: "),
        (entry("when: {at: 1s}, fault: crash, where: any-node"), "schedule[0].where: "),
        (entry("when: {at: 1s}, fault: node-freeze, where: leader"), "schedule[0].where: "),
        (entry("when: {at: 1s}, fault: crash, where: {servers: 2}"), "schedule[0].where: "),
        (entry("when: {at: 1s}, fault: power-loss, where: all-servers"), "schedule[0].where: "),
        (entry("when: {at: 1s}, fault: lying-fsync"), "schedule[0].fault: "),
    ] {
        let error = bad(&text);
        assert!(error.contains(field), "{text}\n-> {error}");
    }
    assert!(bad("a: [").contains("not YAML"));
    assert!(Plan::find("nonsense").unwrap_err().to_string().contains("leader-kill"));
}

#[test]
fn what_breaks_more_than_the_cluster_survives_must_say_so() {
    let text = "name: x\nbudget: {mode: beyond-model}\nschedule: [{when: {at: 1s}, fault: power-loss, where: all-servers}]\n";
    assert_eq!(Plan::parse(text).unwrap().budget.mode, Mode::BeyondModel);
    let five = "name: x\ntopology: {servers: 5}\nschedule: [{when: {at: 1s}, fault: crash, where: {servers: 2}}]\n";
    assert_eq!(Plan::parse(five).unwrap().allowance(), 2);
}

#[test]
fn every_built_in_plan_is_valid_and_survives_the_file() {
    for name in builtin::names() {
        let plan = builtin::plan(name).unwrap();
        plan.validate().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(Plan::parse(&plan.to_yaml()).unwrap(), plan, "{name}");
        assert_eq!(plan.name, name);
    }
    let bench = builtin::bench(Fault::Crash {}, 30);
    bench.validate().unwrap();
    assert_eq!(bench.injections().len(), 30);
}

#[test]
fn every_seed_is_a_valid_plan_and_survives_the_file() {
    let mut with_faults = 0;
    for seed in 0..500 {
        let plan = Plan::from_seed(seed, |_| true);
        plan.validate().unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", plan.to_yaml()));
        let back = Plan::parse(&plan.to_yaml()).unwrap();
        assert_eq!(back.schedule, plan.schedule, "seed {seed}");
        assert_eq!(plan, Plan::from_seed(seed, |_| true));
        with_faults += usize::from(!plan.schedule.is_empty());
    }
    assert!(with_faults > 450, "{with_faults}");
    let calm = Plan::from_seed(3, |row| row.name == "crash");
    assert!(calm.schedule.iter().all(|entry| entry.fault.name() == "crash"));
}

#[test]
fn faults_come_by_the_seed_and_one_does_not_move_the_others() {
    let two = "name: x\nschedule:\n  - {when: {every: 3s..5s}, fault: crash, for: 1s..2s}\n  - {when: {every: 7s..9s}, fault: pause}\n";
    let plan = Plan::parse(two).unwrap();
    let all = plan.injections();
    assert_eq!(all, plan.injections(), "the same seed, the same faults");
    assert!(all.is_sorted_by_key(|i| i.at));
    assert!(all.iter().all(|i| i.at < Duration::from_secs(60)));
    let crashes: Vec<_> = all.iter().filter(|i| i.entry == 0).cloned().collect();
    assert!((11..=20).contains(&crashes.len()), "{}", crashes.len());
    let mut alone = plan.clone();
    alone.schedule.pop();
    assert_eq!(alone.injections(), crashes, "taking out the second leaves the first as it was");
    let other = Plan { seed: 2, ..plan };
    assert_ne!(other.injections(), all);
}

#[test]
fn the_schema_knows_every_fault_and_refuses_what_the_reader_refuses() {
    let schema = Plan::schema().to_string();
    for row in crate::fault::table::FAULTS {
        assert!(schema.contains(&format!("\"{}\"", row.name)), "{}", row.name);
    }
    assert!(schema.contains("additionalProperties\":false"));
}
