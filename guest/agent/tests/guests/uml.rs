//! User Mode Linux: a serial line that is one end of a socket pair.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use plimsoll_testbed::guest::{Guest, UmlSpec};
use plimsoll_testbed::images;
use plimsoll_testbed::skip::unless_available;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::set_socket_send_buffer_size;

use crate::host::{Host, STEP, agent_built, agrees_with_meminfo};

/// What an urgent report may take on a machine that has nothing else to do.
const AT_ONCE: Duration = Duration::from_millis(300);

/// Boots a guest whose agent speaks through `/dev/ttyS0`.
fn boot(name: &str, append: &str) -> Option<(Guest, Host)> {
    let image = unless_available(name, agent_built().and_then(|()| images::uml()))?;
    let (near, far) = UnixStream::pair().expect("makes");
    // As little as the kernel allows, so that a host that does not read is noticed soon.
    set_socket_send_buffer_size(&far, 1).expect("sets");
    fcntl_setfd(&far, FdFlags::empty()).expect("lets a child have it");
    let mut spec = UmlSpec::new(name, Bytes::mib(192), image);
    spec.append = format!("ssl0=fd:{} plimsoll.agent=--port,/dev/ttyS0 {append}", far.as_raw_fd());
    let guest = spec.boot().expect("boots");
    drop(far);
    Some((guest, Host::new(near)))
}

/// How long a load of 64 MiB takes to be told of: the middle one of five times.
fn time_to_tell(guest: &Guest, host: &mut Host) -> Duration {
    let mut took = [(); 5].map(|()| {
        host.until_quiet();
        let filling = guest.begin("fill 64M").expect("begins");
        let took = host.until_urgent();
        guest.wait(&filling, STEP).expect("fills");
        let after = host.next().stats;
        assert!(after.anon > Some(Bytes::mib(60)), "{after:?}");
        guest.send("free", STEP).expect("frees");
        took
    });
    took.sort();
    took[2]
}

#[test]
fn a_report_has_the_guests_own_numbers_and_a_load_is_told_at_once() {
    let Some((guest, mut host)) = boot("agent-uml", "") else { return };
    agrees_with_meminfo(&guest, &mut host);
    guest.send("fill 1M", STEP).expect("starts the worker");
    // Where other tests keep the machine busy, the guest as a whole is late at times.
    let told = poll_until(STEP, "an urgent report in 300 ms", || {
        let took = time_to_tell(&guest, &mut host);
        if took < AT_ONCE { Ok(()) } else { Err(format!("{took:?}")) }
    });
    told.unwrap_or_else(|error| panic!("{error}"));
    let counters = host.counters();
    assert_eq!((counters.bad_frames, counters.skipped_bytes, counters.flooded), (0, 0, 0));
}

#[test]
fn the_kernels_own_messages_on_the_line_are_skipped_and_a_reboot_begins_anew() {
    let Some((guest, mut host)) = boot("agent-noise", "console=ttyS0 console=tty0 loglevel=7") else {
        return;
    };
    let first = host.next();
    assert!(host.counters().skipped_bytes > 100, "the kernel's messages: {:?}", host.counters());
    agrees_with_meminfo(&guest, &mut host);
    guest.send("reboot", STEP).expect("goes down");
    guest.wait_boots(2, STEP).expect("comes up");
    host.until(STEP, "a report of the next boot", |report| report.session != first.session);
    agrees_with_meminfo(&guest, &mut host);
}

#[test]
fn a_host_that_does_not_read_costs_reports_and_nothing_else() {
    let Some((guest, mut host)) = boot("agent-deaf", "") else { return };
    host.ask_for(100);
    host.next();
    // The agent goes on counting; what it cannot send is lost as a whole.
    let lost = host.until_reports_are_lost();
    guest.send("ping", STEP).expect("the guest lives");
    agrees_with_meminfo(&guest, &mut host);
    let counters = host.counters();
    assert_eq!((counters.bad_frames, counters.skipped_bytes), (0, 0), "{lost} were lost");
    assert!(counters.frames > 5);
}

#[test]
fn the_host_sets_the_pace_and_garbage_from_it_harms_nothing() {
    let Some((guest, mut host)) = boot("agent-pace", "") else { return };
    host.until_quiet();
    host.babble(&[0xF5, b'P', b'l', 0xFA, 1, 2, 17, 0, 3, 4, 0x13, 0x11, 3, 26, 10].repeat(100));
    host.ask_for(100);
    let from = host.next();
    let begun = std::time::Instant::now();
    host.until(STEP, "20 reports", |report| report.seq >= from.seq + 20);
    assert!(begun.elapsed() < Duration::from_secs(10), "at the old pace it takes 20 s");
    agrees_with_meminfo(&guest, &mut host);
}
