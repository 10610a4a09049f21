//! A database that nobody runs on, looked at without changing it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::mark::AppliedMark;
use super::rocks::{Open, generation_dir, generations, io, open_read_only, read_mark, view_of};
use super::{BoxView, EngineError};

/// An engine's newest database, open for reading.
pub struct Inspected {
    open: Arc<Open>,
    /// Which log position its state is the result of.
    pub mark: AppliedMark,
    /// Where it is.
    pub dir: PathBuf,
}

/// Opens what [`RocksEngine`](super::rocks::RocksEngine) would open in `base`; `None` if there is nothing.
///
/// # Errors
/// It does not open.
pub fn open(base: &Path) -> Result<Option<Inspected>, EngineError> {
    if !base.is_dir() {
        return Ok(None);
    }
    let Some(newest) = generations(base)?.into_iter().max() else { return Ok(None) };
    let dir = generation_dir(base, newest);
    let open = open_read_only(&dir)?;
    let mark = read_mark(open.db(), &dir)?;
    Ok(Some(Inspected { open: Arc::new(open), mark, dir }))
}

impl Inspected {
    /// Its state.
    pub fn view(&self) -> BoxView {
        view_of(Arc::clone(&self.open))
    }

    /// Reads every block of every file and compares it with its checksum.
    ///
    /// # Errors
    /// The first that does not fit, with its file.
    pub fn verify_checksums(&self) -> Result<(), EngineError> {
        self.open.db().verify_checksum().map_err(|e| io(&self.dir, "verify the checksums of", &e))
    }
}
