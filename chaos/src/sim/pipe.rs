//! One direction of a stream: messages in order, each with its delay; broken for good by a death, a reset or a long silence.

use std::sync::Arc;

use kontiki_base::limits;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::net::{KEEPALIVE, Net};
use super::trace::{Event, Node};

/// What comes out at the far end: messages, then perhaps why there are no more.
pub type Item<T> = Result<T, Broken>;

/// The stream broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The near end.
pub struct In<T> {
    from: Node,
    to: Node,
    net: Arc<Net>,
    tx: mpsc::Sender<(Instant, T)>,
    last_due: Instant,
}

impl<T> In<T> {
    /// Puts a message in; waits while the window is full.
    ///
    /// # Errors
    /// The stream is broken, or nobody reads it any more.
    pub async fn send(&mut self, message: T) -> Result<(), Broken> {
        let due = (Instant::now() + self.net.transit(self.from, self.to)).max(self.last_due);
        self.last_due = due;
        self.tx.send((due, message)).await.map_err(|_| Broken)
    }
}

/// Which direction of a stream a pipe is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From who opened it. A server that has answered may stop reading: its answer arrives all the same (HTTP/2 resets a stream with
    /// `NO_ERROR` behind the answer).
    There,
    /// Its answer. A client that stops reading breaks the stream.
    Back,
}

/// A pipe whose pump runs until either end is dropped. `both` ties the two directions of a stream together: it breaks as a whole.
pub fn pipe<T: Send + 'static>(net: &Arc<Net>, way: Way, from: Node, to: Node, both: &Line) -> (In<T>, mpsc::Receiver<Item<T>>) {
    let (tx, inside) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
    let (outside, rx) = mpsc::channel(limits::RAFT_APPEND_QUEUE);
    let pump = Pump { net: Arc::clone(net), way, from, to, line: both.clone(), inside, outside };
    // The network's own task: it belongs to no process.
    tokio::spawn(pump.run());
    (In { from, to, net: Arc::clone(net), tx, last_due: Instant::now() }, rx)
}

/// What the two directions of a stream share.
#[derive(Clone)]
pub struct Line {
    broken: watch::Sender<bool>,
    lives: (u64, u64),
    ends: (Node, Node),
}

impl Line {
    /// A stream between two nodes as they live now.
    pub fn new(net: &Net, a: Node, b: Node) -> Self {
        Self { broken: watch::Sender::new(false), lives: (net.life(a), net.life(b)), ends: (a, b) }
    }

    fn is_current(&self, net: &Net) -> bool {
        (net.life(self.ends.0), net.life(self.ends.1)) == self.lives
    }
}

struct Pump<T> {
    net: Arc<Net>,
    way: Way,
    from: Node,
    to: Node,
    line: Line,
    inside: mpsc::Receiver<(Instant, T)>,
    outside: mpsc::Sender<Item<T>>,
}

impl<T: Send + 'static> Pump<T> {
    async fn run(self) {
        let Self { net, way, from, to, line, mut inside, outside } = self;
        let mut broken = line.broken.subscribe();
        let whole = tokio::select! {
            biased;
            _ = broken.wait_for(|broken| *broken) => false,
            () = watchdog(&net, &line, from, to) => false,
            () = outside.closed() => way == Way::There,
            carried = carry_all(&net, &line, (from, to), &mut inside, &outside) => carried || way == Way::There,
        };
        if whole {
            return;
        }
        line.broken.send_replace(true);
        net.trace().add(from, Event::Lost, u64::from(to), 1);
        // The reader learns of it unless it has gone; so does the writer, whose channel closes.
        drop(inside);
        drop(outside.send(Err(Broken)).await);
    }
}

/// Carries messages until the writer has ended the stream (true) or the reader has gone (false).
async fn carry_all<T>(
    net: &Net,
    line: &Line,
    (from, to): (Node, Node),
    inside: &mut mpsc::Receiver<(Instant, T)>,
    outside: &mpsc::Sender<Item<T>>,
) -> bool {
    while let Some((due, message)) = inside.recv().await {
        tokio::time::sleep_until(due).await;
        until_open(net, from, to).await;
        net.trace().add(to, Event::Arrive, u64::from(from), 2);
        if outside.send(Ok(message)).await.is_err() {
            return false;
        }
    }
    if !line.is_current(net) {
        // The writer did not end the stream: it died. The watchdog says when that is known.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(net.transit(from, to)).await;
    until_open(net, from, to).await;
    true
}

async fn until_open(net: &Net, from: Node, to: Node) {
    let mut epoch = net.epoch();
    loop {
        epoch.borrow_and_update();
        if net.is_open(from, to) {
            return;
        }
        if epoch.changed().await.is_err() {
            // The world is over.
            std::future::pending::<()>().await;
        }
    }
}

/// Ends when the connection has broken: an end has died, or pings went unanswered for too long.
async fn watchdog(net: &Net, line: &Line, from: Node, to: Node) {
    let mut epoch = net.epoch();
    loop {
        epoch.borrow_and_update();
        if !line.is_current(net) && net.answers_pings(from, to) {
            // The system of the dead process closes its connections; that takes a message.
            tokio::time::sleep(net.transit(from, to)).await;
            return;
        }
        if !net.answers_pings(from, to) || !line.is_current(net) {
            let healed = async {
                while !net.answers_pings(from, to) {
                    if epoch.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            if tokio::time::timeout(KEEPALIVE, healed).await.is_err() {
                return;
            }
            continue;
        }
        if epoch.changed().await.is_err() {
            // The world is over.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::Trace;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_arrives_though_its_sender_has_stopped_reading() {
        let net = Net::new(1, Arc::new(Trace::new(false)));
        let line = Line::new(&net, 0, 1);
        let (mut request, served) = pipe(&net, Way::There, 0, 1, &line);
        let (mut answer, mut answered) = pipe(&net, Way::Back, 1, 0, &line);
        request.send("question").await.unwrap();
        drop(served);
        answer.send("answer").await.unwrap();
        drop(answer);
        assert_eq!(answered.recv().await, Some(Ok("answer")));
        assert_eq!(answered.recv().await, None);
        assert_eq!(request.send("more").await, Err(Broken), "nobody reads it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_breaks_the_stream() {
        let net = Net::new(1, Arc::new(Trace::new(false)));
        let line = Line::new(&net, 0, 1);
        let (request, mut served) = pipe::<&str>(&net, Way::There, 0, 1, &line);
        let (_answer, answered) = pipe::<&str>(&net, Way::Back, 1, 0, &line);
        drop(answered);
        assert_eq!(served.recv().await, Some(Err(Broken)));
        drop(request);
    }
}
