//! Deployments in a closed loop: whatever the order in which controllers and kubelets act, a rollout stays within its bounds,
//! arrives, and then rests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Cluster, deployment, is_active, is_ready};
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use proptest::prelude::*;
use serde_json::{Value, json};

fn images(cluster: &Cluster) -> Vec<String> {
    cluster.pods().map(|p| p["spec"]["containers"][0]["image"].as_str().unwrap().to_owned()).collect()
}

fn share(value: &Value, whole: i64, up: bool) -> i64 {
    match value.as_str() {
        Some(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap();
            if up { (percent * whole + 99) / 100 } else { percent * whole / 100 }
        }
        None => value.as_i64().unwrap(),
    }
}

fn amount() -> impl Strategy<Value = Value> {
    prop_oneof![Just(json!("25%")), Just(json!("0%")), Just(json!("100%")), (0i64..4).prop_map(|n| json!(n))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Template changes only: at no moment more pods than allowed, nor fewer available ones, also when the new template never works.
    #[test]
    fn rollouts_stay_within_bounds(seed in any::<u64>(), replicas in 1u32..12, surge in amount(), unavailable in amount(), broken in any::<bool>()) {
        let mut c = Cluster::new(seed);
        let (max_surge, mut max_unavailable) = (share(&surge, replicas.into(), true), share(&unavailable, replicas.into(), false));
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        let (most, fewest) = (i64::from(replicas) + max_surge, (i64::from(replicas) - max_unavailable).max(0));
        c.apply(deployment(replicas, surge.clone(), unavailable.clone(), "v1"));
        c.settle(|_| true, |_| {});
        prop_assert_eq!(c.pods().count(), replicas as usize);
        c.assert_idle();

        c.apply(deployment(replicas, surge, unavailable, "v2"));
        let works = move |pod: &Value| !broken || pod["spec"]["containers"][0]["image"] == "v1";
        c.settle(works, |c| {
            let active = i64::try_from(c.pods().filter(|p| is_active(p)).count()).unwrap();
            let available = i64::try_from(c.pods().filter(|p| is_active(p) && is_ready(p)).count()).unwrap();
            assert!(active <= most, "{active} pods, at most {most} allowed");
            assert!(available >= fewest, "{available} available, at least {fewest} demanded");
        });
        c.assert_idle();
        if !broken {
            prop_assert_eq!(images(&c), vec!["v2"; replicas as usize]);
        } else if max_surge > 0 || max_unavailable > 0 {
            prop_assert!(images(&c).contains(&"v2".to_owned()), "the rollout began");
        }
    }

    /// Any sequence of scaling, updates, rollbacks, pauses and lost pods arrives at what was asked for last, and then rests.
    #[test]
    fn anything_converges(seed in any::<u64>(), ops in prop::collection::vec((0u8..6, 0u32..9, 0usize..30), 1..12)) {
        let mut c = Cluster::new(seed);
        let (mut replicas, mut version, mut paused) = (3, 1u32, false);
        c.apply(deployment(replicas, json!("25%"), json!("25%"), "v1"));
        for (op, n, steps) in ops {
            match op {
                0 => replicas = n,
                1 => version = n,
                2 => paused = !paused,
                3 => {
                    let victim = c.pods().nth(n as usize).map(|p| p["metadata"]["name"].as_str().unwrap().to_owned());
                    if let Some(name) = victim {
                        c.delete(Kind::Pod, &ObjectKey::new("d", name), None, None);
                    }
                }
                _ => {}
            }
            let mut d = deployment(replicas, json!("25%"), json!("25%"), &format!("v{version}"));
            d["spec"]["paused"] = json!(paused);
            // kubectl keeps what the controller has written into the metadata.
            if let Some(old) = c.get(Kind::Deployment, "web") {
                d["metadata"]["annotations"] = old["metadata"]["annotations"].clone();
            }
            c.apply(d);
            for _ in 0..steps {
                if !c.step() {
                    c.kubelet(|_| true);
                }
            }
        }
        let mut d = c.get(Kind::Deployment, "web").unwrap().clone();
        d["spec"]["paused"] = json!(false);
        c.apply(d);
        c.settle(|_| true, |_| {});
        prop_assert_eq!(images(&c), vec![format!("v{version}"); replicas as usize]);
        c.assert_idle();
        let d = c.get(Kind::Deployment, "web").unwrap();
        let count = |field: &str| d["status"][field].as_u64().unwrap_or(0);
        prop_assert_eq!((count("replicas"), count("updatedReplicas"), count("availableReplicas")), (replicas.into(), replicas.into(), replicas.into()));
        prop_assert_eq!(&d["status"]["observedGeneration"], &d["metadata"]["generation"]);
        let sets = c.objects.keys().filter(|(k, _)| *k == Kind::ReplicaSet).count();
        prop_assert!(sets <= 3, "the current one and two of history, not {}", sets);
    }

    /// The same seed, the same actions, byte for byte.
    #[test]
    fn the_same_seed_does_the_same(seed in any::<u64>()) {
        let run = || {
            let mut c = Cluster::new(seed);
            c.apply(deployment(5, json!(1), json!(1), "v1"));
            c.settle(|_| true, |_| {});
            c.apply(deployment(7, json!(1), json!(1), "v2"));
            c.settle(|_| true, |_| {});
            c.log
        };
        prop_assert_eq!(run(), run());
    }
}

fn sizes(c: &Cluster) -> Vec<(String, i64)> {
    let mut out: Vec<_> = c
        .objects
        .iter()
        .filter(|((k, _), _)| *k == Kind::ReplicaSet)
        .map(|(_, o)| {
            let image = o["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
            (image, o["spec"]["replicas"].as_i64().unwrap())
        })
        .collect();
    out.sort();
    out
}

/// Controllers only, until they rest.
fn controllers(c: &mut Cluster) {
    while c.step() {}
}

#[test]
fn the_published_arithmetic_of_a_rollout() {
    let mut c = Cluster::new(1);
    c.apply(deployment(10, json!("25%"), json!("25%"), "v1"));
    c.settle(|_| true, |_| {});
    c.apply(deployment(10, json!("25%"), json!("25%"), "v2"));
    controllers(&mut c);
    // 13 - 10 new ones; 10 + 3 - 8 - 3 = 2 old ones go; then the room of those two is used.
    assert_eq!(sizes(&c), [("v1".into(), 8), ("v2".into(), 5)]);
    // Resized mid-rollout: 8 * 18/13 = 11.08, 5 * 18/13 = 6.92.
    let mut d = deployment(15, json!(3), json!("25%"), "v2");
    d["metadata"]["annotations"] = c.get(Kind::Deployment, "web").unwrap()["metadata"]["annotations"].clone();
    c.apply(d);
    let key = ObjectKey::new("d", "web");
    let plan = c.run(kontiki_control::controllers::ControllerId::Deployment, &key);
    let scaled: Vec<i64> = plan
        .actions
        .iter()
        .filter_map(|a| match a {
            kontiki_control::Action::Patch { kind: Kind::ReplicaSet, patch, .. } => patch["spec"]["replicas"].as_i64(),
            _ => None,
        })
        .collect();
    assert_eq!(scaled, [11, 7]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut c = Cluster::new(2);
    let recreate = |image: &str| {
        let mut d = deployment(3, json!(0), json!(0), image);
        d["spec"]["strategy"] = json!({ "type": "Recreate" });
        d
    };
    c.apply(recreate("v1"));
    c.settle(|_| true, |_| {});
    c.apply(recreate("v2"));
    c.settle(
        |_| true,
        |c| {
            let images = images(c);
            assert!(!(images.contains(&"v1".into()) && images.contains(&"v2".into())), "{images:?}");
        },
    );
    assert_eq!(images(&c), ["v2"; 3]);
    c.assert_idle();
}

#[test]
fn a_rollback_reuses_the_old_set_and_numbers_it_anew() {
    let mut c = Cluster::new(3);
    for image in ["v1", "v2", "v1"] {
        let mut d = deployment(2, json!(1), json!(0), image);
        if let Some(old) = c.get(Kind::Deployment, "web") {
            d["metadata"]["annotations"] = old["metadata"]["annotations"].clone();
        }
        c.apply(d);
        c.settle(|_| true, |_| {});
    }
    assert_eq!(sizes(&c), [("v1".into(), 2), ("v2".into(), 0)]);
    let d = c.get(Kind::Deployment, "web").unwrap();
    assert_eq!(d["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let set = c.objects.values().find(|o| o["kind"] == "ReplicaSet" && o["spec"]["replicas"] == 2).unwrap();
    assert_eq!(set["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
    let progressing = d["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap();
    assert_eq!((&progressing["status"], &progressing["reason"]), (&json!("True"), &json!("NewReplicaSetAvailable")));
}

#[test]
fn a_rollout_without_progress_says_so_at_its_deadline() {
    let mut c = Cluster::new(4);
    c.apply(deployment(2, json!(1), json!(0), "v1"));
    c.settle(|_| true, |_| {});
    c.apply(deployment(2, json!(1), json!(0), "bad"));
    c.settle(|p| p["spec"]["containers"][0]["image"] != "bad", |_| {});
    c.now.0 += 602_000;
    c.settle(|p| p["spec"]["containers"][0]["image"] != "bad", |_| {});
    let d = c.get(Kind::Deployment, "web").unwrap();
    let progressing = d["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap();
    assert_eq!((&progressing["status"], &progressing["reason"]), (&json!("False"), &json!("ProgressDeadlineExceeded")));
    assert_eq!(images(&c).iter().filter(|i| *i == "v1").count(), 2, "nothing is rolled back, nothing is lost");
    c.assert_idle();
}
