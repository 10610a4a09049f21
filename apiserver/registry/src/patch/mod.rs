//! Patches: JSON, merge, strategic merge, and server-side apply.
