//! User Mode Linux' management console, from asynchronous code.

use anyhow::Context as _;
use plimsoll_uml::{Mconsole, MconsoleError};

use crate::record::VmDir;

/// Presses Ctrl-Alt-Del in the guest.
pub(super) async fn cad(dir: &VmDir) -> anyhow::Result<()> {
    ask(dir, Mconsole::cad).await
}

/// Ends the kernel at once. A kernel that ends may do so before it answers.
pub(super) async fn halt(dir: &VmDir) -> anyhow::Result<()> {
    ask(dir, |console| match console.halt() {
        Err(MconsoleError::Timeout { .. }) => Ok(()),
        done => done,
    })
    .await
}

async fn ask(
    dir: &VmDir,
    command: impl FnOnce(&Mconsole) -> Result<(), MconsoleError> + Send + 'static,
) -> anyhow::Result<()> {
    let console = Mconsole::new(dir.mconsole());
    let done = tokio::task::spawn_blocking(move || command(&console)).await;
    Ok(done.context("cannot ask the management console")??)
}
