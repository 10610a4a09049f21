//! `kontiki image demo`, and the images that every node of `up` has.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{DEMO_IMAGES, PAUSE_IMAGE, write_demo_archive};
use crate::cli::{ImageArgs, ImageCommand};
use crate::testbed::Testbed;
use crate::up::layout::Layout;

/// Runs the command.
pub(crate) async fn run(args: ImageArgs) -> Result<()> {
    let ImageCommand::Demo { output, data_dir } = args.image;
    tokio::task::spawn_blocking(move || demo(&output, &data_dir)).await.context("writing the image panicked")?
}

fn demo(output: &Path, data_dir: &Path) -> Result<()> {
    write(output)?;
    println!("{}: an OCI archive with {PAUSE_IMAGE}, {}", output.display(), DEMO_IMAGES.join(", "));
    let running = if data_dir.exists() { Layout::open(data_dir)?.load()? } else { None };
    match running.filter(|state| state.runtime == "cri" && state.supervisor != 0) {
        Some(state) => {
            let testbed = Testbed::plan(&Layout::open(data_dir)?.dir, state.nodes.len())?;
            testbed.import_image(output)?;
            println!(
                "imported on {} nodes; try: kubectl create deployment web --image={} --replicas=3 --port=8080",
                state.nodes.len(),
                DEMO_IMAGES[0]
            );
        }
        None => println!("not imported: no cluster with real nodes runs in {} (simulated nodes take any image)", data_dir.display()),
    }
    Ok(())
}

/// Writes the archive to a file.
pub(crate) fn write(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let mut out = BufWriter::new(file);
    write_demo_archive(&mut out).with_context(|| format!("cannot write {}", path.display()))?;
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}
