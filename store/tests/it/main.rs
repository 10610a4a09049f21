//! A whole store member, seen from outside: through etcd's own client, and beside etcd itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod acceptance;
mod auth;
mod cluster;
mod differential;
mod etcd;
mod etcdctl;
mod full_disk;
mod heal;
mod kube;
mod kv_suite;
mod leadership;
mod member;
mod observed;
mod rotate;
mod snapshot;
mod tls;
mod upkeep;
mod users;
mod verify;
