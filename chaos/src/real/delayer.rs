//! Delay without netem: packets that a namespace sends are queued by the kernel (NFQUEUE) to a process that holds each for its time.
//!
//! The rule that queues them is there from the beginning, with `bypass`: while nobody reads the queue, the kernel lets packets pass at once.
//! So the fault is this process, and ends with it, however it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use kontiki_base::env::{Env, Mono};
use kontiki_proto::env::SystemEnv;
use nfq::{Message, Queue, Verdict};

use super::tool::{self, ToolError};
use crate::plan::Dice;

/// The queue's number, in its own namespace.
const QUEUE: u16 = 7;

/// Packets that wait at once; more are dropped by the kernel, as a full buffer of a router does.
const WAITING: u32 = 8_192;

/// How often the queue is looked at while packets wait.
const TICK: Duration = Duration::from_micros(200);

/// Adds the rule to the namespace that `enter` enters.
///
/// # Errors
/// The kernel or iptables cannot do it.
pub(crate) fn prepare(enter: &[String]) -> Result<(), ToolError> {
    let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
    let number = QUEUE.to_string();
    words.extend(["iptables", "-w", "-A", "OUTPUT", "-o", "eth0", "-j", "NFQUEUE", "--queue-num", &number, "--queue-bypass"]);
    tool::run(&words).map(drop)
}

/// The delaying process: holds packets until `hold` is over. Calls `ready` when the queue is open.
///
/// # Errors
/// The queue cannot be opened.
pub(crate) fn run(by: Duration, jitter: Duration, hold: Duration, seed: u64, ready: impl FnOnce()) -> std::io::Result<()> {
    let env = SystemEnv::new();
    let mut queue = Queue::open()?;
    queue.bind(QUEUE)?;
    queue.set_queue_max_len(QUEUE, WAITING)?;
    queue.set_fail_open(QUEUE, true)?;
    // Packets come whole, as the sender made them: segmenting them would change the timing.
    queue.set_recv_gso(QUEUE, true)?;
    queue.set_nonblocking(true);
    let mut dice = Dice::new(seed, "delay");
    let mut waiting: BTreeMap<(Mono, u64), Message> = BTreeMap::new();
    let mut number = 0;
    let end = env.now_mono().plus(hold);
    ready();
    loop {
        let now = env.now_mono();
        loop {
            match queue.recv() {
                Ok(message) => {
                    number += 1;
                    let due = now.plus(by + dice.between(Duration::ZERO, jitter));
                    waiting.insert((due, number), message);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // Packets were dropped because they came too fast: TCP will send them again.
                Err(e) if e.raw_os_error() == Some(105) => {}
                Err(e) => return Err(e),
            }
        }
        let over = now >= end;
        while let Some(entry) = waiting.first_entry().filter(|e| over || e.key().0 <= now) {
            let mut message = entry.remove();
            message.set_verdict(Verdict::Accept);
            queue.verdict(message)?;
        }
        if over {
            return Ok(());
        }
        std::thread::sleep(TICK);
    }
}
