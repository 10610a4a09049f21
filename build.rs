//! Compiles the program of the demo and pause images into a static file, which the binary embeds.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "src/image/demo/main.rs";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("demo");
    let rustc = std::env::var("RUSTC")?;
    if let Err(error) = compile(&rustc, &std::env::var("TARGET")?, &out) {
        // Without a static libc everything but the images still works; the command that writes them says so.
        println!("cargo:warning=the demo image is left out of this build: {error}");
        std::fs::write(&out, [])?;
    }
    Ok(())
}

fn compile(rustc: &str, target: &str, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let options =
        ["--edition=2024", "--crate-name=demo", "-Copt-level=z", "-Cpanic=abort", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"];
    let run = Command::new(rustc).args(options).args(["--target", target, "-o"]).arg(out).arg(SOURCE).output()?;
    if run.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&run.stderr).into_owned().into()) }
}
