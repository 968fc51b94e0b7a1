//! User Mode Linux' command line, and its keeper's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use plimsoll_model::{Sizes, VmName};
use plimsoll_uml::{Console, HostFiles, Invocation, UmlCommand, VhostUserDevice};
use plimsoll_units::MemTarget;
use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use super::check::{absolute, foreign_program};
use super::line::Line;
use super::start::Launch;
use crate::args::RunArgs;
use crate::commands::daemon::find_program;
use crate::record::{UMID, VmDir};
use crate::{WrongUse, output};

/// `f_type` of a tmpfs (TMPFS_MAGIC, include/uapi/linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// A User Mode Linux to be started.
#[derive(Debug)]
pub(super) struct Uml {
    guest: Invocation,
    keeper: PathBuf,
    backend: PathBuf,
    /// From its agent to the keeper.
    line: Option<Line>,
}

impl Uml {
    /// What was typed, with absolute paths, and the programs that belong to it.
    pub(super) fn plan(args: &RunArgs, sizes: Sizes, dir: &VmDir) -> anyhow::Result<Self> {
        let binary = match &args.kernel {
            Some(kernel) => absolute(kernel)?,
            None => foreign_program("linux.uml", "user-mode-linux")?,
        };
        if rustix::fs::access(&binary, rustix::fs::Access::EXEC_OK).is_err() {
            bail!(
                "{} cannot be executed; for --vmm uml the kernel is the User Mode Linux program",
                binary.display()
            );
        }
        let host_files = match &args.hostfs {
            None => HostFiles::Nothing,
            Some(root) => HostFiles::Only(
                root.canonicalize().with_context(|| format!("cannot use --hostfs {}", root.display()))?,
            ),
        };
        let line = line(args)?;
        let own_words = args.append.iter().cloned();
        let words: Vec<String> = own_words.chain(line.as_ref().map(Line::word)).collect();
        let guest = UmlCommand {
            binary,
            initrd: args.initrd.as_deref().map(absolute).transpose()?,
            tmpdir: tmpfs(dir)?,
            devices: vec![VhostUserDevice::balloon(dir.balloon_socket())],
            disks: args.disk.iter().map(|disk| absolute(disk)).collect::<Result<_, _>>()?,
            console: Console::InputOutput,
            host_files,
            append: words.join(" "),
            ..UmlCommand::new(sizes.maxmem(), UMID, dir.uml_dir())
        };
        Ok(Self {
            guest: guest.build().map_err(|e| WrongUse(e.to_string()))?,
            keeper: find_program("plimsoll-keeper")?,
            backend: find_program("plimsoll-backend")?,
            line,
        })
    }

    /// The line from its agent.
    pub(super) fn line(&self) -> Option<&Line> {
        self.line.as_ref()
    }

    /// The keeper's command line.
    pub(super) fn keeper(&self, name: &VmName, sizes: Sizes, dir: &VmDir) -> Launch {
        let balloon = MemTarget(sizes.memory()).balloon(sizes.maxmem());
        let pairs: [(&str, OsString); 5] = [
            ("--name", name.as_str().into()),
            ("--dir", dir.path().into()),
            ("--backend", self.backend.clone().into()),
            ("--maxmem", sizes.maxmem().0.to_string().into()),
            ("--initial-balloon", balloon.0.0.to_string().into()),
        ];
        let mut args: Vec<OsString> =
            pairs.into_iter().flat_map(|(option, value)| [option.into(), value]).collect();
        // Helper processes of a User Mode Linux that was killed have its memory mapped until `stop` finds them.
        args.push("--memory-ends-with-vmm".into());
        if self.line.is_some() {
            args.push("--agent-line".into());
        }
        Launch { program: self.keeper.clone(), args, env: Vec::new() }
    }

    /// The guest's command line.
    pub(super) fn launch(&self) -> Launch {
        let Invocation { program, args, env } = self.guest.clone();
        Launch { program, args, env }
    }
}

/// The line from the agent, unless it is not wanted or the words for the guest's kernel say where that goes.
fn line(args: &RunArgs) -> anyhow::Result<Option<Line>> {
    if args.no_agent {
        return Ok(None);
    }
    if Line::is_set_in(args.append.as_deref().unwrap_or_default()) {
        output::note(
            "--append says where the guest's first serial line goes: it stays so, and no agent is listened to",
        );
        return Ok(None);
    }
    Line::new().map(Some)
}

/// A tmpfs in which the guest's memory can lie, so that a page given back is free memory: the caller's TMPDIR,
/// else /dev/shm, else the VM's folder. User Mode Linux maps it executable, so it must not be mounted noexec.
fn tmpfs(dir: &VmDir) -> anyhow::Result<PathBuf> {
    let own = std::env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let candidates = own.into_iter().chain([PathBuf::from("/dev/shm")]);
    if let Some(found) = candidates.into_iter().find(|path| is_usable_tmpfs(path)) {
        return Ok(found);
    }
    match dir.path().ancestors().find(|path| path.exists()) {
        Some(above) if is_usable_tmpfs(above) => Ok(dir.path().to_path_buf()),
        _ => bail!(
            "no tmpfs for the guest's memory: neither TMPDIR nor /dev/shm nor the VM's folder is a writable tmpfs that may hold programs (see `findmnt -t tmpfs`); set TMPDIR to one"
        ),
    }
}

fn is_usable_tmpfs(path: &Path) -> bool {
    let is_tmpfs = statfs(path).is_ok_and(|fs| fs.f_type == TMPFS_MAGIC);
    let may_execute = statvfs(path).is_ok_and(|fs| !fs.f_flag.contains(StatVfsMountFlags::NOEXEC));
    is_tmpfs && may_execute && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod test {
    use plimsoll_units::Bytes;

    use super::*;

    #[test]
    fn the_keeper_gets_the_balloon_that_leaves_memory() {
        let uml = Uml {
            guest: UmlCommand::new(Bytes::mib(256), UMID, "/run/plimsoll/run/web/uml").build().unwrap(),
            keeper: PathBuf::from("/usr/bin/plimsoll-keeper"),
            backend: PathBuf::from("/usr/bin/plimsoll-backend"),
            line: Some(Line::new().unwrap()),
        };
        let sizes = Sizes::new(Bytes::mib(64), Bytes::mib(256), None, None).unwrap();
        let dir = VmDir::new(PathBuf::from("/run/plimsoll/run/web"));
        let keeper = uml.keeper(&"web".parse().unwrap(), sizes, &dir);
        let words: Vec<&str> = keeper.args.iter().map(|a| a.to_str().unwrap()).collect();
        let expected = "--name web --dir /run/plimsoll/run/web --backend /usr/bin/plimsoll-backend \
            --maxmem 268435456 --initial-balloon 49152 --memory-ends-with-vmm --agent-line";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn only_a_tmpfs_will_do() {
        assert!(!is_usable_tmpfs(Path::new("/proc")));
        assert!(!is_usable_tmpfs(Path::new("/no/such/folder")));
    }
}
