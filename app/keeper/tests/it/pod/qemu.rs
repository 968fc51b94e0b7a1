//! Debian's QEMU and Debian's kernel, both as they are, under software emulation.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use plimsoll_api::control::Op;
use plimsoll_testbed::guard::{Process, ShmDir};
use plimsoll_testbed::guest::{Console, QEMU_PACKAGE};
use plimsoll_testbed::images::{self, Image};
use plimsoll_testbed::paths;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_uffd::agreement::OnPagerLoss;
use plimsoll_units::Bytes;

use super::guest::{Stop, guest_memory, resident, uffd, watched};
use super::process::tell;
use crate::common::Keeper;

/// Longer than a boot takes under emulation on a machine that is busy with something else.
const STEP: Duration = Duration::from_secs(300);
const TOLD: Bytes = Bytes::mib(512);
const GRANTED: Bytes = Bytes::mib(256);

/// A guest that believes in all of its memory.
struct Guest {
    process: Process,
    console: Console,
    memory: OwnedFd,
    keeper: Keeper,
}

impl Guest {
    /// Begins to boot; `None`, after saying so loudly, where something is missing.
    fn boot(test: &str, append: &str, more: &[&str]) -> Option<Self> {
        let image = unless_available(test, images::qemu())?;
        let program = unless_available(test, paths::program("qemu-system-x86_64", QEMU_PACKAGE))?;
        uffd(test)?;
        let memory = guest_memory(TOLD.0);
        let keeper = Keeper::start_pod(test, &memory, GRANTED, &["--give-up-after", "1000"]);
        let inherited = rustix::io::dup(&memory).unwrap();
        let mut command = qemu(&program, &image, inherited.as_raw_fd(), append);
        command.args(more);
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

#[test]
fn a_guest_that_zeroes_all_it_was_told_of_boots_on_half_of_it() {
    let Some(guest) = Guest::boot("pod-qemu-memtest", "memtest=1", &[]) else { return };
    let (total, most) = watched(&guest.memory, || guest.work(&["fill 64M 3", "verify"]));
    assert!(total > Bytes::mib(400).0, "{total}");
    assert!(most <= GRANTED.0, "{most}");
    let pager = guest.keeper.pager();
    assert!(pager.sweeps > 0 && pager.swept_frames > 0, "{pager:?}");
}

#[test]
fn killed_twenty_times_while_a_guest_boots_and_works_it_notices_nothing() {
    let Some(mut guest) = Guest::boot("pod-qemu-kills", "", &[]) else { return };
    let killed = AtomicBool::new(false);
    let (total, most) = watched(&guest.memory, || {
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

#[test]
fn sweeps_without_end_take_nothing_that_a_guest_or_its_disk_has_written() {
    soak("pod-qemu-sweeps", Duration::from_secs(15));
}

#[test]
#[ignore = "takes ten minutes: the long form of sweeps_without_end_take_nothing_that_a_guest_or_its_disk_has_written"]
fn ten_minutes_of_sweeps_take_nothing() {
    soak("pod-qemu-soak", Duration::from_secs(600));
}

/// A guest that fills and verifies memory, frees it (which zeroes it, so that there is something to be swept), and reads its disk past
/// its cache, while one sweep follows the other.
fn soak(test: &str, time: Duration) {
    let dir = ShmDir::create("disk").unwrap();
    let disk = dir.path().join("disk");
    let words = (1..=4_u64 << 17).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    std::fs::write(&disk, words.collect::<Vec<_>>()).unwrap();
    let sum = Command::new("md5sum").arg(&disk).output().unwrap().stdout;
    let sum = String::from_utf8_lossy(&sum).split(' ').next().unwrap().to_owned();
    let drive = format!("file={},format=raw,if=virtio,readonly=on", disk.display());
    let Some(guest) = Guest::boot(test, "init_on_free=1", &["-drive", &drive]) else { return };
    let read_disk = "sh dd if=/dev/vda bs=512k iflag=direct 2>/dev/null | md5sum";
    let done = AtomicBool::new(false);
    let (rounds, most) = watched(&guest.memory, || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let before = guest.keeper.ask(Op::Sweep).pager.unwrap().sweeps;
                    let next = || guest.keeper.pager().sweeps > before || done.load(SeqCst);
                    guest.keeper.wait("a sweep", |_| next().then_some(()));
                }
            });
            let _done = Stop(&done);
            guest.work(&[]);
            let (begun, mut rounds) = (Instant::now(), 0);
            while begun.elapsed() < time {
                rounds += 1;
                guest.work(&[&format!("fill 96M {rounds}"), "touch 1"]);
                let said = guest.console.ask(read_disk, STEP).unwrap();
                assert!(said.text().contains(&sum), "{} is not {sum}", said.text());
                guest.work(&["verify", "free"]);
            }
            rounds
        })
    });
    let pager = guest.keeper.pager();
    assert!(rounds > 0 && pager.sweeps > 2 && pager.swept_pages > 1000, "{rounds} rounds, {pager:?}");
    assert!(most <= GRANTED.0, "{most}");
    assert_eq!((guest.keeper.status().epoch, pager.stalls), (2, 0));
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
