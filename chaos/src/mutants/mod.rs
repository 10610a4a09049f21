//! Planted bugs: the catalogue, and the score of the harness that must find them.
//!
//! Each bug is one that a store of this kind has had, or that a design like ours invites. Its sites are `mutant!("M14", …)` in the product,
//! which only builds with the feature `mutants` can switch on.

pub mod arena;
pub mod catalogue;
pub mod score;

pub use catalogue::{CATALOGUE, Mutant};

/// The environment variable that switches a planted bug on in a whole process: for members that run as processes of their own.
pub const VARIABLE: &str = "KONTIKI_MUTANT";

/// Finds a bug by its id.
pub fn find(id: &str) -> Option<&'static Mutant> {
    CATALOGUE.iter().find(|m| m.id == id)
}

/// Switches on the bug that the environment names, if it names one.
///
/// # Errors
/// There is no such bug.
#[cfg(feature = "mutants")]
pub fn from_environment() -> Result<(), String> {
    let Ok(id) = std::env::var(VARIABLE) else { return Ok(()) };
    let mutant = find(&id).ok_or_else(|| format!("{VARIABLE}={id}: there is no such planted bug; `kontiki chaos list` shows all"))?;
    kontiki_base::mutant::set(kontiki_base::mutant::number(mutant.id));
    Ok(())
}
