//! `kontiki snapshot`: its commands and their flags.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// `kontiki snapshot`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: SnapshotCommand,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save the state of a running store, ours or etcd's
    ///
    /// The file has etcd's own format: etcdctl and etcdutl read it, and an etcd can be restored from it. It holds everything that
    /// was acknowledged before the command, as of one revision; the store goes on working. The file gets its name when it is whole, its hash
    /// fits and it is on the disk: until then it is FILE.part, and nothing that was there is touched. Buckets (S3) are not
    /// built in: copy the files with a tool of your choice.
    ///
    ///   kontiki snapshot save backup.db --endpoints https://10.0.0.1:2379 --cacert ca.pem --cert me.pem --key me-key.pem
    ///   kontiki snapshot save /var/backups/kontiki --every 1h --keep 48
    #[command(verbatim_doc_comment)]
    Save(SaveArgs),
    /// Say what a snapshot file holds: hash, revision, keys, size, version
    Status(StatusArgs),
    /// Make the data directory of a member of a NEW cluster from a snapshot file, ours or etcd's
    ///
    /// Every member of the new cluster is restored from the SAME file, each with its own --name and the same --initial-cluster and
    /// --initial-cluster-token; then all are started with these flags. What is not restored must start with an empty directory and be added.
    ///
    /// By default revisions go on far beyond those in the file (--bump-revision), and the history before is marked compacted. A restored
    /// cluster would otherwise give revisions out again that API servers and controllers have seen since the snapshot was taken, and they would
    /// wait for changes that never come; so, they are told that their revisions are gone, and list anew. Do not switch this off
    /// for a Kubernetes cluster. `--bump-revision 0` restores as etcd does by default: every number as it is in the file.
    ///
    ///   kontiki snapshot restore backup.db --data-dir /var/lib/kontiki --name a \
    ///     --initial-cluster a=http://10.0.0.1:2380,b=http://10.0.0.2:2380,c=http://10.0.0.3:2380
    #[command(verbatim_doc_comment)]
    Restore(RestoreArgs),
    /// Move from a running etcd: take a snapshot of it, and restore that
    ///
    /// Stop whatever writes to etcd first (API servers): writes after the snapshot stay behind. The keys, their numbers, leases,
    /// history, users and roles are taken over; see `restore` for what happens to revisions.
    ///
    ///   kontiki snapshot import --from-etcd https://10.0.0.1:2379 --cacert ca.pem --cert c.pem --key k.pem --data-dir /var/lib/kontiki
    #[command(verbatim_doc_comment)]
    Import(ImportArgs),
}

/// How a store is reached.
#[derive(Debug, Args)]
pub(crate) struct RemoteArgs {
    /// Certificate authority of the store (PEM): for https
    #[arg(long, value_name = "FILE", visible_alias = "ca")]
    pub(crate) cacert: Option<PathBuf>,

    /// Our certificate (PEM), if the store demands one
    #[arg(long, value_name = "FILE", requires = "key")]
    pub(crate) cert: Option<PathBuf>,

    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,

    /// NAME:PASSWORD of a user with the role root, if auth is enabled
    #[arg(long, value_name = "NAME:PASSWORD", env = "KONTIKI_STORE_USER", hide_env_values = true)]
    pub(crate) user: Option<String>,
}

/// `kontiki snapshot save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// Where to: a file; with --every a directory
    #[arg(value_name = "FILE|DIR")]
    pub(crate) to: PathBuf,

    /// Members of the store; the next is tried when one fails
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    pub(crate) endpoints: Vec<String>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,

    /// Go on, and save one at every interval: 30m, 1h, 1d
    ///
    /// Files are named snapshot-<time>.db, in UTC. A save that fails is said and tried again at the next interval.
    #[arg(long, value_name = "INTERVAL", value_parser = interval)]
    pub(crate) every: Option<Duration>,

    /// With --every: keep the newest N, remove older ones after a new one is there
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keep: Option<u32>,
}

/// How something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// One line
    Simple,
    /// A table
    Table,
    /// JSON, with etcdctl's names
    Json,
}

/// `kontiki snapshot status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The file
    pub(crate) file: PathBuf,

    /// How to show it
    #[arg(short = 'w', long, value_enum, default_value_t = Form::Simple)]
    pub(crate) write_out: Form,

    /// Read a file without a hash at its end: one out of a data directory of etcd
    #[arg(long)]
    pub(crate) skip_hash_check: bool,
}

/// Which member of which new cluster.
#[derive(Debug, Args)]
pub(crate) struct NewMemberArgs {
    /// The member's data directory: the one that `kontiki store` or `kontiki server` is then started with. It must hold no store yet
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,

    /// The member's name
    #[arg(long, default_value = "default")]
    pub(crate) name: String,

    /// All members of the new cluster: name=peer-url,… ; by default this one alone
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) initial_cluster: Vec<String>,

    /// Distinguishes the new cluster from others with the same URLs
    #[arg(long, value_name = "TOKEN", default_value = "kontiki")]
    pub(crate) initial_cluster_token: String,

    /// This member's peer URLs, as they stand in --initial-cluster
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "http://127.0.0.1:2380")]
    pub(crate) initial_advertise_peer_urls: Vec<String>,

    /// Raise the revision by this much
    #[arg(long, value_name = "N", default_value_t = kontiki_store::snapshot::restore::BUMP)]
    pub(crate) bump_revision: u64,

    /// Mark the history before the raised revision compacted; needed with a bump, and off without one
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub(crate) mark_compacted: Option<bool>,
}

/// `kontiki snapshot restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The snapshot
    pub(crate) file: PathBuf,

    #[command(flatten)]
    pub(crate) member: NewMemberArgs,

    /// Trust the file: for one without a hash at its end, out of a data directory of etcd (member/snap/db)
    #[arg(long)]
    pub(crate) skip_hash_check: bool,
}

/// `kontiki snapshot import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Members of the running store; the next is tried when one fails
    #[arg(long, value_name = "LIST", value_delimiter = ',', required = true)]
    pub(crate) from_etcd: Vec<String>,

    #[command(flatten)]
    pub(crate) remote: RemoteArgs,

    #[command(flatten)]
    pub(crate) member: NewMemberArgs,

    /// Where the member will listen for clients: only for the line that says how to start it
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:2379", hide = true)]
    pub(crate) listen_client: SocketAddr,
}

/// An interval: a number and its unit.
fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not an interval like 30s, 15m, 1h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let total = number.parse::<u64>().ok().and_then(|n| n.checked_mul(seconds)).ok_or_else(wrong)?;
    if total == 0 { Err(wrong()) } else { Ok(Duration::from_secs(total)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_a_unit() {
        for (text, seconds) in [("30s", 30), ("15m", 900), ("1h", 3_600), ("2d", 172_800)] {
            assert_eq!(interval(text), Ok(Duration::from_secs(seconds)));
        }
        for bad in ["", "1", "h", "0h", "1w", "-1h", "99999999999999999999h"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
