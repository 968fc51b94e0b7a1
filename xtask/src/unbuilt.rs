//! Tasks whose place is kept: each says that it does not exist yet, and fails.

use anyhow::{Result, bail};

/// `cargo xtask experiment`.
pub(crate) fn experiment() -> Result<()> {
    bail!("there are no experiments yet")
}
