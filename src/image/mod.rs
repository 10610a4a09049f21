//! The images that come with the binary: a demo program to deploy, and the pause image that holds a pod's namespaces.
//!
//! Both contain the same static program (`demo/main.rs`), which the build script compiles with nothing but the standard library.

pub(crate) mod archive;
pub(crate) mod command;

use std::io::{self, Write};

use archive::{Image, ImageFile};
pub(crate) use command::run;

/// The demo image; `:2` is the same program under another tag that says so, for rolling updates.
pub(crate) const DEMO_IMAGES: [&str; 2] = ["kontiki.dev/demo:1", "kontiki.dev/demo:2"];
/// The image of sandboxes.
pub(crate) const PAUSE_IMAGE: &str = "kontiki.dev/pause:1";

/// The static program. Empty when the build machine could not link one.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo"));

fn image(reference: &str, command: &[&str], env: &[String]) -> Image {
    Image {
        references: vec![reference.to_owned()],
        files: vec![ImageFile { path: "/demo".into(), mode: 0o755, bytes: PROGRAM.to_vec() }],
        directories: vec![("/tmp".into(), 0o1777), ("/data".into(), 0o777)],
        entrypoint: vec!["/demo".into()],
        command: command.iter().map(|&word| word.to_owned()).collect(),
        env: env.to_vec(),
        // The first process of a pid namespace gets no signal that it has no handler for, and a handler cannot be installed in safe
        // std-only Rust: SIGTERM would be lost, and every deletion would last the whole grace period. SIGKILL always works.
        stop_signal: "SIGKILL".into(),
        ports: vec!["8080/tcp".into()],
        ..Image::default()
    }
}

/// Writes all images as one OCI archive.
///
/// # Errors
/// If `out` cannot be written, or this build carries no static program.
pub(crate) fn write_demo_archive(out: impl Write) -> io::Result<()> {
    if PROGRAM.is_empty() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this build has no demo program: a static libc was missing at build time"));
    }
    let mut images = vec![image(PAUSE_IMAGE, &["pause"], &[])];
    for reference in DEMO_IMAGES {
        let version = reference.rsplit_once(':').map_or("", |(_, tag)| tag);
        images.push(image(reference, &["serve"], &[format!("DEMO_VERSION={version}")]));
    }
    archive::write(&images, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_images_are_in_the_archive() {
        let mut bytes = Vec::new();
        write_demo_archive(&mut bytes).unwrap();
        let mut tar = tar::Archive::new(bytes.as_slice());
        let mut entries = tar.entries().unwrap();
        let index = entries.find_map(|e| e.ok().filter(|e| e.path().is_ok_and(|p| p.ends_with("index.json")))).unwrap();
        let index: serde_json::Value = serde_json::from_reader(index).unwrap();
        let names: Vec<&str> =
            index["manifests"].as_array().unwrap().iter().filter_map(|m| m["annotations"]["io.containerd.image.name"].as_str()).collect();
        assert_eq!(names, [PAUSE_IMAGE, DEMO_IMAGES[0], DEMO_IMAGES[1]]);
    }
}
