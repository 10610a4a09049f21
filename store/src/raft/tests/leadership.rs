//! What members on real files, over the real wire, see of a leader's death; and that they still know it when they have been restarted.

use std::time::Duration;

use kontiki_proto::store as pb;
use pb::observation::What;

use super::real::{Site, cluster_of, leader_of};
use crate::raft::Consensus as _;
use crate::why::{Code, Election, join};

async fn elections(site: &Site) -> Vec<Election> {
    let (told, silent) = site.node.as_ref().unwrap().observations(true).await;
    join(&told, &silent).elections
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_known_to_have_died_and_so_it_is_after_restarts() {
    let mut sites = vec![Site::new().await, Site::new().await, Site::new().await];
    let cluster = cluster_of(&sites);
    for (n, site) in sites.iter_mut().enumerate() {
        site.start(n, &cluster).await;
    }
    let old = leader_of(&sites).await;
    super::world::write(sites[old].node.as_ref().unwrap(), "k", "v").await.unwrap();
    sites[old].kill().await;
    let new = leader_of(&sites).await;
    let survivor = &sites[new];
    let died = elections(survivor).await.pop().unwrap();
    assert!(matches!(died.cause, Code::Died | Code::Silent), "{died:#?}");
    assert!(died.because.contains(&format!("m{old}")), "{died:#?}");
    assert_eq!(
        (died.leader.name.as_str(), died.before.as_ref().map(|(_, who)| who.name.clone())),
        (
            format!("m{new}").as_str(),
            // Who does not answer is known by the name that the membership has.
            Some(format!("m{old}"))
        )
    );
    assert!(died.leaderless_ms.is_some_and(|ms| ms < 10_000), "{died:#?}");
    assert!(died.votes.iter().filter(|vote| vote.granted).count() == 2, "{died:#?}");
    let term = died.term;

    // It comes back, and all others are stopped and started: what they saw is there.
    sites[old].start(old, &cluster).await;
    for n in [new, 3 - old - new] {
        sites[n].node.as_ref().unwrap().inner.chronicle.keep_now().await;
        sites[n].kill().await;
        sites[n].start(n, &cluster).await;
        leader_of(&sites).await;
    }
    let told = sites[new].node.as_ref().unwrap().observations(false).await.0;
    let led = told[0].observations.iter().any(|seen| seen.term == term && matches!(seen.what, Some(What::Led(_))));
    assert!(led, "{told:#?}");
    let known = async {
        loop {
            let found = elections(&sites[old]).await.into_iter().find(|election| election.term == term);
            if let Some(found) = found.filter(|found| found.evidence.iter().any(|e| e.text.contains("had not been stopped"))) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(20), known).await.expect("the old leader says that it was killed");
    assert!(matches!(again.cause, Code::Died), "{again:#?}");
    assert_eq!(again.leaderless_ms, died.leaderless_ms);
    for site in &mut sites {
        site.node.take().unwrap().shutdown().await;
    }
}
