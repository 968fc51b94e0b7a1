//! Memory that is populated on demand: a memfd that is made here, so that everybody knows which file it is; a keeper whose
//! back end serves its faults; and a library that is preloaded into QEMU and hands these over.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, bail};
use plimsoll_model::{OnExhausted, OnPagerLoss, Sizes, VmName};
use plimsoll_uffd::agreement::{self, LIBRARY};
use plimsoll_uffd::handover::file_id;
use plimsoll_uffd::{Features, Uffd, UffdError};
use rustix::fs::{MemfdFlags, SealFlags};

use super::start::Launch;
use crate::WrongUse;
use crate::args::{PodArgs, RunArgs};
use crate::commands::daemon::find_program;
use crate::record::{Kind, VmDir};

/// What the file is called in /proc/PID/fd: `/memfd:plimsoll-ram (deleted)`.
const FILE_NAME: &str = "plimsoll-ram";

/// Its size is what was admitted, and stays. Nobody may add a seal that would keep its pager from writing.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Where the library lies beside the folder of this program, as `/usr/lib/plimsoll` beside `/usr/bin`.
const LIBRARY_DIR: &str = "../lib/plimsoll";

/// Words in QEMU's own arguments that do not go with it, and why.
const UNFIT: [(&str, &str); 10] = [
    ("vfio", "a device that is passed through reads and writes memory past the page tables"),
    ("vhost-user", "another process maps the guest's memory then, and fills it unseen"),
    ("vhost-vdpa", "a device that is passed through reads and writes memory past the page tables"),
    ("cache=none", "O_DIRECT writes to the guest's memory past the page tables"),
    ("cache=directsync", "O_DIRECT writes to the guest's memory past the page tables"),
    ("direct=on", "O_DIRECT writes to the guest's memory past the page tables"),
    ("\"direct\":true", "O_DIRECT writes to the guest's memory past the page tables"),
    ("mem-prealloc", "all of the memory is populated before the guest begins"),
    ("prealloc=on", "all of the memory is populated before the guest begins"),
    ("mem-lock=on", "all of the memory is populated before the guest begins"),
];

/// A guest's memory that is to be populated on demand, and the programs that belong to it.
#[derive(Debug)]
pub(super) struct Pod {
    /// The guest's memory. Nobody but QEMU, keeper and back end inherits it.
    memory: OwnedFd,
    /// As the library is told of it.
    file: String,
    library: PathBuf,
    keeper: PathBuf,
    backend: PathBuf,
    pub(super) on_exhausted: OnExhausted,
    pub(super) on_pager_loss: OnPagerLoss,
}

/// Whether a VM's memory is to be populated on demand, by what was typed.
pub(super) fn wanted(args: &RunArgs, kind: Kind, sizes: Sizes) -> Result<bool, WrongUse> {
    let wrong = |text: String| Err(WrongUse(text));
    let pod = args.pod;
    match (kind, pod.asked()) {
        (Kind::Uml, Some(option)) => {
            wrong(format!("{option} is for QEMU; a User Mode Linux' memory is not populated on demand"))
        }
        (Kind::Uml, None) => Ok(false),
        (Kind::Qemu, _) if pod.no_pod => Ok(false),
        (Kind::Qemu, Some(option)) if sizes.memory() == sizes.maxmem() => wrong(format!(
            "{option} needs a --maxmem above --memory={}: a guest that is granted all it is told of has nothing to be \
             populated later",
            sizes.memory()
        )),
        (Kind::Qemu, None) if sizes.memory() == sizes.maxmem() => Ok(false),
        (Kind::Qemu, _) => unfit(&args.qemu_arg).map_or(Ok(true), |(arg, why)| {
            wrong(format!(
                "--qemu-arg {arg} does not go with memory that is populated on demand: {why}; leave it out, or give --no-pod"
            ))
        }),
    }
}

/// The first of QEMU's own arguments that does not go with it.
fn unfit(args: &[String]) -> Option<(&str, &'static str)> {
    args.iter().find_map(|arg| {
        let dense: String = arg.chars().filter(|c| !c.is_whitespace()).collect();
        let (_, why) = UNFIT.iter().find(|(word, _)| dense.contains(word))?;
        Some((arg.as_str(), *why))
    })
}

impl Pod {
    /// Makes the memory; fails with the name of the setting where the kernel does not let its faults be served.
    pub(super) fn plan(pod: PodArgs, sizes: Sizes) -> anyhow::Result<Self> {
        served_here().map_err(|error| {
            anyhow::anyhow!(
                "its memory cannot be populated on demand: {error}. Change that, or give --no-pod: then the guest may touch \
                 all of {} until its balloon driver is up",
                sizes.maxmem()
            )
        })?;
        let library = library()?;
        let (keeper, backend) = (find_program("plimsoll-keeper")?, find_program("plimsoll-backend")?);
        let memory = memory(sizes).context("cannot make the guest's memory")?;
        let (file, _) = file_id(&memory)?;
        Ok(Self {
            memory,
            file: file.to_string(),
            library,
            keeper,
            backend,
            on_exhausted: pod.on_exhausted(),
            on_pager_loss: pod.on_pager_loss(),
        })
    }

    /// The memory, which QEMU has to inherit under the number that [`Self::backend_option`] names.
    pub(super) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The memory, as the keeper's standard input.
    pub(super) fn stdin(&self) -> anyhow::Result<Stdio> {
        Ok(self.memory.try_clone().context("cannot copy a descriptor")?.into())
    }

    /// What QEMU is told of its memory. Whole 2 MiB of the file are to lie at whole 2 MiB of QEMU's addresses, or there are
    /// no huge pages.
    pub(super) fn backend_option(&self, id: &str, sizes: Sizes) -> OsString {
        let (size, fd) = (sizes.maxmem().0, self.memory.as_raw_fd());
        format!("memory-backend-file,id={id},share=on,align=2M,size={size},mem-path=/proc/self/fd/{fd}")
            .into()
    }

    /// What QEMU's environment says.
    pub(super) fn environment(&self, dir: &VmDir) -> Vec<(OsString, OsString)> {
        let others = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty());
        let mut preload = OsString::from(&self.library);
        if let Some(other) = others {
            preload.push(":");
            preload.push(other);
        }
        let loss = match self.on_pager_loss {
            OnPagerLoss::Stall => agreement::OnPagerLoss::Stall,
            OnPagerLoss::Open => agreement::OnPagerLoss::Open,
        };
        vec![
            ("LD_PRELOAD".into(), preload),
            (agreement::FILE.into(), self.file.clone().into()),
            (agreement::SOCKET.into(), dir.pod_socket().into()),
            (agreement::ON_LOSS.into(), loss.word().into()),
        ]
    }

    /// The keeper's command line.
    pub(super) fn keeper(&self, name: &VmName, sizes: Sizes, dir: &VmDir) -> Launch {
        let pairs: [(&str, OsString); 5] = [
            ("--name", name.as_str().into()),
            ("--dir", dir.path().into()),
            ("--backend", self.backend.clone().into()),
            ("--maxmem", sizes.maxmem().0.to_string().into()),
            ("--target", sizes.memory().0.to_string().into()),
        ];
        let mut args: Vec<OsString> =
            pairs.into_iter().flat_map(|(option, value)| [option.into(), value]).collect();
        args.push("--pod".into());
        Launch { program: self.keeper.clone(), args, env: Vec::new() }
    }
}

/// Whether the kernel lets a process of this user watch a guest's memory.
fn served_here() -> Result<(), UffdError> {
    Uffd::open(Features::SHARED_GUEST).map(drop)
}

/// An empty file of the guest's size, sealed.
fn memory(sizes: Sizes) -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create(FILE_NAME, flags)?;
    rustix::fs::ftruncate(&memory, sizes.maxmem().0)?;
    rustix::fs::fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// The library: beside this program, or where a package puts it.
fn library() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let places = [beside.join(LIBRARY), beside.join(LIBRARY_DIR).join(LIBRARY)];
    let found = places.iter().find_map(|place| place.canonicalize().ok().filter(|path| path.is_file()));
    let Some(found) = found else {
        bail!(
            "cannot find {LIBRARY}, which populates memory on demand: it is neither beside {} nor in {}; give --no-pod to do \
             without",
            own.display(),
            beside.join(LIBRARY_DIR).display()
        );
    };
    // The loader takes both for the end of a name (ld.so(8)).
    if found.to_string_lossy().contains([':', ' ']) {
        bail!("{} cannot be preloaded: its path has a colon or a blank in it", found.display());
    }
    Ok(found)
}

#[cfg(test)]
mod test {
    use clap::Parser;
    use plimsoll_units::Bytes;

    use super::*;
    use crate::args::{Args, Command};

    fn run(line: &str) -> (RunArgs, Sizes) {
        let words = ["plimsoll", "run", "--name", "web"];
        let args = Args::try_parse_from(words.into_iter().chain(line.split_whitespace())).unwrap();
        let Command::Run(args) = args.command else { panic!("{line} is no `run`") };
        let sizes = Sizes::new(args.memory, args.maxmem.unwrap_or(args.memory), None, None).unwrap();
        (*args, sizes)
    }

    fn decided(line: &str, kind: Kind) -> Result<bool, String> {
        let (args, sizes) = run(line);
        wanted(&args, kind, sizes).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_the_default_where_it_means_something() {
        for (line, kind, is) in [
            ("--memory 256M --maxmem 512M", Kind::Qemu, true),
            ("--memory 256M --maxmem 512M --pod --on-exhausted wait", Kind::Qemu, true),
            ("--memory 256M --maxmem 512M --no-pod", Kind::Qemu, false),
            ("--memory 256M", Kind::Qemu, false),
            ("--memory 256M --maxmem 512M", Kind::Uml, false),
            ("--memory 256M --maxmem 512M --no-pod", Kind::Uml, false),
        ] {
            assert_eq!(decided(line, kind), Ok(is), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_wrong_use() {
        for (line, kind, word) in [
            ("--memory 256M --pod", Kind::Qemu, "--pod needs a --maxmem above --memory=256M"),
            ("--memory 256M --on-exhausted stop", Kind::Qemu, "--on-exhausted needs"),
            ("--memory 256M --maxmem 512M --pod", Kind::Uml, "--pod is for QEMU"),
            ("--memory 256M --maxmem 512M --on-pager-loss open", Kind::Uml, "--on-pager-loss is for QEMU"),
            ("--memory 64M --maxmem 128M --qemu-arg vfio-pci,host=1", Kind::Qemu, "past the page tables"),
            ("--memory 64M --maxmem 128M --qemu-arg file=x,cache=none", Kind::Qemu, "--no-pod"),
            ("--memory 64M --maxmem 128M --qemu-arg vhost-user-fs-pci", Kind::Qemu, "unseen"),
        ] {
            let error = decided(line, kind).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
        let words = ["plimsoll", "run", "--name", "x", "--memory", "1M", "--no-pod"];
        for option in [&["--pod"][..], &["--on-exhausted", "grow"], &["--on-pager-loss", "open"]] {
            let line = words.iter().chain(option);
            Args::try_parse_from(line).unwrap_err();
        }
        let json = vec![r#"{"driver":"file", "cache": {"direct": true}}"#.to_string()];
        assert!(unfit(&json).is_some());
        assert_eq!(unfit(&["-smp".to_string(), "2".to_string()]), None);
    }

    #[test]
    fn the_memory_has_its_size_for_ever() {
        let sizes = Sizes::new(Bytes::mib(2), Bytes::mib(4), None, None).unwrap();
        let memory = memory(sizes).unwrap();
        rustix::fs::ftruncate(&memory, Bytes::mib(4).0).unwrap();
        for other in [Bytes::mib(2), Bytes::mib(6)] {
            rustix::fs::ftruncate(&memory, other.0).unwrap_err();
        }
        rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).unwrap_err();
        assert_eq!(rustix::fs::fstat(&memory).unwrap().st_blocks, 0);
    }

    #[test]
    fn qemu_keeper_and_library_are_told_of_the_same_file() {
        let sizes = Sizes::new(Bytes::mib(2), Bytes::mib(4), None, None).unwrap();
        let memory = memory(sizes).unwrap();
        let (file, size) = file_id(&memory).unwrap();
        let pod = Pod {
            memory,
            file: file.to_string(),
            library: "/usr/lib/plimsoll/libplimsoll_pod_preload.so".into(),
            keeper: "/usr/bin/plimsoll-keeper".into(),
            backend: "/usr/bin/plimsoll-backend".into(),
            on_exhausted: OnExhausted::Grow,
            on_pager_loss: OnPagerLoss::Open,
        };
        let dir = VmDir::new("/run/web".into());
        let option = pod.backend_option("ram", sizes).into_string().unwrap();
        let fd = pod.memory.as_raw_fd();
        assert!(option.ends_with(&format!("size={size},mem-path=/proc/self/fd/{fd}")), "{option}");
        let environment = pod.environment(&dir);
        let value = |name: &str| {
            let found = environment.iter().find(|(one, _)| one == name).unwrap();
            found.1.to_str().unwrap().to_owned()
        };
        assert!(value("LD_PRELOAD").starts_with("/usr/lib/plimsoll/libplimsoll_pod_preload.so"));
        assert_eq!(value("PLIMSOLL_POD_FILE"), file.to_string());
        assert_eq!(value("PLIMSOLL_POD_SOCKET"), "/run/web/pod.sock");
        assert_eq!(value("PLIMSOLL_POD_ON_LOSS"), "open");
        let keeper = pod.keeper(&"web".parse().unwrap(), sizes, &dir);
        let words: Vec<&str> = keeper.args.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(
            words.join(" "),
            "--name web --dir /run/web --backend /usr/bin/plimsoll-backend --maxmem 4194304 --target 2097152 --pod"
        );
    }
}
