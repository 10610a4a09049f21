//! Rules of the kind.
