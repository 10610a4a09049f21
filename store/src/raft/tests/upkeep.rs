//! What members do for each other's health: compare, rebuild, hand over; and what a full disk does.

use kontiki_mvcc::{Alarm, AlarmKind, Batch, Space, alarm};

use super::super::*;
use super::world::{World, read, write};
use crate::engine::Engine;
use crate::engine::sim::SimEngine;
use std::ops::Bound;
use std::time::Duration;

/// Changes one stored record, as a failing medium does.
fn corrupt(engine: &SimEngine, space: Space, n: usize) {
    let view = engine.snapshot();
    let (key, value) = view.scan(space, Bound::Unbounded, Bound::Unbounded, false).nth(n).unwrap().unwrap();
    let mut value = value.to_vec();
    *value.last_mut().unwrap() ^= 0x40;
    let mut batch = Batch::default();
    batch.put(space, key, value);
    engine.commit(batch, engine.applied()).unwrap();
}

fn alarms(engine: &SimEngine) -> Vec<Alarm> {
    alarm::list(&*engine.snapshot()).unwrap()
}

async fn wait(what: &str, mut until: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if until() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be that {what}");
}

/// A cluster that compares all it has every few seconds, with some keys.
async fn comparing(seed: u64) -> (World, usize) {
    let mut world = World::new(3, seed);
    world.timings.scrub_every = Duration::from_secs(5);
    world.start_all().await;
    let leader = world.wait_leader().await;
    for n in 0..30 {
        write(&world.node(leader), &format!("k{n}"), "v").await.unwrap();
    }
    (world, leader)
}

async fn is_rebuilt(world: &World, bad: usize, leads: bool) {
    let id = world.hosts[bad].id;
    let expected = Alarm { kind: AlarmKind::Corrupt, member: id, automatic: true };
    let good = (bad + 1) % 3;
    wait("the alarm is raised", || alarms(&world.hosts[good].engine) == [expected]).await;
    assert!(world.status(good).fatal.is_none());
    // The others go on all the while.
    let writer = world.node(good);
    write(&writer, "meanwhile", "v").await.unwrap();
    wait("the alarm has gone", || alarms(&world.hosts[good].engine).is_empty()).await;
    if leads {
        assert_ne!(world.leader(), Some(bad), "a corrupt member does not lead");
    }
    write(&world.node(bad), "afterwards", "v").await.unwrap();
    world.converge().await;
    assert_eq!(read(&world.hosts[bad].engine, "meanwhile").unwrap().1, 1);
    for host in &world.hosts {
        kontiki_mvcc::verify(&*host.engine.snapshot()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_follower_whose_records_have_changed_is_fenced_and_rebuilt() {
    for (seed, space) in [(1, Space::Kv), (2, Space::Meta), (3, Space::Rev)] {
        let (mut world, leader) = comparing(seed).await;
        let bad = (leader + 1) % 3;
        world.converge().await;
        corrupt(&world.hosts[bad].engine, space, 7);
        is_rebuilt(&world, bad, false).await;
        for n in 0..3 {
            world.stop(n).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_records_have_changed_hands_over_and_is_rebuilt() {
    let (mut world, leader) = comparing(4).await;
    world.converge().await;
    corrupt(&world.hosts[leader].engine, Space::Kv, 11);
    is_rebuilt(&world, leader, true).await;
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rebuilt_member_survives_a_crash() {
    let (mut world, leader) = comparing(5).await;
    let bad = (leader + 2) % 3;
    world.converge().await;
    corrupt(&world.hosts[bad].engine, Space::Kv, 3);
    is_rebuilt(&world, bad, false).await;
    world.crash(bad).await;
    world.start(bad).await;
    write(&world.node(bad), "again", "v").await.unwrap();
    world.converge().await;
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_majority_the_cluster_stops() {
    let mut world = World::new(2, 6);
    world.timings.scrub_every = Duration::from_secs(5);
    world.start_all().await;
    let leader = world.wait_leader().await;
    for n in 0..10 {
        write(&world.node(leader), &format!("k{n}"), "v").await.unwrap();
    }
    world.converge().await;
    let bad = 1 - leader;
    corrupt(&world.hosts[bad].engine, Space::Kv, 3);
    let by_hand = Alarm { kind: AlarmKind::Corrupt, member: world.hosts[bad].id, automatic: false };
    wait("the alarm is raised", || alarms(&world.hosts[leader].engine) == [by_hand]).await;
    let refused = write(&world.node(leader), "k", "v").await.unwrap();
    assert_eq!(refused[0].reply, Err(KvError::Corrupt("etcdserver: corrupt cluster".into())));
    for n in 0..2 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sound_cluster_raises_no_alarm_and_an_idle_one_says_nothing() {
    let (mut world, leader) = comparing(7).await;
    for round in 0..60 {
        let node = world.node(round % 3);
        write(&node, &format!("k{}", round % 40), "w").await.unwrap();
        if round % 20 == 19 {
            let revision = kontiki_mvcc::current(&*world.hosts[leader].engine.snapshot()).unwrap().revision;
            let compact = Command::Compact { revision: Revision::new(revision.get() - 3) };
            node.propose(vec![compact], None).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.converge().await;
    assert!(world.hosts.iter().all(|host| alarms(&host.engine).is_empty()));
    let last = world.status(leader).last_index;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.status(leader).last_index, last, "comparing appends nothing");
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_disk_stalls_hands_over() {
    let mut world = World::new(3, 8);
    world.start_all().await;
    let old = world.wait_leader().await;
    write(&world.node(old), "k", "v").await.unwrap();
    world.hosts[old].disk.set_latency(Duration::from_millis(600));
    let follower = world.node((old + 1) % 3);
    for n in 0..200 {
        // While leadership moves a write may have to be tried again.
        drop(write(&follower, &format!("k{n}"), "v").await);
        if world.leader() != Some(old) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let new = world.wait_leader().await;
    assert_ne!(new, old);
    // It does not come back, and is not asked to.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_ne!(world.leader(), Some(old));
    world.hosts[old].disk.set_latency(Duration::ZERO);
    world.converge().await;
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_slow_disks_does_not_hand_leadership_round_in_circles() {
    let mut world = World::new(3, 9);
    world.start_all().await;
    world.wait_leader().await;
    for host in &world.hosts {
        host.disk.set_latency(Duration::from_millis(400));
    }
    let first = world.status(0).term;
    for n in 0..60 {
        drop(write(&world.node(n % 3), &format!("k{n}"), "v").await);
    }
    let terms = world.status(0).term.get() - first.get();
    // Each of three members may hand over once in a minute, and an election among slow disks may take a second term. Without a rest
    // between, every third write would cost a term.
    assert!(terms <= 12, "{terms} terms");
    for host in &world.hosts {
        host.disk.set_latency(Duration::ZERO);
    }
    world.converge().await;
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_hands_over_first() {
    let mut world = World::new(3, 10);
    world.start_all().await;
    let old = world.wait_leader().await;
    write(&world.node(old), "k", "v").await.unwrap();
    world.node(old).hand_over().await;
    let new = world.leader().expect("there is another leader when it returns");
    assert_ne!(new, old);
    write(&world.node(old), "k", "w").await.unwrap();
    world.converge().await;
    for n in 0..3 {
        world.stop(n).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_on_a_full_disk_waits_for_room_and_loses_nothing() {
    let mut world = World::new(1, 11);
    world.start_all().await;
    world.wait_leader().await;
    let node = world.node(0);
    world.hosts[0].disk.set_full(true);
    let writing = {
        let node = node.clone();
        tokio::spawn(async move {
            let (mut acked, body) = (Vec::new(), "x".repeat(6_000));
            for n in 0..60 {
                if write(&node, &format!("k{n}"), &body).await.is_ok() {
                    acked.push(n);
                }
            }
            acked
        })
    };
    // A segment has 64 KiB, and there is a spare: then there is no room. A write that is under way then times out after five seconds.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!writing.is_finished());
    assert!(node.status().borrow().fatal.is_none(), "a full disk is not the end");
    world.hosts[0].disk.set_full(false);
    let acked = writing.await.unwrap();
    assert!(acked.len() >= 40, "{} were acknowledged", acked.len());
    let written = |world: &World| (0..60).filter(|n| read(&world.hosts[0].engine, &format!("k{n}")).is_some()).count();
    node.read_barrier().await.unwrap();
    assert_eq!(written(&world), 60, "what was waiting is written, acknowledged or not");
    drop(node);
    world.crash(0).await;
    world.start(0).await;
    world.wait_leader().await;
    world.node(0).read_barrier().await.unwrap();
    assert_eq!(written(&world), 60);
    // A member that is told to stop while it waits does stop.
    world.hosts[0].disk.set_full(true);
    let node = world.node(0);
    let stuck = tokio::spawn(async move {
        for n in 0..60 {
            drop(write(&node, &format!("l{n}"), &"x".repeat(6_000)).await);
        }
    });
    tokio::time::sleep(Duration::from_secs(8)).await;
    world.stop(0).await;
    stuck.abort();
}
