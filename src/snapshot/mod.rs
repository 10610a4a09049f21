//! `kontiki snapshot`: save, look at, restore, import.

pub(crate) mod cli;
mod schedule;
pub(crate) mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use indicatif::HumanBytes;
use kontiki_base::env::Env;
use kontiki_proto::client::ClientTls;
use kontiki_proto::env::SystemEnv;
use kontiki_store::raft::node::InitialMember;
use kontiki_store::snapshot::fetch::{self, Remote};
use kontiki_store::snapshot::file::{self, SnapshotFile};
use kontiki_store::snapshot::restore::{self, Plan, Restored};

use self::cli::{ImportArgs, NewMemberArgs, RemoteArgs, RestoreArgs, SaveArgs, SnapshotArgs, SnapshotCommand, StatusArgs};
use self::show::Bar;
use crate::store::{read, terminated};

/// The folder of the store within the data directory of a server.
const STORE: &str = "store";

/// Runs the command.
pub(crate) async fn run(args: SnapshotArgs) -> Result<()> {
    let work = async {
        match args.command {
            SnapshotCommand::Save(args) => save(args).await,
            SnapshotCommand::Status(args) => status(&args),
            SnapshotCommand::Restore(args) => restore(args).await,
            SnapshotCommand::Import(args) => import(args).await,
        }
    };
    tokio::select! {
        done = work => done,
        // What is unfinished is dropped, and removes itself.
        () = terminated() => bail!("ended before it was finished: nothing was changed"),
    }
}

/// How the store is reached, checked.
pub(crate) fn remote(endpoints: &[String], args: &RemoteArgs) -> Result<Remote> {
    let endpoints: Vec<String> =
        endpoints.iter().map(|url| if url.contains("://") { url.clone() } else { format!("http://{url}") }).collect();
    let https = endpoints.iter().any(|url| url.starts_with("https://"));
    let tls = match &args.cacert {
        Some(ca) => {
            let identity = args.cert.as_deref().zip(args.key.as_deref());
            let identity = identity.map(|(cert, key)| Ok::<_, anyhow::Error>((read(cert)?, read(key)?))).transpose()?;
            Some(ClientTls { ca_pem: read(ca)?, identity })
        }
        None if https => bail!("an endpoint is https: name the authority of its certificate with --cacert"),
        None => None,
    };
    let user = args.user.as_ref().map(|user| user.split_once(':').context("--user: NAME:PASSWORD is wanted")).transpose()?;
    Ok(Remote { endpoints, tls, user: user.map(|(name, password)| (name.into(), password.into())) })
}

async fn save(args: SaveArgs) -> Result<()> {
    let remote = remote(&args.endpoints, &args.remote)?;
    let env = SystemEnv::new();
    match args.every {
        Some(every) => schedule::run(&remote, &args.to, every, args.keep, &env).await,
        None => {
            let line = save_once(&remote, &args.to, &env).await?;
            println!("{line}");
            Ok(())
        }
    }
}

/// Saves one file; what there is to say about it.
async fn save_once(remote: &Remote, to: &Path, env: &dyn Env) -> Result<String> {
    if to.is_dir() {
        bail!("{} is a directory: name a file, or use --every", to.display());
    }
    let bar = Bar::new();
    let saved = fetch::save(remote, to, env, &|progress| bar.show(progress)).await;
    drop(bar);
    let saved = saved?;
    let version = if saved.version.is_empty() { String::new() } else { format!(", storage version {}", saved.version) };
    Ok(format!("saved {} from {}: {}{version}", to.display(), saved.endpoint, HumanBytes(saved.bytes)))
}

fn status(args: &StatusArgs) -> Result<()> {
    let file = SnapshotFile::open(&args.file)?;
    let bar = Bar::new();
    if !args.skip_hash_check {
        file.check(&|progress| bar.show(progress))?;
    }
    let status = file::status(&file, &|progress| bar.show(progress))?;
    drop(bar);
    println!("{}", show::status(&status, args.write_out));
    Ok(())
}

/// The members of the new cluster.
fn initial_cluster(args: &NewMemberArgs) -> Result<Vec<InitialMember>> {
    let mut members: Vec<InitialMember> = Vec::new();
    for item in &args.initial_cluster {
        let (name, url) = item.split_once('=').with_context(|| format!("--initial-cluster: {item:?} is not name=url"))?;
        match members.iter_mut().find(|member| member.name == name) {
            Some(member) => member.peer_urls.push(url.to_owned()),
            None => members.push(InitialMember { name: name.into(), peer_urls: vec![url.into()], client_urls: Vec::new() }),
        }
    }
    if members.is_empty() {
        let peer_urls = args.initial_advertise_peer_urls.clone();
        members.push(InitialMember { name: args.name.clone(), peer_urls, client_urls: Vec::new() });
    }
    Ok(members)
}

fn plan(args: &NewMemberArgs, skip_hash_check: bool) -> Result<Plan> {
    Ok(Plan {
        dir: args.data_dir.join(STORE),
        name: args.name.clone(),
        initial_cluster: initial_cluster(args)?,
        cluster_token: args.initial_cluster_token.clone(),
        bump_revision: args.bump_revision,
        mark_compacted: args.mark_compacted.unwrap_or(args.bump_revision > 0),
        skip_hash_check,
    })
}

async fn restore(args: RestoreArgs) -> Result<()> {
    let plan = plan(&args.member, args.skip_hash_check)?;
    restore_file(&args.file, plan, &args.member).await
}

async fn restore_file(file: &Path, plan: Plan, member: &NewMemberArgs) -> Result<()> {
    let env: Arc<dyn Env> = Arc::new(SystemEnv::new());
    let file = SnapshotFile::open(file)?;
    let members = plan.initial_cluster.clone();
    let bar = Bar::new();
    let existed = member.data_dir.exists();
    let restored = restore::restore(file, plan, env.random_u64(), &|progress| bar.show(progress)).await;
    drop(bar);
    if restored.is_err() && !existed {
        // Only what is empty goes this way; if there is nothing, there is nothing to do.
        let _ = std::fs::remove_dir(&member.data_dir);
    }
    report(&restored?, member, &members);
    Ok(())
}

fn report(restored: &Restored, member: &NewMemberArgs, members: &[InitialMember]) {
    let Restored { was, revision, compact, keys, changes, leases, users, auth_enabled } = restored;
    println!("restored {keys} keys ({changes} changes, {leases} leases) into {}", member.data_dir.display());
    if revision == was {
        println!("the revision is {revision}, as in the file");
    } else {
        println!("the revision was {was} in the file and is {revision} now; history before {compact} is marked compacted");
    }
    match (users, auth_enabled) {
        (0, _) => {}
        (users, true) => println!("{users} users came along with their passwords and roles; auth is enabled, as it was"),
        (users, false) => println!("{users} users came along with their passwords and roles; auth is not enabled, as it was not"),
    }
    let list: Vec<String> = members.iter().flat_map(|m| m.peer_urls.iter().map(move |url| format!("{}={url}", m.name))).collect();
    if members.len() > 1 {
        println!("restore the other members from the same file, each with its own --name and --data-dir; then start all of them:");
    } else {
        println!("start it:");
    }
    let own = members.iter().find(|m| m.name == member.name).map(|m| m.peer_urls.join(",")).unwrap_or_default();
    println!(
        "  kontiki store --name {} --data-dir {} --listen-peer-urls {own} --initial-cluster {} --initial-cluster-token {}",
        member.name,
        member.data_dir.display(),
        list.join(","),
        member.initial_cluster_token
    );
}

async fn import(args: ImportArgs) -> Result<()> {
    let plan = plan(&args.member, false)?;
    if plan.dir.exists() {
        bail!("{} exists: import into a data directory that holds no store", plan.dir.display());
    }
    let remote = remote(&args.from_etcd, &args.remote)?;
    std::fs::create_dir_all(&args.member.data_dir).with_context(|| format!("cannot create {}", args.member.data_dir.display()))?;
    let file = Temporary(args.member.data_dir.join("import.db"));
    println!("{}", save_once(&remote, &file.0, &SystemEnv::new()).await?);
    restore_file(&file.0, plan, &args.member).await?;
    println!("then point its clients at {}, and stop the old store", args.listen_client);
    Ok(())
}

/// A file that goes when it is no longer needed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = std::fs::remove_file(&self.0)
        {
            eprintln!("{} is of no more use, and could not be removed: {error}", self.0.display());
        }
    }
}
