//! Guests under the daemon's care.

use std::path::PathBuf;
use std::time::Duration;

use plimsoll_api::http::VmView;
use plimsoll_model::Sizes;
use plimsoll_testbed::guest::{Console, Guest, Pending, QemuBalloon, QemuSpec, Reply, resident};
use plimsoll_testbed::images;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;
use rustix::process::Pid;

use crate::{Bed, PATIENCE, mib};

/// How long a guest may take from `run` until its workload is ready.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// For the guest's kernel: warnings and errors only, so that little gets between the workload's lines.
const QUIET: &str = "loglevel=5";
/// For the guest's kernel: reports no free pages, so that what comes back to the host comes through the balloon. The
/// least order that would be reported is set to one that no free page has (`page_reporting_order`, mm/page_reporting.c
/// of Linux 5.14 and later).
pub const NO_REPORTS: &str = "loglevel=5 page_reporting.page_reporting_order=11";

/// What runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// User Mode Linux behind a keeper and our own balloon.
    Uml,
    /// QEMU under software emulation with its own balloon.
    Qemu,
}

/// Sizes in MiB, weight 100.
///
/// # Panics
/// When they are impossible.
#[must_use]
#[track_caller]
pub fn sizes(memory: u64, maxmem: u64, floor: u64) -> Sizes {
    Sizes::new(mib(memory), mib(maxmem), Some(mib(floor)), None).expect("possible sizes")
}

/// A guest that `plimsoll run` started, and its workload.
#[derive(Debug)]
pub struct Vm<'b> {
    /// Where it runs.
    pub bed: &'b Bed,
    /// Its name.
    pub name: String,
    /// What runs it.
    pub kind: Kind,
    /// Its console.
    pub console: Console,
    /// Its VMM's process id.
    pub pid: Pid,
}

impl Bed {
    /// `plimsoll run --name NAME` with these sizes and `more` arguments, and waits until the workload is ready.
    ///
    /// An `--append` among `more` replaces the words that the guest's kernel is given otherwise.
    /// `None`, after saying so loudly, where this machine has not what such a guest needs.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    #[track_caller]
    pub fn run(&self, kind: Kind, name: &str, sizes: Sizes, more: &[&str]) -> Option<Vm<'_>> {
        let vm = self.launch(kind, name, sizes, more)?;
        vm.console.wait_ready(1, BOOT_LIMIT).unwrap_or_else(|error| panic!("{name}: {error}"));
        Some(vm)
    }

    /// The same without waiting for the workload.
    ///
    /// # Panics
    /// When `run` fails.
    #[must_use]
    #[track_caller]
    pub fn launch(&self, kind: Kind, name: &str, sizes: Sizes, more: &[&str]) -> Option<Vm<'_>> {
        let args = self.run_args(kind, name, sizes, more)?;
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        self.ok(&args);
        let dir = self.vm_dir(name);
        let console = Console::open(&dir.join("console.in"), &dir.join("console.log"));
        let pid = self.view(name).vmm.and_then(|vmm| pid(vmm.pid)).expect("its process is known");
        let console = console.expect("its console can be opened");
        Some(Vm { bed: self, name: name.to_owned(), kind, console, pid })
    }

    /// What is typed after `plimsoll` to run such a guest.
    #[must_use]
    #[track_caller]
    pub fn run_args(&self, kind: Kind, name: &str, sizes: Sizes, more: &[&str]) -> Option<Vec<String>> {
        let image = unless_available(
            self.test(),
            match kind {
                Kind::Uml => images::uml(),
                Kind::Qemu => images::qemu(),
            },
        )?;
        let word = match kind {
            Kind::Uml => "uml",
            Kind::Qemu => "qemu",
        };
        let text = |path: PathBuf| path.display().to_string();
        let [memory, maxmem, floor] =
            [sizes.memory(), sizes.maxmem(), sizes.floor()].map(|size| size.to_string());
        let (kernel, initrd) = (text(image.kernel), text(image.initrd));
        let mut args =
            vec!["run", "--name", name, "--memory", &memory, "--maxmem", &maxmem, "--floor", &floor];
        args.extend(["--vmm", word, "--kernel", &kernel, "--initrd", &initrd]);
        if !more.contains(&"--append") {
            args.extend(["--append", QUIET]);
        }
        if kind == Kind::Qemu {
            // Emulation works everywhere; what has to be found out first is left to tests of `run` itself.
            args.extend(["--accel", "tcg"]);
        }
        args.extend(more);
        Some(args.into_iter().map(str::to_owned).collect())
    }
}

impl Vm<'_> {
    /// The VM as the daemon shows it.
    #[must_use]
    #[track_caller]
    pub fn view(&self) -> VmView {
        self.bed.view(&self.name)
    }

    /// Waits until the VM is as `is` wants it.
    ///
    /// # Panics
    /// With the last state seen, when it is not within `limit`.
    #[track_caller]
    pub fn wait(&self, what: &str, limit: Duration, is: impl Fn(&VmView) -> bool) -> VmView {
        self.bed.wait_vm(&self.name, limit, what, is)
    }

    /// Waits until the guest holds so much, and the daemon wants it so.
    ///
    /// # Panics
    /// When it does not come to that.
    #[track_caller]
    pub fn reaches(&self, size: Bytes) -> VmView {
        let what = format!("to have and hold {size}");
        self.wait(&what, PATIENCE, |view| view.actual.0 == size && view.target.0 == size)
    }

    /// Gives the workload a command, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn send(&self, command: &str) -> Reply {
        self.await_reply(command, self.console.ask(command, PATIENCE))
    }

    /// Gives the workload a command and goes on; [`Vm::finish`] waits for its end.
    ///
    /// # Panics
    /// When the console takes nothing.
    #[track_caller]
    pub fn begin(&self, command: &str) -> Pending {
        self.console.begin(command).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Waits for the end of a command, which must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn finish(&self, pending: &Pending) -> Reply {
        self.await_reply(pending.command(), self.console.answer(pending, PATIENCE))
    }

    #[track_caller]
    fn await_reply(&self, command: &str, reply: Result<Reply, plimsoll_testbed::BedError>) -> Reply {
        let reply = reply.unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert!(reply.is_ok(), "{} was told `{command}` and said: {}", self.name, reply.text());
        reply
    }

    /// What the guest's own /proc/meminfo says, in bytes: `total`, `free`, `available`.
    ///
    /// # Panics
    /// When it does not say.
    #[must_use]
    #[track_caller]
    pub fn meminfo(&self, key: &str) -> Bytes {
        let reply = self.send("meminfo");
        Bytes(reply.number(key).unwrap_or_else(|| panic!("no {key} in {}", reply.text())))
    }

    /// Where the nameless file that is its memory lies, for [`resident`]: a User Mode Linux's.
    #[must_use]
    pub fn ram_dir(&self) -> Option<PathBuf> {
        (self.kind == Kind::Uml).then(|| self.bed.ram())
    }

    /// The memory the host has given to the guest, by the host's own count of the file that is its RAM.
    ///
    /// # Panics
    /// When the VMM is gone.
    #[must_use]
    #[track_caller]
    pub fn resident(&self) -> Bytes {
        resident(self.pid, self.ram_dir().as_deref()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// Waits until the host's own count is as `is` wants it.
    ///
    /// # Panics
    /// With the last count, when it is not within [`PATIENCE`].
    #[track_caller]
    pub fn wait_resident(&self, what: &str, is: impl Fn(Bytes) -> bool) -> Bytes {
        let look = || {
            let now = self.resident();
            if is(now) { Ok(now) } else { Err(format!("{}M; {:?}", now.whole_mib(), self.view().backend)) }
        };
        poll_until(PATIENCE, &format!("{}: the host's count to be {what}", self.name), look)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The keeper's process id, and its back end's.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn keeper_and_backend(&self) -> (Pid, Pid) {
        let keeper = self.view().keeper.and_then(|keeper| pid(keeper.pid)).expect("it has a keeper");
        let path = format!("/proc/{0}/task/{0}/children", keeper.as_raw_nonzero());
        let look = || {
            let children = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
            let first = children.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
            first.and_then(pid).ok_or_else(|| "no child".to_owned())
        };
        let backend = poll_until(PATIENCE, "the keeper's back end", look);
        (keeper, backend.unwrap_or_else(|error| panic!("{error}")))
    }
}

fn pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// A QEMU that runs without Plimsoll and could be adopted.
#[derive(Debug)]
pub struct Adoptable(Guest);

impl Adoptable {
    /// Boots one with a balloon and a QMP socket.
    ///
    /// `None`, after saying so loudly, where this machine has not what it needs.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    #[track_caller]
    pub fn boot(test: &str, mem: Bytes) -> Option<Self> {
        let image = unless_available(test, images::qemu())?;
        let mut spec = QemuSpec::new("adoptable", mem, image);
        spec.balloon = QemuBalloon::Plain;
        Some(Self(spec.boot().unwrap_or_else(|error| panic!("{error}"))))
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.0
    }

    /// Its QMP socket, as it is typed.
    #[must_use]
    pub fn qmp(&self) -> String {
        self.0.qmp_socket().display().to_string()
    }
}
