//! Faults of the network.

use std::process::Stdio;
use std::time::Duration;

use super::{Miss, Proof, Stage, Victims};
use crate::fault::{Direction, Plane, Shape};
use crate::plan::Dice;
use crate::real::net::{CLIENTS, Net};

/// The kernel ends a cut this much after the harness should have, if the harness did not.
const LEASE: Duration = Duration::from_secs(5);

type Link = (String, String);

/// Links from each of `a` to each of `b`.
fn between(a: &[String], b: &[String]) -> Vec<Link> {
    a.iter().flat_map(|x| b.iter().map(move |y| (x.clone(), y.clone()))).filter(|(x, y)| x != y).collect()
}

fn directed(direction: Direction, targets: &[String], others: &[String]) -> Vec<Link> {
    let (out, back) = (between(targets, others), between(others, targets));
    match direction {
        Direction::Both => out.into_iter().chain(back).collect(),
        Direction::Out => out,
        Direction::In => back,
    }
}

impl Stage {
    fn net(&self) -> Result<&Net, Miss> {
        let why = self.world.lacks.netns.clone().unwrap_or_else(|| "there is no network of our own".into());
        self.world.net.as_ref().ok_or(Miss::Skipped(why))
    }

    fn short(&self, server: usize) -> String {
        self.world.servers[server].short.clone()
    }

    /// The directed links that a partition cuts.
    fn links(&self, victims: &Victims, shape: Shape, direction: Direction, plane: Plane, dice: &mut Dice) -> Vec<Link> {
        let all: Vec<usize> = (0..self.world.servers.len()).collect();
        let rest: Vec<usize> = all.iter().copied().filter(|s| !victims.servers.contains(s)).collect();
        let names = |of: &[usize]| of.iter().map(|s| self.short(*s)).collect::<Vec<_>>();
        let outside: Vec<String> = self.world.nodes.iter().map(|n| n.short.clone()).chain([CLIENTS.to_owned()]).collect();
        let (side, other) = match shape {
            Shape::Isolate => (names(&victims.servers), names(&rest)),
            Shape::Halves => {
                // The target and as many others as still make a minority.
                let more = usize::from(self.plan.survives()).saturating_sub(victims.servers.len());
                let mut side = victims.servers.clone();
                side.extend(dice.choose(&rest, more));
                let other: Vec<usize> = all.iter().copied().filter(|s| !side.contains(s)).collect();
                (names(&side), names(&other))
            }
            Shape::Bridge => {
                let half = dice.choose(&rest, rest.len() / 2);
                let other: Vec<usize> = rest.iter().copied().filter(|s| !half.contains(s)).collect();
                (names(&half), names(&other))
            }
        };
        let peers = directed(direction, &side, &other);
        // A bridge is between members: its target is cut from nobody.
        let clients = if shape == Shape::Bridge { vec![] } else { directed(direction, &side, &outside) };
        match plane {
            Plane::Peers => peers,
            Plane::Clients => clients,
            Plane::All => peers.into_iter().chain(clients).collect(),
        }
    }

    pub(super) async fn partition(&self, victims: &Victims, cut: (Shape, Direction, Plane), hold: Duration, dice: &mut Dice) -> Proof {
        let net = self.net()?.clone();
        let (shape, direction, plane) = cut;
        let links = self.links(victims, shape, direction, plane, dice);
        if links.is_empty() {
            return Err(Miss::Skipped("this shape cuts nothing in a cluster of this size".into()));
        }
        net.cut(&links, hold + LEASE)?;
        let probed = {
            let (net, links) = (net.clone(), links.clone());
            let probe = move || links.iter().try_for_each(|(from, to)| net.probe(from, to));
            tokio::task::spawn_blocking(probe).await
        };
        let counts = net.dropped(&links);
        self.run.env.sleep(hold).await;
        net.heal(&links)?;
        probed??;
        let counts = counts?;
        let silent: Vec<&Link> = links.iter().zip(&counts).filter(|(_, n)| **n == 0).map(|(link, _)| link).collect();
        if silent.is_empty() {
            return Ok(format!("{} directed links dropped every probe ({} packets)", links.len(), counts.iter().sum::<u64>()));
        }
        Err(Miss::Unproved(format!("links that dropped nothing: {silent:?}")))
    }

    pub(super) async fn loss(&self, victims: &Victims, percent: u8, hold: Duration) -> Proof {
        let net = self.net()?;
        let before = net.counter("lost")?;
        for server in &victims.servers {
            net.lose(&self.short(*server), percent, hold)?;
        }
        self.run.env.sleep(hold).await;
        let lost = net.counter("lost")?.saturating_sub(before);
        if lost > 0 { Ok(format!("{lost} packets were lost")) } else { Err(Miss::Unproved("no packet was lost".into())) }
    }

    pub(super) async fn bandwidth(&self, victims: &Victims, kbytes: u32, hold: Duration) -> Proof {
        let net = self.net()?;
        let before = net.counter("thinned")?;
        for server in &victims.servers {
            net.thin(&self.short(*server), kbytes, hold)?;
        }
        self.run.env.sleep(hold).await;
        let over = net.counter("thinned")?.saturating_sub(before);
        if over > 0 {
            Ok(format!("{over} packets were over {kbytes} kB/s"))
        } else {
            Err(Miss::Unproved("the limit was never reached".into()))
        }
    }

    /// The round trip of a TCP handshake with a server's client port.
    async fn round_trip(&self, server: usize) -> Result<Duration, Miss> {
        let start = self.run.env.now_mono();
        let connected =
            tokio::time::timeout(Duration::from_secs(5), tokio::net::TcpStream::connect(self.world.servers[server].client)).await;
        drop(connected??);
        Ok(self.run.env.now_mono().since(start))
    }

    pub(super) async fn delay(&self, victims: &Victims, by: Duration, jitter: Duration, hold: Duration, dice: &mut Dice) -> Proof {
        let net = self.net()?;
        if let Some(why) = &self.world.lacks.queue {
            return Err(Miss::Skipped(why.clone()));
        }
        let [server] = victims.servers.as_slice() else { return Err(Miss::Skipped("one server at a time".into())) };
        let before = self.round_trip(*server).await?;
        let mut words = net.enter(&self.short(*server));
        words.push(std::env::current_exe()?.display().to_string());
        words.extend(["chaos".into(), "delayer".into()]);
        let ms = |d: Duration| d.as_millis().to_string();
        words.extend([ms(by), ms(jitter), ms(hold), dice.next_u64().to_string()]);
        let mut command = tokio::process::Command::new(&words[0]);
        command.args(&words[1..]).env(crate::real::scene::VARIABLE, &self.world.scene.id).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.kill_on_drop(true).process_group(0).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            use tokio::io::AsyncBufReadExt as _;
            let mut reader = tokio::io::BufReader::new(stdout);
            let _ = tokio::time::timeout(Duration::from_secs(5), reader.read_line(&mut line)).await;
        }
        let during = self.round_trip(*server).await;
        let ended = tokio::time::timeout(hold + LEASE, child.wait()).await;
        let _ = child.start_kill();
        let status = ended??;
        let during = during?;
        if !status.success() {
            return Err(Miss::Unproved(format!("the delaying process ended with {status}")));
        }
        let (was, is) = (before.as_millis(), during.as_millis());
        if during >= by {
            Ok(format!("a round trip took {is} ms, {was} ms before"))
        } else {
            Err(Miss::Unproved(format!("a round trip took {is} ms")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_seen_from_the_target() {
        let (a, b) = (vec!["s1".to_owned()], vec!["s2".to_owned(), "s3".to_owned()]);
        let pair = |x: &str, y: &str| (x.to_owned(), y.to_owned());
        assert_eq!(directed(Direction::Out, &a, &b), [pair("s1", "s2"), pair("s1", "s3")]);
        assert_eq!(directed(Direction::In, &a, &b), [pair("s2", "s1"), pair("s3", "s1")]);
        assert_eq!(directed(Direction::Both, &a, &b).len(), 4);
    }
}
