//! Everything about a VM that can be known before it is started. Nothing is changed here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use plimsoll_model::{Sizes, VmName};

use super::{group, kvm, pod, qemu, uml};
use crate::WrongUse;
use crate::args::{RunArgs, VmmChoice};
use crate::commands::Context;
use crate::commands::daemon::in_path;
use crate::record::{Kind, VmDir};

/// A VM that can be started, as far as can be told.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) name: VmName,
    pub(super) sizes: Sizes,
    pub(super) dir: VmDir,
    pub(super) machine: Machine,
    /// The memory cgroup that is to be made.
    pub(super) group: Option<group::Group>,
    /// Settings of self-ballooning, as the API takes them.
    pub(super) tunables: BTreeMap<String, String>,
}

/// What runs it.
#[derive(Debug)]
pub(super) enum Machine {
    Qemu(qemu::Qemu),
    Uml(uml::Uml),
}

impl Plan {
    /// Which VMM it is.
    pub(super) fn kind(&self) -> Kind {
        match self.machine {
            Machine::Qemu(_) => Kind::Qemu,
            Machine::Uml(_) => Kind::Uml,
        }
    }

    /// Its memory, where that is populated on demand.
    pub(super) fn pod(&self) -> Option<&pod::Pod> {
        match &self.machine {
            Machine::Qemu(qemu) => qemu.pod(),
            Machine::Uml(_) => None,
        }
    }

    /// The same failure with the last lines of what VMM and keeper said.
    pub(super) fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        let tails: Vec<String> = [self.dir.console_log(), self.dir.keeper_log()]
            .iter()
            .filter_map(|log| {
                let tail = super::follow::tail(log, 8)?;
                Some(format!("\n{} ended with:\n{tail}", log.display()))
            })
            .collect();
        if tails.is_empty() {
            error
        } else {
            anyhow::anyhow!("{}{}", crate::output::explained(&error), tails.concat())
        }
    }
}

/// Checks what was typed against the machine.
pub(super) async fn plan(context: &Context, args: &RunArgs) -> anyhow::Result<Plan> {
    let maxmem = args.maxmem.unwrap_or(args.memory);
    let sizes =
        Sizes::new(args.memory, maxmem, args.floor, args.weight).map_err(|e| WrongUse(e.to_string()))?;
    let tunables = args.tuning.settings()?;
    let vmm = decide_vmm(args)?;
    let on_demand = pod::wanted(args, vmm, sizes)?;
    for (what, file) in files(args) {
        readable(what, file)?;
    }
    let dir = VmDir::new(context.run_dir.vm_dir(&args.name)?);
    dir.check_length()?;
    let group = args.cgroup.as_deref().map(|parent| group::Group::plan(parent, &args.name)).transpose()?;
    let machine = match vmm {
        Kind::Uml => Machine::Uml(uml::Uml::plan(args, sizes, &dir)?),
        Kind::Qemu => {
            let accel = kvm::decide(&context.run_dir, args.accel).await?;
            let pod = on_demand.then(|| pod::Pod::plan(args.pod, sizes)).transpose()?;
            Machine::Qemu(qemu::Qemu::plan(args, accel, pod)?)
        }
    };
    Ok(Plan { name: args.name.clone(), sizes, dir, machine, group, tunables })
}

/// The VMM that was chosen or that the kernel calls for, and whether the other options fit it.
fn decide_vmm(args: &RunArgs) -> anyhow::Result<Kind> {
    let wrong = |text: &str| Err(WrongUse(text.to_string()).into());
    let kind = match (args.vmm, &args.kernel) {
        (VmmChoice::Qemu, _) => Kind::Qemu,
        (VmmChoice::Uml, _) => Kind::Uml,
        (VmmChoice::Auto, Some(kernel)) => kind_of_kernel(kernel)?,
        (VmmChoice::Auto, None) if !args.disk.is_empty() => Kind::Qemu,
        (VmmChoice::Auto, None) => {
            return wrong(
                "nothing says what to run; give --kernel FILE, or --vmm uml for the linux.uml in PATH",
            );
        }
    };
    match kind {
        Kind::Uml if !args.qemu_arg.is_empty() => {
            wrong("--qemu-arg is for QEMU, and this VM runs in User Mode Linux")
        }
        Kind::Uml if args.accel != crate::args::Accel::Auto => {
            wrong("--accel is for QEMU; User Mode Linux needs no acceleration")
        }
        Kind::Qemu if args.hostfs.is_some() => {
            wrong("--hostfs is for User Mode Linux, and this VM runs in QEMU")
        }
        Kind::Qemu if args.kernel.is_none() && (args.initrd.is_some() || args.append.is_some()) => {
            wrong("--initrd and --append need --kernel")
        }
        Kind::Qemu if args.kernel.is_none() && args.disk.is_empty() && args.qemu_arg.is_empty() => {
            wrong("nothing to boot from; give --kernel FILE or --disk FILE")
        }
        Kind::Uml | Kind::Qemu => Ok(kind),
    }
}

/// QEMU for a Linux bzImage (`HdrS` at 0x202, Documentation/arch/x86/boot.rst), User Mode Linux for an
/// executable.
fn kind_of_kernel(kernel: &Path) -> anyhow::Result<Kind> {
    readable("kernel", kernel)?;
    let mut head = Vec::new();
    File::open(kernel)
        .and_then(|file| file.take(0x206).read_to_end(&mut head))
        .with_context(|| format!("cannot read the kernel {}", kernel.display()))?;
    if head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Kind::Qemu);
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(Kind::Uml);
    }
    Err(WrongUse(format!(
        "{} is neither a bzImage nor an executable, so it cannot be told what should run it; give --vmm qemu or --vmm uml",
        kernel.display()
    ))
    .into())
}

/// The files that were named, with what each is.
fn files(args: &RunArgs) -> impl Iterator<Item = (&'static str, &Path)> {
    let named = |what, file: &'_ Option<PathBuf>| file.clone().map(|_| what);
    let kernel = named("kernel", &args.kernel).zip(args.kernel.as_deref());
    let initrd = named("initial RAM disk", &args.initrd).zip(args.initrd.as_deref());
    kernel.into_iter().chain(initrd).chain(args.disk.iter().map(|disk| ("disk", disk.as_path())))
}

/// A file that is there and may be read.
fn readable(what: &str, file: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot read the {what} {}", file.display());
    if fs::metadata(file).with_context(cannot)?.is_dir() {
        bail!("{}: it is a folder", cannot());
    }
    File::open(file).map(drop).with_context(cannot)
}

/// A program that others provide, in PATH; `package` says where it may come from.
pub(super) fn foreign_program(name: &str, package: &str) -> anyhow::Result<PathBuf> {
    in_path(name).with_context(|| format!("cannot find {name} in PATH; it is in the package {package}"))
}

/// `file` as an absolute path.
pub(super) fn absolute(file: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(file).with_context(|| format!("cannot make {} absolute", file.display()))
}

#[cfg(test)]
mod test {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn args(line: &str) -> RunArgs {
        let words = ["plimsoll", "run", "--name", "web", "--memory", "64M"];
        let Command::Run(args) =
            Args::try_parse_from(words.into_iter().chain(line.split_whitespace())).unwrap().command
        else {
            panic!("{line} is no `run`");
        };
        *args
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        file
    }

    #[test]
    fn the_kernel_says_what_runs_it() {
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let (bz, elf, text) = (file(&image), file(b"\x7fELF..."), file(b"hello"));
        let kind =
            |f: &tempfile::NamedTempFile| decide_vmm(&args(&format!("--kernel {}", f.path().display())));
        assert_eq!(kind(&bz).unwrap(), Kind::Qemu);
        assert_eq!(kind(&elf).unwrap(), Kind::Uml);
        assert!(kind(&text).unwrap_err().is::<WrongUse>());
        assert_eq!(decide_vmm(&args("--disk /x")).unwrap(), Kind::Qemu);
    }

    #[test]
    fn options_that_do_not_fit_are_wrong_use() {
        for line in [
            "",
            "--vmm qemu",
            "--vmm qemu --initrd x --disk y",
            "--vmm uml --qemu-arg -nic",
            "--vmm uml --accel kvm",
            "--vmm qemu --disk y --hostfs /",
        ] {
            assert!(decide_vmm(&args(line)).unwrap_err().is::<WrongUse>(), "{line}");
        }
    }

    #[test]
    fn missing_files_and_folders_are_named() {
        let missing = readable("kernel", Path::new("/no/such/file")).unwrap_err();
        assert!(format!("{missing:#}").contains("cannot read the kernel /no/such/file: No such file"));
        let folder = readable("disk", Path::new("/")).unwrap_err();
        assert!(format!("{folder:#}").contains("it is a folder"));
    }
}
