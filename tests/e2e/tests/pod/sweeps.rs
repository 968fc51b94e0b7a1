//! Sweeps while a guest with two processors writes: every byte is as it was written.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plimsoll_api::control::{Op, Request, VERSION};
use plimsoll_e2e::{Bed, CALM, PATIENCE, mib};

use crate::kit::{MEMORY, boot, pager, possible, verify};

/// How long the guest writes; `PLIMSOLL_SOAK_SECONDS` makes it longer.
fn seconds() -> u64 {
    std::env::var("PLIMSOLL_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// Asks for one sweep after the other until it is told to end. Returns how many were asked for.
fn sweep_on(control: &Path, end: &AtomicBool) -> u64 {
    let mut stream = UnixStream::connect(control).expect("its back end listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit can be set");
    let mut answers = BufReader::new(stream.try_clone().expect("another descriptor"));
    let mut asked = 0;
    while !end.load(Ordering::Relaxed) {
        asked += 1;
        let request = Request { v: VERSION, id: asked, op: Op::Sweep };
        let line = serde_json::to_string(&request).expect("plain data");
        writeln!(stream, "{line}").expect("its back end reads");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("its back end answers");
        assert!(answer.contains("\"ok\""), "{answer}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    asked
}

#[test]
fn every_byte_is_as_it_was_written_while_sweeps_go_on_and_on() {
    const TEST: &str = "every_byte_is_as_it_was_written_while_sweeps_go_on_and_on";
    let Some(()) = possible(TEST) else { return };
    let Some(bed) = Bed::new(TEST, CALM) else { return };
    let more = ["--append", "loglevel=5", "--qemu-arg", "-smp", "--qemu-arg", "2"];
    let Some((vm, meter)) = boot(&bed, "web", &more) else { return };
    vm.reaches(mib(MEMORY));
    vm.send("fill 112M");
    let (control, end) = (bed.vm_dir("web").join("control.sock"), AtomicBool::new(false));
    let before = pager(&vm);
    let asked = std::thread::scope(|threads| {
        let sweeper = threads.spawn(|| sweep_on(&control, &end));
        let touched = vm.send(&format!("touch {}", seconds()));
        assert_eq!(touched.number("bad_pages"), Some(0), "{}", touched.text());
        // Memory comes, is zeroed and goes all the time.
        vm.send(&format!("churn {} 32M", seconds() / 2));
        end.store(true, Ordering::Relaxed);
        sweeper.join().expect("the sweeps were answered")
    });
    verify(&vm, mib(112));
    let after = vm.wait("its sweeps to be counted", PATIENCE, |view| {
        crate::kit::said(view).is_some_and(|pager| pager.sweeps > before.sweeps)
    });
    assert!(asked > 10, "{asked} sweeps were asked for: {after:#?}");
    meter.never_above(mib(MEMORY));
}
