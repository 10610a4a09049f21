//! Real nodes. Skipped, and saying so, where the machine has not what they need.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use kontiki_agents::node::runtime::cri::CriRuntime;
use kontiki_agents::node::runtime::suite::{Bench, LAWS};
use kontiki_agents::node::runtime::{PodRuntime, wire};
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

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

#[test]
fn an_archive_in_the_current_folder_is_found_from_a_node() {
    let plan = Plan::new(Path::new("/tmp/kontiki-line"), 1).unwrap();
    let line = import_line(&plan.nodes[0], Path::new("demo.tar")).unwrap();
    assert_eq!(line.last().map(Path::new), Some(std::env::current_dir().unwrap().join("demo.tar").as_path()));
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
        testbed.isolate_node(1, true).unwrap();
        let line = b.enter(["timeout", "1", "bash", "-c", &connect].map(str::to_owned).to_vec());
        assert!(exec::output(Command::new(&line[0]).args(&line[1..])).is_err(), "the link is cut");
        testbed.isolate_node(1, false).unwrap();
        on(b, &["timeout", "5", "bash", "-c", &connect]);
        testbed.freeze_node(0, true).unwrap();
        testbed.up().unwrap();
        assert_eq!(on(a, &["hostname"]).trim(), "node-1", "up thaws a node that was frozen");
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

/// A network for the pods of one node, as an agent would configure it.
fn configure_network(node: &NodePlan) {
    let ipam = serde_json::json!({"type": "host-local", "ranges": [[{"subnet": "10.244.9.0/24"}]], "dataDir": node.dir.join("addresses")});
    let conflist = serde_json::json!({"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "ptp", "ipam": ipam}]});
    std::fs::write(node.cni_conf_dir().join("10-test.conflist"), conflist.to_string()).unwrap();
}

async fn keeps_all_laws(node: &NodePlan) {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let runtime: Arc<dyn PodRuntime> = Arc::new(CriRuntime::new(&node.cri_socket));
    for _ in 0..100 {
        if runtime.readiness().await.unwrap().network {
            break;
        }
        env.sleep(std::time::Duration::from_millis(100)).await;
    }
    let log_dir = node.dir.join("logs").to_string_lossy().into_owned();
    let image = crate::image::DEMO_IMAGES[0].to_owned();
    let bench = Bench { runtime: Arc::clone(&runtime), env, image, log_dir, cgroup_parent: node.cgroup_parent.clone() };
    for (name, law) in LAWS {
        eprintln!("{name}");
        law(bench.clone()).await;
        let left: Vec<wire::PodSandbox> = runtime.list_sandboxes(None).await.unwrap();
        assert!(left.is_empty(), "{name}: leaves something behind");
    }
}

#[test]
fn containerd_on_a_node_keeps_all_laws_of_a_runtime() {
    with_testbed(1, |testbed| {
        testbed.up().unwrap();
        let node = testbed.node(0);
        configure_network(node);
        let archive = testbed.layout().data_dir.join("demo.tar");
        crate::image::write_demo_archive(std::fs::File::create(&archive).unwrap()).unwrap();
        testbed.import_image(&archive).unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(keeps_all_laws(node));
    });
}
