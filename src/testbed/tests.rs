//! Real nodes. Skipped, and saying so, where the machine has not what they need.

use std::path::Path;
use std::process::Command;

use super::*;

/// Things that a testbed must not leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    netns: usize,
    cgroups: usize,
    uplink: bool,
}

fn traces(plan: &Plan) -> Traces {
    Traces {
        netns: network::node_indices(&plan.prefix).len() + usize::from(network::netns_exists(&plan.fabric)),
        cgroups: cgroup::node_indices(&plan.prefix).len(),
        uplink: Path::new("/sys/class/net").join(&plan.uplink).exists(),
    }
}

const NONE: Traces = Traces { netns: 0, cgroups: 0, uplink: false };

fn on(node: &NodePlan, command: &[&str]) -> String {
    let line = node.enter(command.iter().map(|&w| w.to_owned()).collect());
    exec::output(Command::new(&line[0]).args(&line[1..])).unwrap()
}

/// Runs the body with a planned testbed, and takes it down whatever happens.
fn with_testbed(nodes: usize, body: impl FnOnce(&Testbed) + std::panic::UnwindSafe) {
    if let Err(missing) = preflight() {
        eprintln!("skipped: {missing}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let testbed = Testbed::plan(dir.path(), nodes).unwrap();
    assert_eq!(traces(testbed.layout()), NONE);
    let outcome = std::panic::catch_unwind(|| body(&testbed));
    testbed.down().unwrap();
    assert_eq!(traces(testbed.layout()), NONE);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn nodes_see_each_other_and_the_machine_and_vanish_without_a_trace() {
    with_testbed(2, |testbed| {
        testbed.up().unwrap();
        let (a, b) = (testbed.node(0), testbed.node(1));
        assert_eq!(on(a, &["hostname"]).trim(), "node-1");
        for node in [a, b] {
            let route = on(node, &["ip", "route", "get", &testbed.host_ip().to_string()]);
            assert!(route.contains("dev eth0") && !route.contains("via"), "{route}");
        }
        let listener = std::net::TcpListener::bind((testbed.host_ip(), 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connect = format!("exec 3<>/dev/tcp/{}/{port}", testbed.host_ip());
        on(b, &["timeout", "5", "bash", "-c", &connect]);
        assert_eq!(listener.accept().unwrap().1.ip(), b.ip);
    });
}

#[test]
fn a_second_up_adopts_and_a_crash_of_containerd_is_mended() {
    with_testbed(1, |testbed| {
        testbed.up().unwrap();
        let before = node::holder_pid(testbed.node(0)).unwrap();
        Testbed::plan(&testbed.layout().data_dir, 1).unwrap().up().unwrap();
        assert_eq!(node::holder_pid(testbed.node(0)), Some(before), "the node was left alone");
        node::kill_containerd(testbed.node(0)).unwrap();
        testbed.up().unwrap();
        assert_eq!(node::holder_pid(testbed.node(0)), Some(before), "only containerd was started again");
        testbed.crash_node(0).unwrap();
        assert_eq!(node::holder_pid(testbed.node(0)), None);
        testbed.up().unwrap();
        assert_ne!(node::holder_pid(testbed.node(0)).unwrap(), before);
    });
}

#[test]
fn leftovers_of_a_run_with_more_nodes_are_removed() {
    with_testbed(2, |testbed| {
        testbed.up().unwrap();
        let fewer = Testbed::plan(&testbed.layout().data_dir, 1).unwrap();
        fewer.up().unwrap();
        assert_eq!(network::node_indices(&testbed.layout().prefix), [1]);
        Testbed::clean(&testbed.layout().data_dir).unwrap();
    });
}
