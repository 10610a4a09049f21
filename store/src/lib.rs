//! One replicated, watchable, revisioned map, with etcd v3 on the wire.
//!
//! | module | what it holds |
//! |---|---|
//! | [`server`] | a whole member, composed |
//! | [`inside`] | the same without ports, disks and networks of its own: for simulations |
//! | [`config`] | how it is made; `tls` its certificates, `listen` its addresses |
//! | [`flags`] | etcd's flags, as a configuration |
//! | [`auth`] | who a client is: tokens, passwords, certificates |
//! | [`kv`] | the store in process, as the API server sees it |
//! | `grpc`, `http` | the client port: etcd's services; health, version, metrics |
//! | [`service`] | what a member does for its clients, whatever door they come through |
//! | [`propose`] | writes on their way into the log |
//! | [`read`] | reads |
//! | [`watch`] | watches |
//! | [`room`] | quota, free disk, alarms |
//! | [`compactor`] | history that goes by itself |
//! | [`lease`], [`expiry`] | leases; their time, which only the leader has |
//! | [`raft`] | consensus, behind one trait |
//! | `heal` | replaces a voter that is gone for good |
//! | [`log`] | the Raft log: segments of records that are synced in groups |
//! | [`engine`] | the state machine's records on disk |
//! | [`net`] | the members among themselves |
//! | [`snapshot`] | snapshots as files, in etcd's format |
//! | [`verify`] | a data directory that nobody runs on, looked at |
//! | [`metrics`], [`meter`], `process` | what is counted; what measures disks and networks; what the system counts |
//! | [`why`] | why the leader changed: what members saw of elections, joined |
//! | [`error`] | what can go wrong with a member as a whole |

pub mod auth;
pub mod compactor;
pub mod config;
pub mod engine;
pub mod error;
pub mod expiry;
pub mod flags;
mod grpc;
mod heal;
mod http;
pub mod inside;
pub mod kv;
pub mod lease;
mod listen;
pub mod log;
pub mod meter;
pub mod metrics;
pub mod net;
mod process;
pub mod propose;
pub mod raft;
pub mod read;
pub mod room;
pub mod server;
pub mod service;
pub mod snapshot;
#[cfg(test)]
mod testing;
mod tls;
pub mod verify;
pub mod watch;
pub mod why;
