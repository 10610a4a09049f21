//! Two small C programs that are compiled when a run needs them: what they do cannot be done in safe Rust.

use std::path::{Path, PathBuf};

use super::tool::{self, ToolError};

const CLOCK: &str = include_str!("native/clock.c");
const FSDOWN: &str = include_str!("native/fsdown.c");

fn compile(dir: &Path, source: &str, name: &str, flags: &[&str]) -> Result<PathBuf, ToolError> {
    let (file, built) = (dir.join(format!("{name}.c")), dir.join(name));
    tool::at(&file, std::fs::write(&file, source))?;
    let (from, to) = (file.display().to_string(), built.display().to_string());
    let mut words = vec!["cc", "-O2", "-Wall", "-o", &to, &from];
    words.extend(flags);
    tool::run(&words)?;
    Ok(built)
}

/// The clock shim, as a shared object.
///
/// # Errors
/// There is no C compiler.
pub(crate) fn clock_shim(dir: &Path) -> Result<PathBuf, ToolError> {
    compile(dir, CLOCK, "clock.so", &["-shared", "-fPIC"])
}

/// The program that shuts a file system down.
///
/// # Errors
/// There is no C compiler.
pub(crate) fn fsdown(dir: &Path) -> Result<PathBuf, ToolError> {
    compile(dir, FSDOWN, "fsdown", &[])
}

/// The page of a process's clock: an offset, and how often it was applied.
#[derive(Clone, Debug)]
pub(crate) struct ClockPage {
    path: PathBuf,
}

impl ClockPage {
    /// Makes the page, without an offset.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn make(path: PathBuf) -> Result<Self, ToolError> {
        tool::at(&path, std::fs::write(&path, [0_u8; 4096]))?;
        Ok(Self { path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Shifts the clock, at once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn set(&self, ms: i64) -> Result<(), ToolError> {
        use std::os::unix::fs::FileExt as _;
        let file = tool::at(&self.path, std::fs::File::options().write(true).open(&self.path))?;
        tool::at(&self.path, file.write_all_at(&ms.saturating_mul(1_000_000).to_ne_bytes(), 0))
    }

    /// How often the process was told a shifted time.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn shifted(&self) -> Result<u64, ToolError> {
        let bytes = tool::at(&self.path, std::fs::read(&self.path))?;
        Ok(bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_moves_the_wall_clock_and_nothing_else() {
        if !tool::has("cc") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let shim = clock_shim(dir.path()).unwrap();
        let page = ClockPage::make(dir.path().join("page")).unwrap();
        page.set(3_600_000).unwrap();
        let date = |shimmed: bool| -> i64 {
            let mut command = std::process::Command::new("date");
            command.arg("+%s");
            if shimmed {
                command.env("LD_PRELOAD", &shim).env("KONTIKI_CHAOS_CLOCK", page.path());
            }
            String::from_utf8(command.output().unwrap().stdout).unwrap().trim().parse().unwrap()
        };
        let ahead = date(true) - date(false);
        assert!((3_540..3_660).contains(&ahead), "{ahead}");
        assert!(page.shifted().unwrap() > 0);
        page.set(0).unwrap();
        assert!((date(true) - date(false)).abs() < 60);
    }
}
