//! `kontiki why`: explanations with evidence. Why the leader changed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use kontiki_proto::client::endpoint;
use kontiki_proto::store::leadership_client::LeadershipClient;
use kontiki_proto::store::{MemberObservations, ObservationsRequest, ObservationsResponse, Silent};
use kontiki_store::snapshot::fetch::Remote;
use kontiki_store::why::{Election, History, Replacement, Try, Who, join};
use tonic::Request;

use crate::snapshot::cli::RemoteArgs;

/// `kontiki why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// What to explain
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Why the store's leader changed: each election with its cause, its votes, and how long nobody led
    ///
    /// Members remember what they saw of elections, over restarts, too: why they stood, whom they voted for, what the disk and the
    /// connections of a leader were like when it ended. One endpoint is enough, since members ask each other; with several, a member whose peers
    /// do not reach it can be heard, too. It needs no leader, so it answers while there is none. Members that were replaced because they
    /// were gone (--auto-heal) are told of, too.
    ///
    ///   kontiki why leader --endpoints http://10.0.0.1:2379
    ///   kontiki why leader --last 0 -w json | jq '.elections[] | {term, cause, leaderless_ms}'
    #[command(verbatim_doc_comment)]
    Leader(LeaderArgs),
}

#[derive(Debug, Args)]
struct LeaderArgs {
    /// Members of the store; all of them are asked
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "http://127.0.0.1:2379", env = "ETCDCTL_ENDPOINTS")]
    endpoints: Vec<String>,

    #[command(flatten)]
    remote: RemoteArgs,

    /// So many elections, the newest; 0 for all that are remembered
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    last: usize,

    /// How to write
    #[arg(short, long, value_enum, default_value_t = WriteOut::Text)]
    write_out: WriteOut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WriteOut {
    /// For people
    Text,
    /// For programs: {"elections": […], "replacements": […], "undecided": […], "silent": […]}
    Json,
}

/// A member has to ask the others.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command.
pub(crate) async fn run(args: &WhyArgs) -> Result<()> {
    let Subject::Leader(args) = &args.subject;
    let remote = crate::snapshot::remote(&args.endpoints, &args.remote)?;
    let (told, silent) = gather(&remote).await?;
    let mut history = join(&told, &silent);
    if args.last > 0 {
        let skip = history.elections.len().saturating_sub(args.last);
        history.elections.drain(..skip);
    }
    match args.write_out {
        WriteOut::Text => print!("{}", text(&history)),
        WriteOut::Json => println!("{}", serde_json::to_string_pretty(&history)?),
    }
    Ok(())
}

/// What all members say that can be reached through any of the endpoints.
async fn gather(remote: &Remote) -> Result<(Vec<MemberObservations>, Vec<Silent>)> {
    let answers = futures::future::join_all(remote.endpoints.iter().map(|url| async move { (url, ask(remote, url).await) })).await;
    let (mut told, mut silent, mut failures) = (BTreeMap::new(), Vec::new(), Vec::new());
    let mut cluster = None;
    for (url, answer) in answers {
        match answer {
            Ok(answer) => {
                if *cluster.get_or_insert(answer.cluster_id) != answer.cluster_id {
                    bail!("{url} belongs to another cluster than the endpoints before it: ask one cluster at a time");
                }
                silent.extend(answer.silent);
                told.extend(answer.members.into_iter().map(|member| (member.member_id, member)));
            }
            Err(error) => failures.push(format!("{url}: {error:#}")),
        }
    }
    if told.is_empty() {
        bail!("no member answers; --endpoints says where they are\n  {}", failures.join("\n  "));
    }
    failures.iter().for_each(|failure| eprintln!("not asked: {failure}"));
    Ok((told.into_values().collect(), silent))
}

async fn ask(remote: &Remote, url: &str) -> Result<ObservationsResponse> {
    let channel = endpoint(url, remote.tls.as_ref())?.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await?;
    let mut request = Request::new(ObservationsRequest { everyone: true });
    remote.sign(&channel, &mut request).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    let answer = LeadershipClient::new(channel).max_decoding_message_size(usize::MAX).observations(request).await;
    answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
        tonic::Code::Unimplemented => anyhow::anyhow!("it does not know this question: it is no kontiki store, or an older one"),
        _ => anyhow::anyhow!("{}", status.message()),
    })
}

fn called(who: &Who) -> String {
    if who.name.is_empty() { format!("member {}", who.id) } else { format!("{} ({})", who.name, who.id) }
}

/// The time of day in UTC, to the millisecond.
fn time(at_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(at_ms).map_or_else(|_| format!("{at_ms} ms"), |at| format!("{at:.3}"))
}

fn text(history: &History) -> String {
    let mut out = String::new();
    if history.elections.is_empty() && history.undecided.is_empty() {
        out.push_str("no member remembers an election\n");
    }
    let mut told: Vec<String> = history.elections.iter().map(election).collect();
    if !history.undecided.is_empty() {
        let tries: String = history.undecided.iter().map(tried).collect();
        told.push(format!("no leader yet\n{tries}"));
    }
    for replacement in &history.replacements {
        let Replacement { at_ms, by, dead, learner, because, .. } = replacement;
        let (dead, learner) = (called(dead), called(learner));
        told.push(format!("{learner} took the place of {dead} at {}\n  {:<10} {because} (found by {})\n", time(*at_ms), "why", called(by)));
    }
    out.push_str(&told.join("\n"));
    if !history.silent.is_empty() {
        let silent: Vec<String> = history.silent.iter().map(called).collect();
        out.push_str(&format!("\nnot heard, so what they saw is missing: {}\n", silent.join(", ")));
    }
    out
}

fn election(election: &Election) -> String {
    let mut out = format!("term {}: {} leads since {}\n", election.term, called(&election.leader), time(election.at_ms));
    let mut row = |what: &str, text: &str| out.push_str(&format!("  {what:<10} {text}\n"));
    row("why", &election.because);
    if let Some((term, who)) = &election.before {
        row("before", &format!("{}, in term {term}", called(who)));
    }
    if let Some(ms) = election.leaderless_ms {
        row("leaderless", &format!("{ms} ms at most: since the last sign of the leader before"));
    }
    let votes: Vec<String> = election.votes.iter().map(|vote| format!("{} {}", vote.voter.name, vote.text)).collect();
    if !votes.is_empty() {
        row("votes", &votes.join("; "));
    }
    election.tries.iter().for_each(|tried| out.push_str(&self::tried(tried)));
    for evidence in &election.evidence {
        out.push_str(&format!("    {}  {}\n", time(evidence.at_ms), evidence.text));
    }
    out
}

fn tried(tried: &Try) -> String {
    format!("  {:<10} {} stood in term {} at {}: {}\n", "not won", called(&tried.candidate), tried.term, time(tried.at_ms), tried.because)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kontiki_store::why::{Code, Evidence, Vote};

    fn who(name: &str) -> Who {
        Who { id: "ab".into(), name: name.into() }
    }

    #[test]
    fn an_election_is_a_paragraph() {
        let history = History {
            elections: vec![Election {
                term: 3,
                at_ms: 1_700_000_000_123,
                leader: who("m3"),
                before: Some((1, who("m1"))),
                cause: Code::Died,
                because: "the port of m1 refused connections".into(),
                evidence: vec![Evidence { at_ms: 1_700_000_000_100, text: "m3 stood".into() }],
                votes: vec![Vote { voter: who("m2"), granted: true, text: "yes" }],
                tries: vec![Try { term: 2, at_ms: 1_700_000_000_000, candidate: who("m2"), because: "the same".into() }],
                leaderless_ms: Some(80),
            }],
            replacements: vec![Replacement {
                at_ms: 1_700_000_000_200,
                by: who("m3"),
                dead: who("m1"),
                learner: who("m4"),
                silent_ms: 61_000,
                because: "it was gone".into(),
            }],
            undecided: Vec::new(),
            silent: vec![who("")],
        };
        let expected = "term 3: m3 (ab) leads since 2023-11-14T22:13:20.123Z
  why        the port of m1 refused connections
  before     m1 (ab), in term 1
  leaderless 80 ms at most: since the last sign of the leader before
  votes      m2 yes
  not won    m2 (ab) stood in term 2 at 2023-11-14T22:13:20.000Z: the same
    2023-11-14T22:13:20.100Z  m3 stood

m4 (ab) took the place of m1 (ab) at 2023-11-14T22:13:20.200Z
  why        it was gone (found by m3 (ab))

not heard, so what they saw is missing: member ab
";
        assert_eq!(text(&history), expected);
        assert_eq!(text(&History::default()), "no member remembers an election\n");
        let json = serde_json::to_value(&history).unwrap();
        assert_eq!((&json["elections"][0]["cause"], &json["elections"][0]["leader"]["name"]), (&"died".into(), &"m3".into()));
    }
}
