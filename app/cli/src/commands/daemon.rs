//! `daemon`: becomes plimsolld.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use crate::args::DaemonArgs;
use crate::rundir::RunDir;

pub(super) fn run(run_dir: &RunDir, args: &DaemonArgs) -> anyhow::Result<()> {
    let mut command = Command::new(plimsolld()?);
    if run_dir.is_named() {
        command.arg("--run-dir").arg(run_dir.dir());
    }
    let failure = command.args(&args.rest).exec();
    Err(failure).with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// plimsolld beside this program, else in PATH.
pub(super) fn plimsolld() -> anyhow::Result<PathBuf> {
    find_program("plimsolld")
}

/// One of our own programs: beside this one, else in PATH.
pub(super) fn find_program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.parent().map(|dir| dir.join(name));
    match beside.filter(|path| path.is_file()).or_else(|| in_path(name)) {
        Some(found) => Ok(found),
        None => bail!("cannot find {name}: it is neither beside {} nor in PATH", own.display()),
    }
}

/// The first file of this name in PATH.
pub(super) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}
