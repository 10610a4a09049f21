//! Network namespaces: one for each server, each node and the clients, joined by a bridge in a namespace that is the switch. Nothing of it
//! touches the machine's own network, so runs do not meet, whatever their addresses are.
//!
//! Faults of the network are elements of sets in one nft table of the switch (family bridge). Elements carry a timeout that the kernel
//! keeps: a cut ends by itself, whoever lives to see it. Changes are one transaction each.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::scene::Scene;
use super::tool::{self, ToolError};

/// The namespace with the bridge.
const SWITCH: &str = "sw";

/// The clients' namespace.
pub(crate) const CLIENTS: &str = "ctl";

/// The clients' address.
pub(crate) const CLIENTS_IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 250);

/// Nobody listens here: datagrams to it are probes that only count.
const PROBE_PORT: u16 = 9;

/// The table. Counters and verdicts of parameters that change are in chains of their own.
const TABLE: &str = "table bridge chaos {
  set cut { type ipv4_addr . ipv4_addr; flags timeout; counter; }
  set lossy { type ipv4_addr; flags timeout; }
  set thin { type ipv4_addr; flags timeout; }
  counter lost { }
  counter thinned { }
  chain loss { }
  chain rate { }
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip saddr . ip daddr @cut drop
    ip saddr @lossy jump loss
    ip daddr @lossy jump loss
    ip saddr @thin jump rate
    ip daddr @thin jump rate
  }
}
";

/// The network of a run.
#[derive(Clone, Debug)]
pub(crate) struct Net {
    scene: Scene,
}

/// The address of a server (`s1`…) or node (`n1`…).
pub(crate) fn address(short: &str) -> Ipv4Addr {
    let number = short.get(1..).and_then(|n| n.parse::<u8>().ok()).unwrap_or(0);
    let base = if short.starts_with('n') { 100 } else { 10 };
    if short == CLIENTS { CLIENTS_IP } else { Ipv4Addr::new(10, 99, 0, base + number) }
}

impl Net {
    /// The network that was made at this place.
    pub(crate) fn of(scene: &Scene) -> Self {
        Self { scene: scene.clone() }
    }

    /// Makes the switch and a namespace for each name.
    ///
    /// # Errors
    /// A tool failed; what was made is removed with the scene.
    pub(crate) fn make(scene: &Scene, names: &[String]) -> Result<Self, ToolError> {
        let net = Self { scene: scene.clone() };
        let switch = scene.netns(SWITCH);
        tool::line(&format!("ip netns add {switch}"))?;
        // Without spanning tree a port forwards at once.
        tool::line(&format!("ip -n {switch} link add br0 type bridge forward_delay 0"))?;
        tool::line(&format!("ip -n {switch} link set br0 up"))?;
        for name in names.iter().map(String::as_str).chain([CLIENTS]) {
            net.plug(name, &switch)?;
        }
        net.nft(TABLE)?;
        Ok(net)
    }

    fn plug(&self, name: &str, switch: &str) -> Result<(), ToolError> {
        let (netns, ip) = (self.scene.netns(name), address(name));
        tool::line(&format!("ip netns add {netns}"))?;
        tool::line(&format!("ip -n {netns} link set lo up"))?;
        tool::line(&format!("ip link add eth0 netns {netns} type veth peer name {name} netns {switch}"))?;
        tool::line(&format!("ip -n {switch} link set dev {name} master br0 up"))?;
        tool::line(&format!("ip -n {netns} addr add {ip}/24 dev eth0"))?;
        tool::line(&format!("ip -n {netns} link set eth0 up"))?;
        Ok(())
    }

    /// The words that run a command in a namespace.
    pub(crate) fn enter(&self, name: &str) -> Vec<String> {
        vec!["nsenter".into(), format!("--net={}", self.scene.netns_file(name).display()), "--".into()]
    }

    /// One transaction in the switch.
    fn nft(&self, script: &str) -> Result<String, ToolError> {
        let enter = self.enter(SWITCH);
        let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
        words.extend(["nft", "-f", "-"]);
        tool::run_with(&words, script)
    }

    fn nft_list(&self, what: &str) -> Result<String, ToolError> {
        let enter = self.enter(SWITCH);
        let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
        words.extend(["nft", "list"]);
        words.extend(what.split(' '));
        tool::run(&words)
    }

    /// Cuts directed links for a time.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn cut(&self, links: &[(String, String)], hold: Duration) -> Result<(), ToolError> {
        let mut script = String::new();
        for (from, to) in links {
            let pair = format!("{} . {}", address(from), address(to));
            // An element that is there keeps its old timeout, so it is made anew.
            let _ = writeln!(script, "add element bridge chaos cut {{ {pair} }}\ndelete element bridge chaos cut {{ {pair} }}");
            let _ = writeln!(script, "add element bridge chaos cut {{ {pair} timeout {}ms }}", hold.as_millis().max(1));
        }
        self.nft(&script).map(drop)
    }

    /// Heals directed links now.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn heal(&self, links: &[(String, String)]) -> Result<(), ToolError> {
        let mut script = String::new();
        for (from, to) in links {
            let pair = format!("{} . {}", address(from), address(to));
            let _ = writeln!(script, "add element bridge chaos cut {{ {pair} }}\ndelete element bridge chaos cut {{ {pair} }}");
        }
        self.nft(&script).map(drop)
    }

    /// How many packets each cut link has dropped; links that are not cut any more are not counted.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn dropped(&self, links: &[(String, String)]) -> Result<Vec<u64>, ToolError> {
        let text = self.nft_list("set bridge chaos cut")?;
        Ok(links.iter().map(|(from, to)| packets_after(&text, &format!("{} . {}", address(from), address(to)))).collect())
    }

    /// Loses a share of a namespace's packets for a time.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn lose(&self, name: &str, percent: u8, hold: Duration) -> Result<(), ToolError> {
        self.shape("loss", "lossy", name, &format!("numgen random mod 100 < {percent} counter name lost drop"), hold)
    }

    /// Limits a namespace's link for a time.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn thin(&self, name: &str, kbytes: u32, hold: Duration) -> Result<(), ToolError> {
        self.shape("rate", "thin", name, &format!("limit rate over {kbytes} kbytes/second counter name thinned drop"), hold)
    }

    fn shape(&self, chain: &str, set: &str, name: &str, rule: &str, hold: Duration) -> Result<(), ToolError> {
        let ip = address(name);
        let script = format!(
            "flush chain bridge chaos {chain}\nadd rule bridge chaos {chain} {rule}\nadd element bridge chaos {set} {{ {ip} }}\n\
             delete element bridge chaos {set} {{ {ip} }}\nadd element bridge chaos {set} {{ {ip} timeout {}ms }}\n",
            hold.as_millis().max(1)
        );
        self.nft(&script).map(drop)
    }

    /// The counter `lost` or `thinned`.
    ///
    /// # Errors
    /// nft refuses.
    pub(crate) fn counter(&self, name: &str) -> Result<u64, ToolError> {
        Ok(packets_after(&self.nft_list(&format!("counter bridge chaos {name}"))?, ""))
    }

    /// Sends a few datagrams along a link, so that a cut has something to drop.
    ///
    /// # Errors
    /// The namespace is gone.
    pub(crate) fn probe(&self, from: &str, to: &str) -> std::io::Result<()> {
        let target = (address(to), PROBE_PORT);
        self.inside(from, move || {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            for _ in 0..3 {
                socket.send_to(b"probe", target)?;
            }
            Ok(())
        })
    }

    /// Runs something on a thread of its own inside a namespace.
    ///
    /// # Errors
    /// What it returns; or the namespace is gone.
    pub(crate) fn inside<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let file = std::fs::File::open(self.scene.netns_file(name))?;
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread.join().map_err(|_| std::io::Error::other("the thread panicked"))?
    }

    /// A runtime whose threads are in the clients' namespace: whatever runs on it reaches the cluster, and nothing else.
    ///
    /// # Errors
    /// Threads cannot be started, or the namespace is gone.
    pub(crate) fn runtime(&self) -> std::io::Result<tokio::runtime::Runtime> {
        let path = self.scene.netns_file(CLIENTS);
        drop(std::fs::File::open(&path)?);
        let enter = move || {
            let entered = std::fs::File::open(&path).map_err(|e| e.to_string());
            if let Err(e) = entered.and_then(|file| setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())) {
                tracing::error!(error = e, "cannot enter the clients' network namespace");
            }
        };
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("chaos").on_thread_start(enter).build()
    }
}

/// The number after `packets` after `mark`.
fn packets_after(text: &str, mark: &str) -> u64 {
    // An address must not be found as the beginning of a longer one.
    let found = text.match_indices(mark).map(|(at, _)| &text[at + mark.len()..]);
    let mut rest = found.filter(|rest| mark.is_empty() || !rest.starts_with(|c: char| c.is_ascii_digit()));
    let Some(rest) = rest.next() else { return 0 };
    let rest = rest.split_once("packets ").map_or("", |(_, rest)| rest);
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_what_nft_prints() {
        let text = "set cut {\n elements = { 10.99.0.11 . 10.99.0.121 counter packets 7 bytes 420 timeout 4s expires 3s,\n\
                    10.99.0.11 . 10.99.0.12 counter packets 12 bytes 99 timeout 4s } }";
        assert_eq!(packets_after(text, "10.99.0.11 . 10.99.0.12"), 12);
        assert_eq!(packets_after(text, "10.99.0.11 . 10.99.0.121"), 7);
        assert_eq!(packets_after(text, "10.99.0.12 . 10.99.0.11"), 0);
        assert_eq!(packets_after("counter lost {\n packets 5 bytes 3\n}", ""), 5);
    }

    #[test]
    fn addresses_do_not_meet() {
        assert_eq!(address("s1"), Ipv4Addr::new(10, 99, 0, 11));
        assert_eq!(address("n50"), Ipv4Addr::new(10, 99, 0, 150));
        assert_eq!(address(CLIENTS), CLIENTS_IP);
    }

    #[test]
    fn a_cut_is_one_way_ends_by_itself_and_leaves_nothing() {
        if !tool::root() || !tool::has("nft") || !tool::has("ip") {
            return;
        }
        let scene = Scene::new(u64::from(std::process::id()).wrapping_mul(0x9e37)).unwrap();
        let net = Net::make(&scene, &["s1".to_owned(), "s2".to_owned()]).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let (there, back) = ([pair("s1", "s2")], [pair("s2", "s1")]);
        net.cut(&there, Duration::from_millis(500)).unwrap();
        net.probe("s1", "s2").unwrap();
        net.probe("s2", "s1").unwrap();
        assert_eq!((net.dropped(&there).unwrap()[0] > 0, net.dropped(&back).unwrap()[0]), (true, 0));
        while net.nft_list("set bridge chaos cut").unwrap().contains("10.99.0.11") {
            std::thread::sleep(Duration::from_millis(50));
        }
        net.lose("s1", 99, Duration::from_secs(5)).unwrap();
        while net.counter("lost").unwrap() == 0 {
            net.probe("s1", "s2").unwrap();
        }
        scene.remove(false).unwrap();
        assert!(!netns_left(&scene) && !scene.dir.exists());
    }

    fn netns_left(scene: &Scene) -> bool {
        ["sw", "s1", "s2", CLIENTS].iter().any(|name| scene.netns_file(name).exists())
    }
}
