//! Volumes of pods: emptyDir, hostPath, configMap, secret, downwardAPI, projected. Others are refused by name.
//!
//! A volume of files is written as Kubernetes does it: the files stand in a directory of their own, `..data` is a link to it that is
//! replaced by a rename, and the visible names are links through `..data`. A reader sees all of the old or all of the new.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};
use kontiki_base::object::ObjectKey;
use kontiki_control::Kind;
use kontiki_proto::cri as wire;
use serde_json::{Value, json};

use super::env::{Situation, entries, field_value, resource_value};
use super::lifecycle::{container, spec};
use super::objects::Objects;

/// Why a pod's volumes cannot be made; the message of a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Something that is referred to is missing or cannot be fetched, or the volume is of a sort that is not supported.
    #[error("MountVolume.SetUp failed for volume {volume:?} : {why}")]
    SetUp {
        /// The volume.
        volume: String,
        /// Why.
        why: String,
    },
    /// The disk.
    #[error("volume {volume:?}: {path}: {source}")]
    Io {
        /// The volume.
        volume: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Content.
    pub bytes: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

type Files = BTreeMap<String, FileEntry>;

/// The directory of a pod's volumes and other files.
pub fn pod_dir(data_dir: &Path, uid: &str) -> PathBuf {
    data_dir.join("pods").join(uid)
}

/// Where a volume stands on the node.
fn volume_dir(data_dir: &Path, pod: &Pod, volume: &Volume) -> PathBuf {
    let plugin = if volume.empty_dir.is_some() { "kubernetes.io~empty-dir" } else { "kubernetes.io~files" };
    pod_dir(data_dir, pod.metadata.uid.as_deref().unwrap_or_default()).join("volumes").join(plugin).join(&volume.name)
}

/// Makes all volumes of a pod, or brings those of files up to date. Idempotent.
///
/// # Errors
/// The first volume that cannot be made.
pub async fn prepare(pod: &Pod, data_dir: &Path, at: &Situation, objects: &Objects) -> Result<(), VolumeError> {
    for volume in spec(pod).volumes.iter().flatten() {
        let dir = volume_dir(data_dir, pod, volume);
        let io = |source| VolumeError::Io { volume: volume.name.clone(), path: dir.clone(), source };
        if let Some(empty) = &volume.empty_dir {
            let memory = empty.medium.as_deref() == Some("Memory");
            let limit = empty.size_limit.as_ref().and_then(|q| kontiki_control::quantity::units(&q.0));
            let target = dir.clone();
            blocking(move || make_empty(&target, memory, limit)).await.map_err(io)?;
        } else if let Some(host) = &volume.host_path {
            check_host_path(&host.path, host.type_.as_deref().unwrap_or_default())
                .map_err(|why| VolumeError::SetUp { volume: volume.name.clone(), why })?;
        } else {
            let files = files_of(pod, volume, at, objects).await?;
            let target = dir.clone();
            blocking(move || write_atomically(&target, &files)).await.map_err(io)?;
        }
    }
    Ok(())
}

/// Runs file work off the executor's threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn make_empty(dir: &Path, memory: bool, limit: Option<i64>) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    if memory && !is_mounted(dir) {
        let options = limit.map_or_else(|| "mode=0777".to_owned(), |bytes| format!("mode=0777,size={bytes}"));
        nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))?;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777))
}

fn is_mounted(dir: &Path) -> bool {
    let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    info.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == dir))
}

fn check_host_path(path: &str, kind: &str) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt as _;
    let wrong = |what: &str| Err(format!("hostPath type check failed: {path} is not a {what}"));
    let found = std::fs::metadata(path).ok();
    let file_type = found.as_ref().map(std::fs::Metadata::file_type);
    match (kind, file_type) {
        ("" | "DirectoryOrCreate" | "FileOrCreate", Some(_)) => Ok(()),
        // The runtime would make a directory as well; here the error is the agent's, with the path in it.
        ("" | "DirectoryOrCreate", None) => std::fs::create_dir_all(path).map_err(|e| format!("{path}: {e}")),
        ("FileOrCreate", None) => std::fs::File::create(path).map(drop).map_err(|e| format!("{path}: {e}")),
        ("Directory", Some(t)) if t.is_dir() => Ok(()),
        ("File", Some(t)) if t.is_file() => Ok(()),
        ("Socket", Some(t)) if t.is_socket() => Ok(()),
        ("CharDevice", Some(t)) if t.is_char_device() => Ok(()),
        ("BlockDevice", Some(t)) if t.is_block_device() => Ok(()),
        (kind, _) => wrong(&kind.to_lowercase()),
    }
}

/// The files of a configMap, secret, downwardAPI or projected volume.
async fn files_of(pod: &Pod, volume: &Volume, at: &Situation, objects: &Objects) -> Result<Files, VolumeError> {
    let fail = |why: String| VolumeError::SetUp { volume: volume.name.clone(), why };
    let mode = |m: Option<i32>| u32::try_from(m.unwrap_or(0o644)).unwrap_or(0o644) & 0o777;
    if let Some(source) = &volume.config_map {
        let how = Keyed { items: source.items.as_deref(), mode: mode(source.default_mode), optional: source.optional == Some(true) };
        return keyed(pod, Kind::ConfigMap, &source.name, how, objects).await.map_err(fail);
    }
    if let Some(source) = &volume.secret {
        let how = Keyed { items: source.items.as_deref(), mode: mode(source.default_mode), optional: source.optional == Some(true) };
        return keyed(pod, Kind::Secret, source.secret_name.as_deref().unwrap_or_default(), how, objects).await.map_err(fail);
    }
    if let Some(source) = &volume.downward_api {
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode), at).map_err(fail);
    }
    if let Some(source) = &volume.projected {
        let mut files = Files::new();
        for part in source.sources.iter().flatten() {
            files.extend(projected(pod, part, mode(source.default_mode), at, objects).await.map_err(fail)?);
        }
        return Ok(files);
    }
    Err(fail("this sort of volume is not supported by this node agent".to_owned()))
}

struct Keyed<'a> {
    items: Option<&'a [KeyToPath]>,
    mode: u32,
    optional: bool,
}

async fn keyed(pod: &Pod, kind: Kind, name: &str, how: Keyed<'_>, objects: &Objects) -> Result<Files, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let word = if kind == Kind::Secret { "secret" } else { "configmap" };
    let Some(object) = objects.get(kind, &ObjectKey::new(namespace, name)).await.map_err(|e| e.to_string())? else {
        return if how.optional { Ok(Files::new()) } else { Err(format!("{word} {name:?} not found")) };
    };
    let mut all = entries(kind, &object);
    let Some(items) = how.items.filter(|items| !items.is_empty()) else {
        return Ok(all.into_iter().map(|(path, bytes)| (path, FileEntry { bytes, mode: how.mode })).collect());
    };
    let mut files = Files::new();
    for item in items {
        match all.remove(&item.key) {
            Some(bytes) => {
                let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(how.mode);
                files.insert(safe_path(&item.path)?, FileEntry { bytes, mode });
            }
            None if how.optional => {}
            None => return Err(format!("{word} references non-existent key: {}", item.key)),
        }
    }
    Ok(files)
}

fn downward(pod: &Pod, items: &[DownwardAPIVolumeFile], mode: u32, at: &Situation) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            field_value(pod, &field.field_path, at).ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
        } else if let Some(r) = &item.resource_field_ref {
            let of = r.container_name.as_deref().and_then(|name| container(pod, name)).ok_or("resourceFieldRef without a container")?;
            let divisor = r.divisor.as_ref().map_or("", |d| d.0.as_str());
            resource_value(of, &r.resource, divisor, at).ok_or_else(|| format!("unsupported resource: {}", r.resource))?
        } else {
            continue;
        };
        let mode = item.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(mode);
        files.insert(safe_path(&item.path)?, FileEntry { bytes: value.into_bytes(), mode });
    }
    Ok(files)
}

async fn projected(pod: &Pod, part: &VolumeProjection, mode: u32, at: &Situation, objects: &Objects) -> Result<Files, String> {
    if let Some(source) = &part.config_map {
        let how = Keyed { items: source.items.as_deref(), mode, optional: source.optional == Some(true) };
        return keyed(pod, Kind::ConfigMap, &source.name, how, objects).await;
    }
    if let Some(source) = &part.secret {
        let how = Keyed { items: source.items.as_deref(), mode, optional: source.optional == Some(true) };
        return keyed(pod, Kind::Secret, &source.name, how, objects).await;
    }
    if let Some(source) = &part.downward_api {
        return downward(pod, source.items.as_deref().unwrap_or_default(), mode, at);
    }
    if let Some(source) = &part.service_account_token {
        let token = token(pod, source.audience.as_deref(), source.expiration_seconds.unwrap_or(3_600), objects).await?;
        return Ok(Files::from([(safe_path(&source.path)?, FileEntry { bytes: token.into_bytes(), mode: 0o600.max(mode) })]));
    }
    Err("this sort of projection is not supported by this node agent".to_owned())
}

/// A token of the pod's service account, bound to the pod.
async fn token(pod: &Pod, audience: Option<&str>, seconds: i64, objects: &Objects) -> Result<String, String> {
    let meta = &pod.metadata;
    let account = spec(pod).service_account_name.as_deref().unwrap_or("default");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "audiences": audience.into_iter().collect::<Vec<_>>(), "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta.name, "uid": meta.uid},
        },
    });
    let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), account);
    let answer = objects.client().create_sub(Kind::ServiceAccount, &key, "token", &request).await.map_err(|e| e.to_string())?;
    let answer: Value = answer.parse().map_err(|e| e.to_string())?;
    answer["status"]["token"].as_str().map(str::to_owned).ok_or_else(|| "the answer to a TokenRequest has no token".to_owned())
}

/// A relative path that stays inside the volume.
fn safe_path(path: &str) -> Result<String, String> {
    let inside = !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if inside && !path.starts_with("..") { Ok(path.to_owned()) } else { Err(format!("path {path:?} leaves the volume")) }
}

/// Writes the files of a volume so that a reader sees all of the old ones or all of the new ones. Does nothing if nothing changed.
///
/// # Errors
/// Of the file system; the old files are still in place then.
pub fn write_atomically(dir: &Path, files: &Files) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let data = dir.join("..data");
    let old = std::fs::read_link(&data).ok();
    if old.as_ref().is_some_and(|old| same_files(&dir.join(old), files)) {
        return Ok(());
    }
    let serial = old.as_deref().and_then(|o| o.to_str()?.strip_prefix("..v")?.parse::<u64>().ok()).unwrap_or(0) + 1;
    let fresh = format!("..v{serial}");
    let target = dir.join(&fresh);
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    std::fs::create_dir(&target)?;
    for (path, file) in files {
        let file_path = target.join(path);
        if let Some(parent) = file_path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&file_path, &file.bytes)?;
        std::fs::set_permissions(&file_path, std::fs::Permissions::from_mode(file.mode))?;
    }
    let link = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&link);
    symlink(&fresh, &link)?;
    std::fs::rename(&link, &data)?;
    let tops: std::collections::BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &tops {
        let visible = dir.join(name);
        if std::fs::symlink_metadata(&visible).is_err() {
            symlink(Path::new("..data").join(name), &visible)?;
        }
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(name.as_ref()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    match old {
        Some(old) => std::fs::remove_dir_all(dir.join(old)),
        None => Ok(()),
    }
}

fn same_files(dir: &Path, files: &Files) -> bool {
    let mut found = 0_usize;
    let mut stack = vec![dir.to_path_buf()];
    while let Some(next) = stack.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                stack.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy().into_owned();
            let same = files.get(&name).is_some_and(|f| std::fs::read(&path).is_ok_and(|bytes| bytes == f.bytes));
            if !same {
                return false;
            }
            found += 1;
        }
    }
    found == files.len()
}

/// Whether the pod has volumes whose files may change.
pub fn has_files(pod: &Pod) -> bool {
    spec(pod)
        .volumes
        .iter()
        .flatten()
        .any(|v| v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some())
}

/// The mounts of a container.
///
/// # Errors
/// If a mount names a volume that the pod has not, or leaves its volume.
pub fn mounts(pod: &Pod, c: &Container, data_dir: &Path, known: &BTreeMap<String, String>) -> Result<Vec<wire::Mount>, String> {
    let mut all = Vec::new();
    for mount in c.volume_mounts.iter().flatten() {
        let volumes = spec(pod).volumes.as_deref().unwrap_or_default();
        let volume = volumes.iter().find(|v| v.name == mount.name).ok_or_else(|| format!("volume {:?} is not in the pod", mount.name))?;
        let mut host = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => volume_dir(data_dir, pod, volume),
        };
        let sub = match &mount.sub_path_expr {
            Some(expr) => Some(super::env::expand(expr, known)),
            None => mount.sub_path.clone(),
        };
        if let Some(sub) = sub.filter(|s| !s.is_empty()) {
            host = host.join(safe_path(&sub)?);
            if volume.empty_dir.is_some() && !host.exists() {
                std::fs::create_dir_all(&host).map_err(|e| format!("{}: {e}", host.display()))?;
            }
        }
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => wire::MountPropagation::PropagationBidirectional,
            Some("HostToContainer") => wire::MountPropagation::PropagationHostToContainer,
            _ => wire::MountPropagation::PropagationPrivate,
        };
        // Files of config maps and secrets are the agent's to write.
        let readonly = mount.read_only == Some(true) || (volume.empty_dir.is_none() && volume.host_path.is_none());
        all.push(wire::Mount {
            container_path: if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) },
            host_path: host.to_string_lossy().into_owned(),
            readonly,
            propagation: propagation.into(),
            ..Default::default()
        });
    }
    Ok(all)
}

/// Removes everything of a pod from the disk. Fine if there is nothing.
///
/// # Errors
/// Of the file system.
pub async fn remove(data_dir: &Path, uid: &str) -> io::Result<()> {
    let dir = pod_dir(data_dir, uid);
    blocking(move || {
        let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = info.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new).filter(|point| point.starts_with(&dir));
        for point in below.collect::<Vec<_>>().into_iter().rev() {
            nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH)?;
        }
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        entries.iter().map(|(path, text)| ((*path).to_owned(), FileEntry { bytes: text.as_bytes().to_vec(), mode: 0o640 })).collect()
    }

    #[test]
    fn files_are_replaced_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_atomically(dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(std::fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let first = std::fs::read_link(dir.join("..data")).unwrap();
        write_atomically(dir, &files(&[("a", "1"), ("sub/b", "2")])).unwrap();
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), first, "nothing changed, nothing was written");
        write_atomically(dir, &files(&[("a", "9"), ("c", "3")])).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "9");
        assert!(!dir.join("sub").exists() && dir.join("c").exists());
        assert!(!dir.join(first).exists(), "the old directory is gone");
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["", "/etc", "../x", "a/../../b", "..data"] {
            assert!(safe_path(bad).is_err(), "{bad}");
        }
        assert_eq!(safe_path("a/b"), Ok("a/b".to_owned()));
    }

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        assert!(check_host_path(&path(""), "Directory").is_ok());
        assert!(check_host_path(&path(""), "File").is_err());
        assert!(check_host_path(&path("no"), "Directory").is_err() && !dir.path().join("no").exists());
        assert!(check_host_path(&path("new"), "DirectoryOrCreate").is_ok() && dir.path().join("new").is_dir());
        assert!(check_host_path(&path("f"), "FileOrCreate").is_ok() && dir.path().join("f").is_file());
    }
}
