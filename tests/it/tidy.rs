//! House rules as tests: who may import whom, what a file looks like, and what the pure crates may not touch.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates each crate may import. The README's map says the same in words.
const MAY_IMPORT: &[(&str, &str, &[&str])] = &[
    ("kontiki-base", "proto/base", &[]),
    ("kontiki-mvcc", "store/mvcc", &["kontiki-base"]),
    ("kontiki-registry", "apiserver/registry", &["kontiki-base"]),
    ("kontiki-control", "agents/control", &["kontiki-base"]),
    ("kontiki-proto", "proto", &["kontiki-base"]),
    ("kontiki-store", "store", &["kontiki-base", "kontiki-mvcc", "kontiki-proto"]),
    ("kontiki-apiserver", "apiserver", &["kontiki-base", "kontiki-registry", "kontiki-proto"]),
    ("kontiki-agents", "agents", &["kontiki-base", "kontiki-control", "kontiki-proto"]),
    // The simulated world holds all of it; the checkers know none of it, and nobody may know the state machine.
    (
        "kontiki-chaos",
        "chaos",
        &["kontiki-base", "kontiki-proto", "kontiki-store", "kontiki-control", "kontiki-agents", "kontiki-apiserver"],
    ),
    ("kontiki-tests", "tests", &["kontiki-base", "kontiki-proto"]),
];

/// The crates that compute and do nothing else, and what their manifests must not name.
const PURE: &[&str] = &["proto/base", "store/mvcc", "apiserver/registry", "agents/control"];
const IMPURE_CRATES: &[&str] = &["tokio", "tonic", "rocksdb", "rand", "hyper", "axum", "futures", "openraft"];
const IMPURE_WORDS: &[&str] =
    &["async fn", "std::fs", "TcpStream", "TcpListener", "UdpSocket", "std::env", "SystemTime", "Instant::now", "thread::spawn"];

/// No file is longer than this, except those of `tests/it/ratchet.txt`, which may only shrink.
const FILE_LINES: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").to_path_buf()
}

fn rust_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the tree can be read") {
        let path = entry.expect("its entries, too").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            rust_files(&path, into);
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

fn all_rust_files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    rust_files(&root(), &mut files);
    files.sort();
    files
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).expect("it lies in the root").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("sources are UTF-8"))
        })
        .collect()
}

/// The names under a manifest's `[section]`.
fn section(manifest: &str, section: &str) -> Vec<String> {
    manifest
        .lines()
        .skip_while(|line| line.trim() != format!("[{section}]"))
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn crates_import_only_what_the_table_allows() {
    let mut found = Vec::new();
    for (name, dir, allowed) in MAY_IMPORT {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        for import in section(&manifest, "dependencies") {
            if import.starts_with("kontiki") && !allowed.contains(&import.as_str()) {
                found.push(format!("{name} imports {import}"));
            }
        }
    }
    assert_none("imports that the table in tests/it/tidy.rs does not allow", &found);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut found = Vec::new();
    for (name, dir, _) in MAY_IMPORT {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            found.push((*name).to_owned());
        }
    }
    assert_none("crates without the workspace's lints", &found);
}

#[test]
fn pure_crates_stay_pure() {
    let mut found = Vec::new();
    for dir in PURE {
        let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
        for import in section(&manifest, "dependencies") {
            if IMPURE_CRATES.contains(&import.as_str()) {
                found.push(format!("{dir} depends on {import}"));
            }
        }
        let mut files = Vec::new();
        rust_files(&root().join(dir).join("src"), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).unwrap();
            // Unit tests at the end of a file may read vectors from disk.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                for word in IMPURE_WORDS.iter().filter(|word| line.contains(**word)) {
                    found.push(format!("{}:{}: {word}", path.display(), number + 1));
                }
            }
        }
    }
    assert_none("IO, clocks or async in a pure crate", &found);
}

#[test]
fn every_file_says_what_it_is_for() {
    let found: Vec<String> = all_rust_files().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name).collect();
    assert_none("files that do not begin with //!", &found);
}

#[test]
fn files_stay_short() {
    let ratchet = fs::read_to_string(root().join("tests/it/ratchet.txt")).unwrap();
    let listed: BTreeMap<&str, usize> = ratchet
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .map(|line| line.split_once(' ').expect("a path and a number of lines"))
        .map(|(path, lines)| (path, lines.trim().parse().expect("a number of lines")))
        .collect();
    let mut found = Vec::new();
    let mut seen = 0;
    for (name, text) in all_rust_files() {
        let lines = text.lines().count();
        let cap = listed.get(name.as_str()).copied().unwrap_or(FILE_LINES);
        seen += usize::from(listed.contains_key(name.as_str()));
        if lines > cap {
            found.push(format!("{name}: {lines} lines, at most {cap}"));
        } else if listed.contains_key(name.as_str()) && lines <= FILE_LINES {
            found.push(format!("{name} is short enough now: take it off tests/it/ratchet.txt"));
        }
    }
    assert_none("files that are too long", &found);
    assert_eq!(seen, listed.len(), "tests/it/ratchet.txt lists a file that does not exist");
}

#[test]
fn nothing_is_left_for_later_without_saying_so() {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut found = Vec::new();
    for (name, text) in all_rust_files() {
        for (number, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert_none("notes to nobody", &found);
}
