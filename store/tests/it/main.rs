//! A whole store member, seen from outside: through etcd's own client, and beside etcd itself.

mod differential;
mod etcd;
mod etcdctl;
mod member;
