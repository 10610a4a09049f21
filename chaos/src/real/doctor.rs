//! `kontiki chaos doctor`: what can be broken on this machine, each thing tried live on throw-away objects.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use kontiki_base::env::Env;
use kontiki_proto::env::SystemEnv;

use super::disk::Disk;
use super::lossy::LossyFs;
use super::native::{self, ClockPage};
use super::net::{self, CLIENTS, Net};
use super::scene::Scene;
use super::{delayer, tool};
use crate::fault::Unsynced;
use crate::fault::table::{FAULTS, In, Need};
use crate::plan::{self, Dice};

/// Everything that faults need.
const NEEDS: &[Need] = &[Need::Netns, Need::PacketQueue, Need::LoopExt4, Need::Fuse, Need::Compiler];

/// Tries everything, and prints what works and what does not, and why. `true`: everything works.
///
/// # Errors
/// Not even a folder can be made.
pub async fn run() -> Result<bool> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    tokio::task::spawn_blocking(move || {
        let scene = Scene::new(env.random_u64())?;
        let outcomes: Vec<(Need, Result<String, String>)> = NEEDS.iter().map(|need| (*need, attempt(*need, &scene))).collect();
        let removed = scene.remove(false);
        print(&outcomes);
        removed.map_err(|left| anyhow::anyhow!("this is left on the machine: {left}"))?;
        Ok(outcomes.iter().all(|(_, outcome)| outcome.is_ok()))
    })
    .await?
}

fn print(outcomes: &[(Need, Result<String, String>)]) {
    println!("what this machine lets us do, each tried just now");
    for (need, outcome) in outcomes {
        match outcome {
            Ok(proof) => println!("  works  {}: {proof}", need.about()),
            Err(why) => println!("  no     {}: {why}", need.about()),
        }
    }
    println!("faults of the real world");
    for row in FAULTS {
        let missing: Vec<&str> =
            row.needs.iter().filter(|n| outcomes.iter().any(|(need, o)| need == *n && o.is_err())).map(|n| n.about()).collect();
        match (row.real, missing.is_empty()) {
            (In::No(why), _) => println!("  sim    {:<16} {why}", row.name),
            (In::Yes, true) => println!("  works  {}", row.name),
            (In::Yes, false) => println!("  no     {:<16} needs {}", row.name, missing.join("; ")),
        }
    }
}

fn attempt(need: Need, scene: &Scene) -> Result<String, String> {
    let text = |e: super::tool::ToolError| e.to_string();
    match need {
        Need::Netns => netns(scene),
        Need::PacketQueue => queue(scene),
        Need::Fuse => fuse(scene),
        Need::LoopExt4 => {
            let disk = Disk::make(scene, "doctor", plan::Disk::Ext4).map_err(text)?;
            let sentinel = disk.write_sentinel("doctor").map_err(text)?;
            disk.shut_down().map_err(text)?;
            disk.power_on(Unsynced::Drop, &mut Dice::new(1, "doctor")).map_err(text)?;
            sentinel.prove()
        }
        Need::Compiler => {
            let shim = native::clock_shim(&scene.dir).map_err(text)?;
            let page = ClockPage::make(scene.dir.join("clock-doctor")).map_err(text)?;
            page.set(-30_000).map_err(text)?;
            let preload = format!("LD_PRELOAD={}", shim.display());
            let shared = format!("KONTIKI_CHAOS_CLOCK={}", page.path().display());
            tool::run(&["env", &preload, &shared, "date", "+%s"]).map_err(text)?;
            let shifted = page.shifted().map_err(text)?;
            if shifted > 0 { Ok(format!("`date` was told a shifted time {shifted} times")) } else { Err("the shim was not asked".into()) }
        }
    }
}

/// The doctor's network: two members and the clients.
fn network(scene: &Scene) -> Result<Net, String> {
    if !tool::root() {
        return Err("this is not root".into());
    }
    Net::make(scene, &["s1".to_owned(), "s2".to_owned()]).map_err(|e| e.to_string())
}

fn netns(scene: &Scene) -> Result<String, String> {
    let net = network(scene)?;
    let link = [("s1".to_owned(), "s2".to_owned())];
    net.cut(&link, Duration::from_secs(5)).map_err(|e| e.to_string())?;
    net.probe("s1", "s2").map_err(|e| e.to_string())?;
    let dropped = net.dropped(&link).map_err(|e| e.to_string())?[0];
    net.heal(&link).map_err(|e| e.to_string())?;
    if dropped > 0 { Ok(format!("a cut link dropped {dropped} packets")) } else { Err("a cut link dropped nothing".into()) }
}

/// The round trip of a TCP handshake from the clients to a namespace.
fn round_trip(net: &Net, name: &str) -> Result<Duration, String> {
    let address = (net::address(name), 5_000);
    let (ready, told) = std::sync::mpsc::sync_channel(1);
    let server = {
        let net = net.clone();
        let name = name.to_owned();
        std::thread::spawn(move || {
            net.inside(&name, move || {
                let listener = std::net::TcpListener::bind(address)?;
                let _ = ready.send(());
                listener.accept().map(drop)
            })
        })
    };
    told.recv().map_err(|_| "the listener did not start".to_owned())?;
    let took = net.inside(CLIENTS, move || {
        let env = SystemEnv::new();
        let start = env.now_mono();
        std::net::TcpStream::connect(address)?;
        Ok(env.now_mono().since(start))
    });
    let _ = server.join();
    took.map_err(|e| e.to_string())
}

fn queue(scene: &Scene) -> Result<String, String> {
    if !scene.netns_file("s1").exists() {
        return Err("there are no network namespaces".into());
    }
    let net = Net::of(scene);
    delayer::prepare(&net.enter("s2")).map_err(|e| e.to_string())?;
    let before = round_trip(&net, "s2")?;
    let by = Duration::from_millis(40);
    let delaying = {
        let net = net.clone();
        std::thread::spawn(move || net.inside("s2", move || delayer::run(by, Duration::ZERO, Duration::from_secs(1), 1, || ())))
    };
    // The queue is open as soon as packets are late; a few tries at most.
    let mut during = before;
    for _ in 0..20 {
        during = round_trip(&net, "s2")?;
        if during >= by || delaying.is_finished() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    delaying.join().map_err(|_| "the delaying thread panicked".to_owned())?.map_err(|e| e.to_string())?;
    let (was, is) = (before.as_micros(), during.as_micros());
    if during >= by { Ok(format!("a round trip took {is} us, {was} us before")) } else { Err(format!("a round trip still took {is} us")) }
}

fn fuse(scene: &Scene) -> Result<String, String> {
    let disk = LossyFs::mount(&scene.dir.join("doctor-fuse")).map_err(|e| e.to_string())?;
    let disk = Disk::Fuse(Arc::new(disk));
    let prove = || {
        disk.mark().map_err(|e| e.to_string())?;
        let sentinel = disk.write_sentinel("doctor").map_err(|e| e.to_string())?;
        disk.power_on(Unsynced::Drop, &mut Dice::new(1, "doctor")).map_err(|e| e.to_string())?;
        sentinel.prove()
    };
    let proof = prove();
    if let Some(fs) = disk.lossy() {
        fs.unmount().map_err(|e| e.to_string())?;
    }
    proof
}
