//! The simulated world: real members of the store, real etcd clients, and everything under them simulated in one thread.
//!
//! | file | what it holds |
//! |---|---|
//! | [`rng`] | streams of random numbers, one for each thing that draws |
//! | [`trace`] | every event, as one running hash |
//! | [`rt`] | processes: tasks, clocks, pauses, deaths |
//! | [`net`], [`pipe`] | messages and connections between processes |
//! | [`peers`], [`http`] | what members and clients see of the network |
//! | [`world`] | members on machines |
//! | [`oracle`] | the invariants of consensus, from inside, at every step |
//! | [`load`], [`choice`], [`watcher`], [`ask`] | clients that record: their ways, what they ask, what they watch, and one operation of them |
//! | [`kube`] | the control plane on it: API servers, controllers, scheduler, nodes, and their clients |
//! | [`schedule`] | what goes wrong when, as data; from a seed |
//! | [`plan`] | the schedule of a plan file: the same that runs on real processes |
//! | [`nemesis`] | carries it out |
//! | [`run`] | one run from beginning to verdict |
//! | [`shrink`] | the smallest schedule that still fails |
//! | [`cli`] | `kontiki chaos sim` and `kontiki chaos replay` |
//!
//! The same schedule gives the same run, event by event: on one thread with a clock that jumps, with every random choice from the seed.

pub mod ask;
pub mod choice;
pub mod cli;
pub mod http;
pub mod kube;
pub mod load;
pub mod nemesis;
pub mod net;
pub mod oracle;
pub mod peers;
pub mod pipe;
pub mod plan;
pub mod rng;
pub mod rt;
pub mod run;
pub mod schedule;
pub mod shrink;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod watcher;
pub mod world;
