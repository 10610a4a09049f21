//! What a client may leave out. Each function runs after every decode, is idempotent, and fills in what kube-apiserver's decoder
//! does (`pkg/apis/*/v1/defaults.go`).

pub mod cluster;
pub mod network;
pub mod pod;
pub mod workload;
