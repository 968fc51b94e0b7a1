//! Debian's QEMU and Debian's kernel, both as they are, under software emulation.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use plimsoll_qmp::{QmpClient, QmpSocket};
use plimsoll_testbed::guard::Process;
use plimsoll_testbed::guest::{Console, QEMU_PACKAGE, Reply};
use plimsoll_testbed::images::{self, Image};
use plimsoll_testbed::paths;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_uffd::agreement::exit;
use plimsoll_uffd::handover::PodListener;
use plimsoll_units::{Bytes, FRAME_SIZE, MemTarget, PAGE_SIZE};

use crate::bed::{Bed, guest_memory, resident};
use crate::ledger::{Keeping, Ledger};
use crate::pager::{Taken, accept};

/// Longer than a boot takes under emulation on a machine that is busy with something else.
const STEP: Duration = Duration::from_secs(300);
const MEMORY: Bytes = Bytes::mib(256);
/// What the guest fills and frees: memory that is there and that its balloon can take.
const FILLED: Bytes = Bytes::mib(96);
/// What the balloon takes.
const INFLATED: Bytes = Bytes::mib(128);
const QMP: &str = "qmp.sock";

/// QEMU with its memory on the file that it inherits.
fn qemu(bed: &Bed, more: &[&str]) -> Option<Command> {
    let program = unless_available("QEMU", paths::program("qemu-system-x86_64", QEMU_PACKAGE))?;
    let mut command = Command::new(program);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-smp", "2", "-m"])
        .arg(format!("{}M", MEMORY.whole_mib()))
        .args(["-machine", "pc,accel=tcg,memory-backend=ram", "-chardev", "stdio,id=console,signal=off"])
        .args(["-serial", "chardev:console"])
        .args(["-device", "virtio-balloon-pci,id=balloon0,free-page-reporting=on"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", bed.dir.path().join(QMP).display()))
        .args(more);
    bed.tell(&mut command);
    Some(command)
}

/// The memory backend. Without `align` QEMU may map it where no huge page can be.
fn backend(bed: &Bed, share: &str) -> String {
    let (size, fd) = (MEMORY.whole_mib(), bed.memory.as_raw_fd());
    format!("memory-backend-file,id=ram,size={size}M,mem-path=/proc/self/fd/{fd},align=2M,share={share}")
}

struct Guest {
    process: Process,
    console: Console,
}

impl Guest {
    fn start(dir: &Path, mut command: Command) -> Self {
        let (input, log) = (dir.join("console.in"), dir.join("console.log"));
        let console = Console::create(&input, &log).unwrap();
        let open = |path: &Path, writing: bool| {
            Stdio::from(File::options().read(!writing).append(writing).open(path).unwrap())
        };
        // The console holds both ends of the FIFO open, hence this does not wait for a writer.
        command.stdin(open(&input, false)).stdout(open(&log, true)).stderr(open(&log, true));
        Self { process: Process::spawn("qemu", command).unwrap(), console }
    }

    #[track_caller]
    fn wait_ready(&mut self) {
        let ready = poll_until(STEP, "the guest's workload", || match self.console.boots().unwrap() {
            0 if self.process.exited().is_some() => Ok(false),
            0 => Err(self.console.tail(1)),
            _ => Ok(true),
        });
        assert_eq!(ready, Ok(true), "QEMU has ended: {}", self.console.tail(10));
    }

    #[track_caller]
    fn ask(&self, command: &str) -> Reply {
        let reply = self.console.ask(command, STEP).unwrap();
        assert!(reply.is_ok(), "{command}: {}", reply.text());
        reply
    }
}

/// Speaks QEMU's machine protocol for one command.
fn qmp<T>(path: &Path, deed: impl AsyncFnOnce(&mut QmpClient) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = QmpSocket::connect(path, STEP).await.unwrap();
        let mut client = socket.handshake(STEP).await.unwrap();
        deed(&mut client).await
    })
}

/// Where the file is mapped in a process.
fn mappings(pid: i32) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("memfd:plimsoll-guest")).map(str::to_owned).collect()
}

#[test]
fn stock_qemu_runs_on_what_the_pager_gives_and_its_balloon_is_seen() {
    let test = "stock_qemu_runs_on_what_the_pager_gives_and_its_balloon_is_seen";
    let Some(image) = unless_available(test, images::qemu()) else { return };
    let Some(mut bed) = Bed::new(test) else { return };
    bed.memory = guest_memory(MEMORY.0);
    let listener = PodListener::bind(&bed.socket()).unwrap();
    let (mut guest, taken) = start(&bed, &image, &listener);
    let ledger = Arc::new(Mutex::new(Ledger::new(&bed.memory, MEMORY.0)));
    let keeping = Keeping::start(taken, &ledger);
    guest.wait_ready();
    // The guest believes in all of its memory, and its boot took whole frames.
    assert!(guest.ask("meminfo").number("total") > Some(Bytes::mib(200).0));
    let booted = look(&ledger, &bed);
    assert!(booted.resident < MEMORY.0 && booted.faults <= MEMORY.0 / FRAME_SIZE, "{booted:?}");
    guest.ask(&format!("fill {}", FILLED.0));
    guest.ask("verify");
    guest.ask("free");
    let filled = look(&ledger, &bed);
    assert!(filled.resident >= FILLED.0);
    let socket = bed.dir.path().join(QMP);
    let target = MemTarget(MEMORY.minus(INFLATED));
    qmp(&socket, async |client| client.set_target(target).await.unwrap());
    let inflated = || {
        let now = qmp(&socket, async |client| client.query_balloon().await.unwrap());
        if now == target { Ok(()) } else { Err(now.to_string()) }
    };
    poll_until(STEP, "the balloon", inflated).unwrap();
    let stopped = pause(&socket, &ledger, &bed);
    // Each page of the balloon is a call of its own; a fault beside them has filled a whole frame again.
    assert!(stopped.hints >= INFLATED.0 / PAGE_SIZE && stopped.resident < filled.resident, "{stopped:?}");
    // What is deflated is touched as memory that never was, and is good memory.
    qmp(&socket, async |client| {
        client.cont().await.unwrap();
        client.set_target(MemTarget(MEMORY)).await.unwrap();
    });
    guest.ask(&format!("fill {}", Bytes::mib(160).0));
    guest.ask("verify");
    let last = pause(&socket, &ledger, &bed);
    assert!(last.resident >= Bytes::mib(160).0, "{last:?}");
    assert_eq!(mappings(guest.process.pid().as_raw_nonzero().get()).len(), 1);
    guest.process.kill().unwrap();
    drop(keeping);
}

/// Starts it, and takes its memory over.
fn start(bed: &Bed, image: &Image, listener: &PodListener) -> (Guest, Taken) {
    let (kernel, initrd) = (image.kernel.to_string_lossy(), image.initrd.to_string_lossy());
    let backend = backend(bed, "on");
    let more = ["-object", &backend, "-kernel", &kernel, "-initrd", &initrd];
    let command = qemu(bed, &[&more[..], &["-append", "console=ttyS0 loglevel=5"]].concat());
    let guest = Guest::start(bed.dir.path(), command.expect("images::qemu has found it"));
    let taken = accept(listener, bed);
    assert_eq!(taken.range.start() % FRAME_SIZE, 0, "huge pages could not be mapped");
    (guest, taken)
}

/// What the pager and the kernel say of the memory.
#[derive(Debug)]
struct Look {
    faults: u64,
    hints: u64,
    resident: u64,
}

fn lock(ledger: &Arc<Mutex<Ledger>>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap()
}

/// While the guest runs.
fn look(ledger: &Arc<Mutex<Ledger>>, bed: &Bed) -> Look {
    let ledger = lock(ledger);
    Look { faults: ledger.faults, hints: ledger.hints, resident: resident(&bed.memory) }
}

/// Stops the guest, waits until all hints are read, and compares ledger and file page by page.
#[track_caller]
fn pause(qmp_socket: &Path, ledger: &Arc<Mutex<Ledger>>, bed: &Bed) -> Look {
    qmp(qmp_socket, async |client| client.stop().await.unwrap());
    let agrees = || {
        let ledger = lock(ledger);
        let (known, there) = (ledger.present() * PAGE_SIZE, resident(&bed.memory));
        if known == there { Ok(()) } else { Err(format!("the ledger has {known}, the file {there}")) }
    };
    poll_until(Duration::from_secs(60), "ledger and file to agree", agrees).unwrap();
    assert!(lock(ledger).agrees_page_by_page());
    look(ledger, bed)
}

#[test]
fn qemu_that_does_not_share_its_memory_is_ended() {
    let Some(mut bed) = Bed::new("qemu_that_does_not_share_its_memory_is_ended") else { return };
    bed.memory = guest_memory(MEMORY.0);
    let Some(command) = qemu(&bed, &["-object", &backend(&bed, "off")]) else { return };
    let mut guest = Guest::start(bed.dir.path(), command);
    let status = guest.process.wait_exit(STEP).unwrap();
    assert_eq!(status.code(), Some(exit::MAPPING));
    assert!(guest.console.text().unwrap().contains("share=on"), "{}", guest.console.tail(3));
}
