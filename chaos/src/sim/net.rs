//! The simulated network: messages with delays between processes, over connections that behave as TCP's do.
//!
//! What a network does to packets, the protocols above turn into other things, and those are what is simulated. A lost packet is sent
//! again, so its message is late. A link that is cut is silent: whoever waits finds out by its own patience, and a connection whose pings
//! are not answered breaks. A process that dies closes its connections after one delay, and its machine refuses new ones; a machine
//! without power does neither. Messages of one stream keep their order; calls overtake each other. Some kinds of calls may arrive twice:
//! those that a transport may repeat without asking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kontiki_base::net::PeerHandler;
use kontiki_store::net::{PING_EVERY, PING_TIMEOUT};
use tokio::sync::watch;

use super::rng::Stream;
use super::rt::Proc;
use super::trace::{Event, Node, Trace};

/// A link in one direction.
struct Link {
    random: Stream,
    /// Bounds of the delay of a message.
    delay: (Duration, Duration),
    /// Messages in a million whose packets are lost at first.
    loss: u32,
    /// Calls in a million that arrive twice, if they are of a kind that may.
    duplicate: u32,
    cut: bool,
}

/// A process that can be reached.
#[derive(Clone)]
pub struct Site {
    /// The process.
    pub process: Arc<Proc>,
    /// What answers its peers, once it has started.
    pub peers: Option<Arc<dyn PeerHandler>>,
    /// What answers the store's clients, once it has started.
    pub router: Option<axum::Router>,
    /// What answers the API's clients, if it has an API server.
    pub api: Option<axum::Router>,
}

struct Inner {
    links: BTreeMap<(Node, Node), Link>,
    sites: BTreeMap<Node, Site>,
    /// Counts the lives of a node's processes.
    lives: BTreeMap<Node, u64>,
    /// Machines without power: they are silent.
    dark: BTreeSet<Node>,
    seed: u64,
    sent: u64,
    lost: u64,
}

/// The network of one world.
pub struct Net {
    inner: Mutex<Inner>,
    /// Changes whenever a link or a process does.
    epoch: watch::Sender<u64>,
    trace: Arc<Trace>,
}

/// Why a message did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Nothing comes back: find out by waiting.
    Silent,
    /// The connection broke, or its peer was not there to take it.
    Reset,
    /// The machine is there, and nobody listens.
    Refused,
}

/// What links are like unless a fault says otherwise.
const USUAL: (Duration, Duration) = (Duration::from_micros(200), Duration::from_micros(1_800));

/// TCP sends again after this long, then after twice as long, up to a second.
const RESEND: Duration = Duration::from_millis(200);

/// A connection lives on through silence that is shorter.
pub const KEEPALIVE: Duration = PING_EVERY.saturating_add(PING_TIMEOUT);

impl Link {
    fn new(seed: u64, from: Node, to: Node) -> Self {
        let random = Stream::new(seed, "link", (u64::from(from) << 16) | u64::from(to));
        Self { random, delay: USUAL, loss: 0, duplicate: 0, cut: false }
    }

    /// How long the next message takes, resent packets included.
    fn transit(&mut self) -> Duration {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let mut takes = Duration::from_micros(self.random.between(micros(self.delay.0), micros(self.delay.1)));
        let mut again = RESEND;
        while self.random.chance(self.loss) && takes < Duration::from_secs(5) {
            takes += again;
            again = (again * 2).min(Duration::from_secs(1));
        }
        takes
    }
}

impl Net {
    /// A network on which everybody reaches everybody.
    pub fn new(seed: u64, trace: Arc<Trace>) -> Arc<Self> {
        let inner =
            Inner { links: BTreeMap::new(), sites: BTreeMap::new(), lives: BTreeMap::new(), dark: BTreeSet::new(), seed, sent: 0, lost: 0 };
        Arc::new(Self { inner: Mutex::new(inner), epoch: watch::Sender::new(0), trace })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The trace of the world.
    pub const fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    /// A process is on the network; it answers nothing yet.
    pub fn join(&self, process: &Arc<Proc>) {
        let site = Site { process: Arc::clone(process), peers: None, router: None, api: None };
        let mut inner = self.lock();
        inner.dark.remove(&process.node());
        inner.sites.insert(process.node(), site);
    }

    /// From now on a process answers.
    pub fn listen(&self, process: &Arc<Proc>, peers: Option<Arc<dyn PeerHandler>>, router: Option<axum::Router>) {
        let mut inner = self.lock();
        if let Some(site) = inner.sites.get_mut(&process.node()).filter(|site| Arc::ptr_eq(&site.process, process)) {
            site.peers = peers;
            site.router = router;
        }
    }

    /// From now on the API server of a process answers.
    pub fn open_api(&self, process: &Arc<Proc>, router: axum::Router) {
        let mut inner = self.lock();
        if let Some(site) = inner.sites.get_mut(&process.node()).filter(|site| Arc::ptr_eq(&site.process, process)) {
            site.api = Some(router);
        }
    }

    /// A process has died; with `dark`, its machine with it.
    pub fn leave(&self, node: Node, dark: bool) {
        {
            let mut inner = self.lock();
            inner.sites.remove(&node);
            *inner.lives.entry(node).or_default() += 1;
            if dark {
                inner.dark.insert(node);
            }
        }
        self.changed();
    }

    /// The process on a node, if there is one.
    pub fn site(&self, node: Node) -> Option<Site> {
        self.lock().sites.get(&node).cloned()
    }

    /// Which life of a node's processes this is.
    pub fn life(&self, node: Node) -> u64 {
        self.lock().lives.get(&node).copied().unwrap_or(0)
    }

    /// Changes the link from one node to another.
    fn edit(&self, from: Node, to: Node, edit: impl FnOnce(&mut Link)) {
        let mut inner = self.lock();
        let seed = inner.seed;
        edit(inner.links.entry((from, to)).or_insert_with(|| Link::new(seed, from, to)));
    }

    /// Cuts or mends a link in one direction.
    pub fn set_cut(&self, from: Node, to: Node, cut: bool) {
        self.edit(from, to, |link| link.cut = cut);
        self.changed();
    }

    /// Sets the bounds of the delay in one direction; `None`: as usual.
    pub fn set_delay(&self, from: Node, to: Node, bounds: Option<(Duration, Duration)>) {
        self.edit(from, to, |link| link.delay = bounds.unwrap_or(USUAL));
    }

    /// Sets how many messages in a million are lost at first, and how many calls come twice, in one direction.
    pub fn set_loss(&self, from: Node, to: Node, loss: u32, duplicate: u32) {
        self.edit(from, to, |link| (link.loss, link.duplicate) = (loss, duplicate));
    }

    /// Breaks all connections of a node, as a middlebox does.
    pub fn reset(&self, node: Node) {
        *self.lock().lives.entry(node).or_default() += 1;
        self.changed();
    }

    fn changed(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Changes whenever a link or a process does.
    pub fn epoch(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// Messages sent, and messages that never arrived.
    pub fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.sent, inner.lost)
    }

    /// How long the next message takes.
    pub fn transit(&self, from: Node, to: Node) -> Duration {
        let mut takes = Duration::ZERO;
        self.edit(from, to, |link| takes = link.transit());
        self.lock().sent += 1;
        takes
    }

    /// Whether the next call comes twice.
    pub fn comes_twice(&self, from: Node, to: Node) -> bool {
        let mut twice = false;
        self.edit(from, to, |link| {
            twice = {
                let rate = link.duplicate;
                link.random.chance(rate)
            }
        });
        twice
    }

    /// Whether packets go through now.
    pub fn is_open(&self, from: Node, to: Node) -> bool {
        let inner = self.lock();
        !inner.links.get(&(from, to)).is_some_and(|link| link.cut)
    }

    /// Whether pings on a connection are answered now: both directions open, and the process at the far end running.
    pub fn answers_pings(&self, from: Node, to: Node) -> bool {
        let inner = self.lock();
        let cut = |a, b| inner.links.get(&(a, b)).is_some_and(|link| link.cut);
        !cut(from, to) && !cut(to, from) && !inner.dark.contains(&to)
    }

    fn is_dark(&self, node: Node) -> bool {
        self.lock().dark.contains(&node)
    }

    /// Takes a message to a node: ends when it is there. Packets that meet a cut are sent again until `patience` is over.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn carry(&self, from: Node, to: Node, patience: Duration) -> Result<Site, Gone> {
        let begun = tokio::time::Instant::now();
        let life = self.life(to);
        tokio::time::sleep(self.transit(from, to)).await;
        let mut again = RESEND;
        while !self.is_open(from, to) {
            if begun.elapsed() >= patience {
                self.lock().lost += 1;
                self.trace.add(from, Event::Lost, u64::from(to), 0);
                return Err(Gone::Silent);
            }
            tokio::time::sleep(again).await;
            again = (again * 2).min(Duration::from_secs(1));
        }
        if let Some(site) = self.site(to) {
            // Another process than the one it was sent to knows nothing of the connection.
            return if self.life(to) == life { Ok(site) } else { Err(Gone::Reset) };
        }
        let dark = self.is_dark(to);
        // The answer of its machine takes the way back.
        if dark || !self.is_open(to, from) {
            tokio::time::sleep(patience.saturating_sub(begun.elapsed())).await;
            return Err(Gone::Silent);
        }
        tokio::time::sleep(self.transit(to, from)).await;
        Err(Gone::Refused)
    }
}
