//! Writes container images as OCI archives: what `ctr images import`, `podman load` and `skopeo` read. No registry, no tool.
//!
//! The bytes are a function of the content: no clock, owner 0, sorted paths, so the same program gives the same digests everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A file in an image.
#[derive(Clone, Debug)]
pub(crate) struct ImageFile {
    /// Absolute path.
    pub(crate) path: String,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Content.
    pub(crate) bytes: Vec<u8>,
}

/// An image of one layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// Full references, such as `kontiki.dev/demo:1`. The image is listed under each.
    pub(crate) references: Vec<String>,
    /// The files; directories are made as needed.
    pub(crate) files: Vec<ImageFile>,
    /// Directories beside those, with their mode.
    pub(crate) directories: Vec<(String, u32)>,
    /// What runs.
    pub(crate) entrypoint: Vec<String>,
    /// Its arguments unless others are given.
    pub(crate) command: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// The signal that asks it to end; empty is SIGTERM.
    pub(crate) stop_signal: String,
    /// Ports that it serves, such as `8080/tcp`.
    pub(crate) ports: Vec<String>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
}

/// The architecture's name in image configurations.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        Self { digest, bytes }
    }

    fn json(value: &Value) -> Self {
        Self::new(value.to_string().into_bytes())
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

/// `a/b` and `a` for `/a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_start_matches('/');
    path.match_indices('/').map(move |(at, _)| &path[..at])
}

fn layer(image: &Image) -> io::Result<Blob> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut directories: BTreeMap<&str, u32> = image.directories.iter().map(|(path, mode)| (path.trim_matches('/'), *mode)).collect();
    let implied: BTreeSet<&str> = image.files.iter().flat_map(|file| parents(&file.path)).collect();
    for path in implied {
        directories.entry(path).or_insert(0o755);
    }
    for (path, mode) in directories {
        tar.append_data(&mut header(tar::EntryType::Directory, mode, 0), format!("{path}/"), io::empty())?;
    }
    let files: BTreeMap<&str, &ImageFile> = image.files.iter().map(|file| (file.path.trim_start_matches('/'), file)).collect();
    for (path, file) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, file.mode, file.bytes.len()), path, file.bytes.as_slice())?;
    }
    Ok(Blob::new(tar.into_inner()?))
}

fn config(image: &Image, layer: &Blob) -> Blob {
    let ports: BTreeMap<&String, Value> = image.ports.iter().map(|port| (port, json!({}))).collect();
    let mut run = json!({
        "Entrypoint": image.entrypoint, "Cmd": image.command, "Env": image.env, "ExposedPorts": ports, "Labels": image.labels, "WorkingDir": "/",
    });
    if !image.stop_signal.is_empty() {
        run["StopSignal"] = json!(image.stop_signal);
    }
    Blob::json(&json!({
        "architecture": architecture(), "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)]},
        "history": [{"created_by": "kontiki image"}],
    }))
}

/// Writes the images as one archive.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn write(images: &[Image], out: impl Write) -> io::Result<()> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut manifests = Vec::new();
    for image in images {
        let layer = layer(image)?;
        let config = config(image, &layer);
        let manifest = Blob::json(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(CONFIG_TYPE), "layers": [layer.descriptor(LAYER_TYPE)],
        }));
        for reference in &image.references {
            let tag = reference.rsplit_once(':').map_or("latest", |(_, tag)| tag);
            let mut descriptor = manifest.descriptor(MANIFEST_TYPE);
            descriptor["annotations"] = json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag});
            manifests.push(descriptor);
        }
        blobs.extend([layer, config, manifest].map(|blob| (blob.digest, blob.bytes)));
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}).to_string();
    let layout = json!({"imageLayoutVersion": "1.0.0"}).to_string();
    let mut tar = tar::Builder::new(out);
    for (name, bytes) in [("oci-layout", layout.as_bytes()), ("index.json", index.as_bytes())] {
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len()), name, bytes)?;
    }
    for (digest, bytes) in &blobs {
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len()), format!("blobs/sha256/{digest}"), bytes.as_slice())?;
    }
    tar.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn sample() -> Image {
        Image {
            references: vec!["kontiki.dev/x:1".into(), "kontiki.dev/x:2".into()],
            files: vec![ImageFile { path: "/bin/deep/x".into(), mode: 0o755, bytes: b"program".to_vec() }],
            directories: vec![("/tmp".into(), 0o1777)],
            entrypoint: vec!["/bin/deep/x".into()],
            stop_signal: "SIGKILL".into(),
            ..Image::default()
        }
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut tar = tar::Archive::new(archive);
        let read = tar.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            (path, bytes)
        });
        read.collect()
    }

    #[test]
    fn digests_hold_and_lead_from_the_index_to_the_files() {
        let mut archive = Vec::new();
        write(&[sample()], &mut archive).unwrap();
        let files = entries(&archive);
        for (path, bytes) in files.iter().filter(|(path, _)| path.starts_with("blobs/")) {
            assert_eq!(*path, format!("blobs/sha256/{}", Blob::new(bytes.clone()).digest));
        }
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let bytes = &files[&format!("blobs/{digest}")];
            assert_eq!(descriptor["size"], bytes.len());
            bytes.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let names: Vec<&Value> =
            index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"]["io.containerd.image.name"]).collect();
        assert_eq!(names, ["kontiki.dev/x:1", "kontiki.dev/x:2"]);
        let manifest: Value = serde_json::from_slice(&follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["StopSignal"], "SIGKILL");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"], "the layer is not compressed");
        let layer = entries(&follow(&manifest["layers"][0]));
        assert_eq!(layer["bin/deep/x"], b"program");
        assert!(["bin/", "bin/deep/", "tmp/"].iter().all(|dir| layer.contains_key(*dir)), "{:?}", layer.keys());
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        write(&[sample()], &mut a).unwrap();
        write(&[sample()], &mut b).unwrap();
        assert_eq!(a, b);
    }
}
