//! Who a member is.
//!
//! The members that found a cluster compute their ids from their peer URLs and the cluster's token: they have to agree before they can talk. A
//! member that is added later gets an id with the time of its adding in it, from the leader, and so a machine that lost its disk and is added
//! again at the same address is another member: it cannot vote a second time where it has voted before. (etcd does both, too: server/etcdserver/api/membership.)
//! It learns its id from the others, by its peer URLs, and writes it down. Ids of removed members are never given again ([`super::removed`]).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kontiki_base::env::Env;
use kontiki_base::ids::MemberId;
use kontiki_base::net::{PeerNet, PeerRpc};
use sha2::{Digest, Sha256};

use super::admin::{Request, decode_reply};
use super::config::StartError;
use super::members::read_belonging;
use super::network::within;
use super::node::Inner;
use super::types::{Membership, Peer, StoredMembership};
use super::{members, wire};

/// How long a new member waits for the others to say whether the cluster is there already.
pub(super) const HELLO: Duration = Duration::from_millis(1_500);

/// A member that is to join asks this often who it is…
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// …and says so after so many times without an answer.
const SAY_EVERY: u32 = 40;

/// The id of a founding member: of its peer URLs and the cluster's token, so that every member computes the same.
pub fn member_id(peer_urls: &[String], cluster_token: &str) -> MemberId {
    MemberId::new(hash(sorted(peer_urls).into_iter().chain([cluster_token]), "member"))
}

/// The id of a member that is added, at this second since the Unix epoch.
pub(super) fn added_id(peer_urls: &[String], cluster_token: &str, second: i64) -> MemberId {
    let second = second.to_string();
    MemberId::new(hash(sorted(peer_urls).into_iter().chain([cluster_token, &second]), "added member"))
}

/// The id of a cluster: of its token.
pub fn cluster_id(cluster_token: &str) -> u64 {
    hash([cluster_token], "cluster")
}

fn sorted(urls: &[String]) -> Vec<&str> {
    let mut urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    urls
}

/// Never 0, which means "none".
fn hash<'a>(parts: impl IntoIterator<Item = &'a str>, what: &'a str) -> u64 {
    let mut sha = Sha256::new();
    for part in [what].into_iter().chain(parts) {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part.as_bytes());
    }
    let digest = sha.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes")).max(1)
}

/// The file that says whose a data directory is.
const FILE: &str = "identity";

/// What a data directory belongs to, so that it is never used by somebody else.
fn text(cluster: u64, id: MemberId) -> String {
    format!("kontiki-store 1\ncluster {cluster:016x}\nmember {:016x}\n", id.get())
}

/// Whose a data directory is, if anybody's.
///
/// # Errors
/// [`StartError::DataDir`]: the file cannot be read, or the directory belongs to another cluster.
pub(super) fn stored(dir: &Path, cluster: u64) -> Result<Option<MemberId>, StartError> {
    let path = dir.join(FILE);
    let failed = |why: String| StartError::DataDir(format!("{}: {why}", path.display()));
    let found = match std::fs::read_to_string(&path) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e.to_string())),
    };
    let number = |what: &str| found.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(what)?, 16).ok());
    let (Some(of), Some(member)) = (number("cluster "), number("member ")) else {
        return Err(failed(format!("it does not say whose this directory is:\n{found}")));
    };
    if text(of, MemberId::new(member)) != found {
        return Err(failed(format!("it was written by another version:\n{found}")));
    }
    if of != cluster {
        let why = format!(
            "it belongs to the cluster {of:016x}, this one is {cluster:016x}: --initial-cluster-token is another, or the directory is"
        );
        return Err(failed(why));
    }
    Ok(Some(MemberId::new(member)))
}

/// Makes a directory this member's, if it is nobody's, or if nothing is in it (`blank`): then somebody was refused, or was removed early.
///
/// # Errors
/// [`StartError::DataDir`]: it is another's, or cannot be written.
pub(super) fn claim(dir: &Path, cluster: u64, id: MemberId, blank: bool) -> Result<(), StartError> {
    match stored(dir, cluster)? {
        Some(found) if found == id => return Ok(()),
        Some(found) if !blank => {
            let why = format!("{} belongs to another member, {:016x}: this one is {:016x}", dir.display(), found.get(), id.get());
            return Err(StartError::DataDir(why));
        }
        _ => {}
    }
    let path = dir.join(FILE);
    let io = |e: std::io::Error| StartError::DataDir(format!("{}: {e}", path.display()));
    let unfinished = dir.join("identity.unfinished");
    std::fs::write(&unfinished, text(cluster, id)).map_err(io)?;
    std::fs::File::open(&unfinished).and_then(|f| f.sync_all()).map_err(io)?;
    std::fs::rename(&unfinished, &path).map_err(io)?;
    crate::log::disk::sync_dir(dir).map_err(io)
}

/// Refuses a directory whose state knows this member by another name: it is another's that was mistaken for this one's.
pub(super) fn same_name(membership: &StoredMembership, id: MemberId, name: &str) -> Result<(), StartError> {
    match membership.membership().get_node(&id.get()) {
        Some(peer) if !peer.name.is_empty() && peer.name != name => {
            let why = format!("it belongs to another member, {}: this one is {name}", peer.name);
            Err(StartError::DataDir(why))
        }
        _ => Ok(()),
    }
}

/// What [`Request::WhoAmI`] is answered with: the cluster, and what [`members::belonging`] says.
pub(super) fn introduce(inner: &Inner) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u64(super::cluster_id(&inner.cluster_token));
    out.put_slice(&members::belonging(inner));
    out.freeze()
}

/// A membership that most have agreed on, as a member has it.
struct Told {
    cluster: u64,
    membership: StoredMembership,
}

fn read_introduction(body: Bytes) -> Option<Told> {
    let mut body = body;
    let cluster = wire::get_u64(&mut body)?;
    let (committed, membership) = read_belonging(body)?;
    let decided = membership.log_id().is_some_and(|at| at.index < committed);
    decided.then_some(Told { cluster, membership })
}

/// The member with these peer URLs.
fn by_urls(membership: &Membership, peer_urls: &[String]) -> Option<(MemberId, bool)> {
    let own = sorted(peer_urls);
    membership.nodes().find(|(_, peer)| sorted(&peer.peer_urls) == own).map(|(id, peer)| (MemberId::new(*id), peer.started))
}

fn data_gone(name: &str) -> String {
    format!(
        "member {name} of this cluster has run before, and its data is gone: it could vote twice. Remove it (kontiki member remove), add it again \
         (kontiki member add), and start it with --initial-cluster-state=existing"
    )
}

/// A member that finds out who it is.
pub(super) struct Asking<'a> {
    pub(super) env: &'a dyn Env,
    pub(super) net: &'a Arc<dyn PeerNet>,
    /// As it is configured.
    pub(super) own: &'a Peer,
    /// The rest of the initial cluster, with the ids that founders have.
    pub(super) others: &'a [(MemberId, Peer)],
    pub(super) cluster: u64,
}

impl Asking<'_> {
    /// This member's id: as it was given; as its directory says; as the others say, if it is to join them; as its URLs say, if it is a founder.
    ///
    /// # Errors
    /// It has lost what it had stored, or is no member any more: the error says what to do.
    pub(super) async fn who(
        &self,
        given: Option<MemberId>,
        stored: Option<MemberId>,
        founder: MemberId,
        blank: bool,
        join: bool,
    ) -> Result<MemberId, StartError> {
        match (given, stored) {
            (Some(given), _) if join || !blank => Ok(given),
            (None, Some(stored)) if !blank => Ok(stored),
            // Whatever the directory says: with nothing in it, only the others know whether it has run before.
            (None, stored) if blank && (join || stored.is_some_and(|stored| stored != founder)) => self.learn().await,
            (given, _) => {
                let founder = given.unwrap_or(founder);
                if blank {
                    self.refuse_to_found_again(founder).await?;
                }
                Ok(founder)
            }
        }
    }

    /// Asks all others; those who answer and belong to a cluster.
    async fn ask(&self) -> Vec<Told> {
        let calls = self.others.iter().map(|(to, peer)| {
            let call = self.net.call(*to, peer.address(), PeerRpc::Ask, Request::WhoAmI.encode());
            async move {
                let reply = within(self.env, HELLO, call).await?.ok()?;
                read_introduction(decode_reply(reply).ok()?)
            }
        });
        futures::future::join_all(calls).await.into_iter().flatten().collect()
    }

    /// The id under which the others know this member, which is to join. Waits until they do.
    async fn learn(&self) -> Result<MemberId, StartError> {
        let own = self.own;
        if self.others.is_empty() {
            let why = "a member that joins a cluster has to be told of the members that are there: --initial-cluster lists them, too";
            return Err(StartError::Config(why.into()));
        }
        let mut round = 0_u32;
        loop {
            let told = self.ask().await;
            if let Some(told) = told.iter().find(|told| told.cluster != self.cluster) {
                let why = format!(
                    "the members that are there belong to the cluster {:016x}, this one would be of {:016x}: give it their --initial-cluster-token",
                    told.cluster, self.cluster
                );
                return Err(StartError::Config(why));
            }
            // Who has heard most knows best.
            let latest = told.iter().max_by_key(|told| *told.membership.log_id());
            match latest.and_then(|told| by_urls(told.membership.membership(), &own.peer_urls)) {
                Some((_, true)) => return Err(StartError::DataDir(data_gone(&own.name))),
                Some((id, false)) => return Ok(id),
                None if !round.is_multiple_of(SAY_EVERY) => {}
                None if told.is_empty() => tracing::warn!("no member of the cluster that this one is to join answers; it goes on asking"),
                None => {
                    let urls = own.peer_urls.join(",");
                    tracing::warn!(%urls, "the cluster has no member with these peer URLs: add it with `kontiki member add`; it goes on asking");
                }
            }
            round = round.wrapping_add(1);
            self.env.sleep(ASK_AGAIN).await;
        }
    }

    /// Refuses to found a cluster that runs already.
    async fn refuse_to_found_again(&self, founder: MemberId) -> Result<(), StartError> {
        let told = self.ask().await;
        let Some(latest) = told.iter().max_by_key(|told| *told.membership.log_id()) else { return Ok(()) };
        let own = self.own;
        match latest.membership.membership().get_node(&founder.get()) {
            Some(peer) if peer.started => Err(StartError::DataDir(data_gone(&own.name))),
            // Others were quicker: the cluster is being founded.
            Some(_) => Ok(()),
            None => Err(StartError::DataDir(format!(
                "the cluster runs already, and member {} is not one of its founders any more: add it (kontiki member add {} --peer-urls {}), and \
                 start it with --initial-cluster-state=existing and an empty directory",
                own.name,
                own.name,
                own.peer_urls.join(",")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn urls(list: &[&str]) -> Vec<String> {
        list.iter().map(|u| (*u).to_owned()).collect()
    }

    #[test]
    fn ids_depend_on_urls_and_token_and_not_on_their_order() {
        let id = member_id(&urls(&["http://a", "http://b"]), "t");
        assert_eq!(id, member_id(&urls(&["http://b", "http://a"]), "t"));
        assert_ne!(id, member_id(&urls(&["http://a"]), "t"));
        assert_ne!(id, member_id(&urls(&["http://a", "http://b"]), "u"));
        assert_ne!(cluster_id("t"), cluster_id("u"));
        let added = added_id(&urls(&["http://a", "http://b"]), "t", 7);
        assert_eq!(added, added_id(&urls(&["http://b", "http://a"]), "t", 7));
        assert_ne!(added, added_id(&urls(&["http://a", "http://b"]), "t", 8), "another time is another member");
        assert_ne!(added, id);
    }

    #[test]
    fn a_data_directory_belongs_to_one_member() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored(dir.path(), 1).unwrap(), None);
        claim(dir.path(), 1, MemberId::new(2), false).unwrap();
        claim(dir.path(), 1, MemberId::new(2), false).unwrap();
        assert_eq!(stored(dir.path(), 1).unwrap(), Some(MemberId::new(2)));
        let error = claim(dir.path(), 1, MemberId::new(3), false).unwrap_err();
        assert!(error.to_string().contains("belongs to another member"), "{error}");
        claim(dir.path(), 1, MemberId::new(3), true).unwrap();
        assert_eq!(stored(dir.path(), 1).unwrap(), Some(MemberId::new(3)), "nothing was in it");
        let error = stored(dir.path(), 9).unwrap_err();
        assert!(error.to_string().contains("belongs to the cluster 0000000000000001"), "{error}");
        std::fs::write(dir.path().join(FILE), "kontiki-store 2\ncluster 01\nmember 02\n").unwrap();
        assert!(stored(dir.path(), 1).unwrap_err().to_string().contains("another version"));
        std::fs::write(dir.path().join(FILE), "").unwrap();
        assert!(stored(dir.path(), 1).unwrap_err().to_string().contains("does not say whose"));
    }

    #[test]
    fn a_state_that_knows_the_member_by_another_name_is_anothers() {
        let peer = |name: &str| Peer { name: name.into(), ..Peer::default() };
        let nodes: BTreeMap<u64, Peer> = [(1, peer("a")), (2, peer(""))].into();
        let membership = Membership::new(vec![[1].into()], nodes).unwrap();
        let stored = StoredMembership::new(None, membership);
        assert!(same_name(&stored, MemberId::new(1), "a").is_ok());
        let error = same_name(&stored, MemberId::new(1), "b").unwrap_err().to_string();
        assert!(error.contains("belongs to another member, a"), "{error}");
        assert!(same_name(&stored, MemberId::new(2), "b").is_ok(), "it has not said its name yet");
        assert!(same_name(&stored, MemberId::new(3), "b").is_ok(), "it has not heard that it was added yet");
    }

    #[test]
    fn a_member_is_found_by_all_of_its_urls() {
        let peer = |list: &[&str], started| Peer { peer_urls: urls(list), started, ..Peer::default() };
        let nodes: BTreeMap<u64, Peer> = [(1, peer(&["http://a", "http://b"], true)), (2, peer(&["http://c"], false))].into();
        let membership = Membership::new(vec![[1].into()], nodes).unwrap();
        assert_eq!(by_urls(&membership, &urls(&["http://b", "http://a"])), Some((MemberId::new(1), true)));
        assert_eq!(by_urls(&membership, &urls(&["http://c"])), Some((MemberId::new(2), false)));
        assert_eq!(by_urls(&membership, &urls(&["http://a"])), None);
    }
}
