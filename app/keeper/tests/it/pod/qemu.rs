//! Debian's QEMU and Debian's kernel, both as they are, under software emulation.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use plimsoll_api::control::Op;
use plimsoll_testbed::guard::Process;
use plimsoll_testbed::guest::{Console, QEMU_PACKAGE};
use plimsoll_testbed::images::{self, Image};
use plimsoll_testbed::paths;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_units::Bytes;

use super::guest::{guest_memory, resident, uffd};
use super::process::tell;
use crate::common::Keeper;

/// Longer than a boot takes under emulation on a machine that is busy with something else.
const STEP: Duration = Duration::from_secs(300);
const TOLD: Bytes = Bytes::mib(512);
const GRANTED: Bytes = Bytes::mib(256);
/// How often the limit is looked at: 20 Hz and more.
const LOOK: Duration = Duration::from_millis(20);

/// A guest that believes in all of its memory.
struct Guest {
    process: Process,
    console: Console,
    memory: OwnedFd,
    keeper: Keeper,
}

impl Guest {
    /// Begins to boot; `None`, after saying so loudly, where something is missing.
    fn boot(test: &str, append: &str) -> Option<Self> {
        let image = unless_available(test, images::qemu())?;
        let program = unless_available(test, paths::program("qemu-system-x86_64", QEMU_PACKAGE))?;
        uffd(test)?;
        let memory = guest_memory(TOLD.0);
        let keeper = Keeper::start_pod(test, &memory, GRANTED, &["--give-up-after", "1000"]);
        let inherited = rustix::io::dup(&memory).unwrap();
        let mut command = qemu(&program, &image, inherited.as_raw_fd(), append);
        tell(&mut command, &keeper, &memory, OnPagerLoss::Stall);
        let (input, log) = (keeper.dir().join("console.in"), keeper.dir().join("console.log"));
        let console = Console::create(&input, &log).unwrap();
        let open = |path: &Path, writing: bool| {
            Stdio::from(File::options().read(!writing).append(writing).open(path).unwrap())
        };
        command.stdin(open(&input, false)).stdout(open(&log, true)).stderr(open(&log, true));
        Some(Self { process: Process::spawn("qemu", command).unwrap(), console, memory, keeper })
    }

    /// Waits until its workload is there, then does what it is told and shows how much memory it believes to have.
    #[track_caller]
    fn work(&self, commands: &[&str]) -> u64 {
        let booted = || match self.console.boots().unwrap() {
            0 => Err(self.console.tail(1)),
            _ => Ok(()),
        };
        poll_until(STEP, "the guest's workload", booted).unwrap_or_else(|error| panic!("{error}"));
        for command in commands {
            let reply = self.console.ask(command, STEP).unwrap();
            assert!(reply.is_ok(), "{command}: {}", reply.text());
        }
        self.console.ask("meminfo", STEP).unwrap().number("total").unwrap()
    }
}

fn qemu(program: &Path, image: &Image, memory: i32, append: &str) -> Command {
    let size = TOLD.whole_mib();
    let mut command = Command::new(program);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-smp", "2", "-m", &format!("{size}M")])
        .args(["-machine", "pc,accel=tcg,memory-backend=ram", "-chardev", "stdio,id=console,signal=off"])
        .args(["-serial", "chardev:console", "-object"])
        // Without `align` QEMU may map it where no huge page can be.
        .arg(format!(
            "memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{memory},align=2M,share=on"
        ))
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", &format!("console=ttyS0 loglevel=5 {append}")]);
    command
}

/// Runs `deed` while somebody looks at the limit. Returns what was most.
fn watched<T>(guest: &Guest, deed: impl FnOnce() -> T) -> (T, u64) {
    let (most, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    // Also when the deed fails: the watcher must end.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                most.fetch_max(resident(&guest.memory), SeqCst);
                std::thread::park_timeout(LOOK);
            }
        });
        let _stop = Stop(&stop);
        deed()
    });
    (done, most.load(SeqCst))
}

#[test]
fn a_guest_that_zeroes_all_it_was_told_of_boots_on_half_of_it() {
    let Some(guest) = Guest::boot("pod-qemu-memtest", "memtest=1") else { return };
    let (total, most) = watched(&guest, || guest.work(&["fill 64M 3", "verify"]));
    assert!(total > Bytes::mib(400).0, "{total}");
    assert!(most <= GRANTED.0, "{most}");
    let pager = guest.keeper.pager();
    assert!(pager.sweeps > 0 && pager.swept_frames > 0, "{pager:?}");
}

#[test]
fn killed_twenty_times_while_a_guest_boots_and_works_it_notices_nothing() {
    let Some(mut guest) = Guest::boot("pod-qemu-kills", "") else { return };
    let killed = AtomicBool::new(false);
    let (total, most) = watched(&guest, || {
        std::thread::scope(|scope| {
            let work = scope.spawn(|| {
                let round = || guest.work(&["fill 64M 3", "verify", "free"]);
                while !killed.load(SeqCst) {
                    round();
                }
                round()
            });
            for kill in 0..20 {
                kill_busy(&guest.keeper, kill % 2 == 0);
                std::thread::park_timeout(Duration::from_millis(30 * kill));
                assert!(!work.is_finished(), "it has failed");
            }
            killed.store(true, SeqCst);
            work.join().expect("it works")
        })
    });
    assert!(total > Bytes::mib(400).0, "{total}");
    assert!(most <= GRANTED.0, "{most}");
    guest.process.kill().unwrap();
    assert!(guest.keeper.process.wait_exit(STEP).unwrap().success());
    assert_eq!(resident(&guest.memory), 0, "all of it is the host's again");
}

/// Kills the back end in the middle of something: while it sweeps, or answers faults.
fn kill_busy(keeper: &Keeper, while_it_sweeps: bool) {
    let status = keeper.status();
    if while_it_sweeps {
        let _ = keeper.try_ask(Op::Sweep);
    } else {
        // Or not, if the guest just now has all it needs.
        let faults = || keeper.try_status().and_then(|status| status.pager).map_or(0, |pager| pager.faults);
        let busy = || (faults() > 0).then_some(()).ok_or_else(String::new);
        let _ = poll_until(Duration::from_secs(1), "a fault", busy);
    }
    assert!(keeper.kill_back_end());
    keeper.wait("another back end", |k| (k.status().epoch > status.epoch).then_some(()));
}
