//! A Python environment with gRPC, made once and kept outside the tree.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::run::run;

const LIMIT: Duration = Duration::from_secs(150);

/// What a client needs.
const PACKAGES: &[&str] = &["grpcio==1.76.0", "grpcio-tools==1.76.0", "googleapis-common-protos==1.72.0"];

/// A Python that can `import grpc`; `None`, with a message, where there is none and none can be made.
pub fn interpreter() -> Option<PathBuf> {
    let cache = std::env::var_os("KONTIKI_CACHE").map(PathBuf::from).or_else(|| {
        let home =
            std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        home.map(|home| home.join("kontiki"))
    })?;
    let venv = cache.join("python");
    let python = venv.join("bin/python");
    if python.is_file() && run(Command::new(&python).args(["-c", "import grpc, grpc_tools, google.rpc"]), LIMIT).ok {
        return Some(python);
    }
    if !crate::run::have("python3") {
        return None;
    }
    let made = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), LIMIT);
    if !made.ok {
        eprintln!("SKIPPED: python3 cannot make an environment: {}", made.err);
        return None;
    }
    let installed = run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES), LIMIT);
    if !installed.ok {
        eprintln!("SKIPPED: pip cannot install grpcio: {}", installed.err);
        return None;
    }
    Some(python)
}

/// Generates client stubs from `proto/api` into a folder.
///
/// # Panics
/// The generator fails.
pub fn stubs(python: &Path, into: &Path) {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").join("proto/api");
    let mut command = Command::new(python);
    command.args(["-m", "grpc_tools.protoc"]).arg(format!("-I{}", protos.display()));
    command.arg(format!("--python_out={}", into.display())).arg(format!("--grpc_python_out={}", into.display()));
    run(command.arg("resources.proto"), LIMIT).expect_ok();
}
