//! Where the repository is.

use std::path::Path;

/// The workspace's root: the directory above this crate's.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
