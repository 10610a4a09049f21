//! Planted bugs: how the chaos harness is itself measured.
//!
//! A site reads `mutant!("M14", correct, buggy)`. Without the feature `mutants`, which releases and ordinary test builds do not have, it *is*
//! `correct`: nothing of the other expression is compiled, and nothing is looked at when it runs. With the feature, the bug whose number was
//! set is carried out instead, and its sites count how often they were reached. The catalogue, which says of each what it is and who
//! must notice, is in `kontiki_chaos::mutants`. Where the correct thing is to do nothing, a site reads `mutant!("M61", buggy);`.

/// The correct expression, or the buggy one if that bug is switched on.
#[cfg(not(feature = "mutants"))]
#[macro_export]
macro_rules! mutant {
    ($id:literal, $correct:expr, $buggy:expr) => {
        $correct
    };
    ($id:literal, $buggy:expr) => {};
}

/// The correct expression, or the buggy one if that bug is switched on.
#[cfg(feature = "mutants")]
#[macro_export]
macro_rules! mutant {
    ($id:literal, $correct:expr, $buggy:expr) => {
        if $crate::mutant::active(const { $crate::mutant::number($id) }) { $buggy } else { $correct }
    };
    ($id:literal, $buggy:expr) => {
        if $crate::mutant::active(const { $crate::mutant::number($id) }) {
            $buggy;
        }
    };
}

/// Whether this build can carry out planted bugs.
pub const POSSIBLE: bool = cfg!(feature = "mutants");

/// The number of an id such as `M14`; 0 if it is none.
pub const fn number(id: &str) -> u32 {
    let bytes = id.as_bytes();
    if bytes.len() < 2 || bytes.len() > 4 || bytes[0] != b'M' {
        return 0;
    }
    let (mut n, mut i) = (0, 1);
    while i < bytes.len() {
        if !bytes[i].is_ascii_digit() {
            return 0;
        }
        n = n * 10 + (bytes[i] - b'0') as u32;
        i += 1;
    }
    n
}

#[cfg(feature = "mutants")]
mod switch {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    static ACTIVE: AtomicU32 = AtomicU32::new(0);
    static REACHED: AtomicU64 = AtomicU64::new(0);

    /// Switches one bug on and all others off; 0: all off.
    pub fn set(number: u32) {
        ACTIVE.store(number, Ordering::SeqCst);
        REACHED.store(0, Ordering::SeqCst);
    }

    /// Whether this bug is on. Counts.
    pub fn active(number: u32) -> bool {
        let on = ACTIVE.load(Ordering::Relaxed) == number;
        if on {
            REACHED.fetch_add(1, Ordering::Relaxed);
        }
        on
    }

    /// How often a site of the bug that is on was reached since it was set.
    pub fn reached() -> u64 {
        REACHED.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{active, reached, set};

#[cfg(test)]
mod tests {
    #[test]
    fn ids_have_numbers() {
        assert_eq!([super::number("M01"), super::number("M47"), super::number("M120")], [1, 47, 120]);
        assert_eq!([super::number("X1"), super::number("M"), super::number("M1x"), super::number("M1234")], [0; 4]);
    }

    #[test]
    fn what_is_not_switched_on_is_correct() {
        assert_eq!(mutant!("M999", 1, 2), 1);
    }

    #[cfg(feature = "mutants")]
    #[test]
    fn what_is_switched_on_is_not() {
        super::set(998);
        assert_eq!(mutant!("M998", 1, 2), 2);
        assert_eq!(super::reached(), 1);
        super::set(0);
        assert_eq!(mutant!("M998", 1, 2), 1);
    }
}
