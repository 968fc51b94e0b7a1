//! Real agents in real guests, heard by the real daemon.

use std::fs;
use std::time::{Duration, Instant};

use plimsoll_api::http::{AgentView, VmView};
use plimsoll_testbed::guest::Console;
use plimsoll_testbed::wait::poll_until;
use plimsoll_units::Bytes;

use crate::real::Bed;

const PATIENCE: Duration = Duration::from_secs(60);

/// What starts the agent in a guest of User Mode Linux.
const ON_SERIAL_LINE: [&str; 2] = ["--append", "plimsoll.agent=--port,/dev/ttyS0"];

impl Bed {
    /// Waits until the agent has said that.
    fn hears(&self, what: &str, is: impl Fn(&AgentView) -> bool) -> VmView {
        poll_until(PATIENCE, what, || {
            let vm = self.web();
            if vm.agent.as_ref().is_some_and(&is) { Ok(vm) } else { Err(format!("{vm:?}")) }
        })
        .unwrap_or_else(|error| {
            let console = fs::read_to_string(self.vm_dir().join("console.log")).unwrap_or_default();
            panic!("{error}\n{console}")
        })
    }

    /// Gives the guest's workload something to do.
    fn type_in(&self, command: &str) {
        let dir = self.vm_dir();
        let console = Console::open(&dir.join("console.in"), &dir.join("console.log")).unwrap();
        console.wait_ready(1, PATIENCE).unwrap();
        console.begin(command).unwrap();
    }
}

fn is_fresh(agent: &AgentView) -> bool {
    agent.age_ms < 2500
}

#[test]
fn the_agent_in_a_user_mode_linux_is_heard_on_its_serial_line() {
    const NAME: &str = "the_agent_in_a_user_mode_linux_is_heard_on_its_serial_line";
    let Some(bed) = Bed::start(NAME, "uml") else { return };
    bed.run_web(&ON_SERIAL_LINE).answer();
    let vm = bed.hears("an agent", is_fresh);
    let total = vm.agent.unwrap().stats.total.unwrap();
    assert!(total > Bytes::mib(60) && total < Bytes::mib(192), "{total}");

    // Its keeper's back end dies; the next one hears it too, and the guest notices nothing.
    let keeper = vm.keeper.unwrap().pid;
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap();
    let back_end = children.trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(back_end, rustix::process::Signal::KILL).unwrap();
    poll_until(PATIENCE, "the next back end", || {
        let epoch = bed.web().backend.map(|backend| backend.epoch);
        if epoch == Some(2) { Ok(()) } else { Err(format!("{epoch:?}")) }
    })
    .unwrap();
    bed.hears("the agent again", is_fresh);

    // What its programs take is seen in its own words; a second later at most, for it says so at once.
    bed.type_in("fill 40M 1");
    let begun = Instant::now();
    bed.hears("the load", |agent| agent.stats.anon.is_some_and(|anon| anon > Bytes::mib(35)));
    assert!(begun.elapsed() < Duration::from_secs(20));

    // The line outlives the guest's reboot, and what the guest before had said does not.
    bed.type_in("reboot");
    bed.hears("the next life", |agent| {
        is_fresh(agent) && agent.stats.anon.is_some_and(|anon| anon < Bytes::mib(20))
    });
    assert_eq!(bed.web().backend.unwrap().generation, 2);
    bed.run(&["stop", "web", "--kill"]).answer();
    bed.only_the_daemon_is_left();
}

#[test]
fn who_wants_no_line_for_an_agent_or_has_one_already_gets_none() {
    const NAME: &str = "who_wants_no_line_for_an_agent_or_has_one_already_gets_none";
    let Some(bed) = Bed::start(NAME, "uml") else { return };
    bed.run_web(&[&ON_SERIAL_LINE[..], &["--no-agent"]].concat()).answer();
    assert_eq!((bed.web().agent, bed.web().agent_line), (None, None));
    bed.run(&["stop", "web", "--kill"]).answer();
    let told = bed.run_web(&["--append", "ssl0=null"]);
    assert!(told.stderr.contains("no agent is listened to"), "{}", told.stderr);
    told.answer();
    assert_eq!(bed.web().agent_line, None);
    bed.run(&["stop", "web", "--kill"]).answer();
}

#[test]
fn the_agent_in_a_qemu_is_heard_on_its_port() {
    const NAME: &str = "the_agent_in_a_qemu_is_heard_on_its_port";
    let Some(bed) = Bed::start(NAME, "qemu") else { return };
    bed.run_web(&["--accel", "tcg", "--append", "plimsoll.agent"]).answer();
    let vm = bed.hears("an agent", is_fresh);
    let total = vm.agent.unwrap().stats.total.unwrap();
    assert!(total > Bytes::mib(60) && total < Bytes::mib(192), "{total}");
    assert!(vm.agent_line.unwrap().frames > 0);
    bed.type_in("reboot");
    poll_until(PATIENCE, "the reboot", || {
        let events = bed.run(&["events", "web"]).answer().to_owned();
        if events.contains("rebooted") { Ok(()) } else { Err(events) }
    })
    .unwrap();
    bed.hears("the next life", is_fresh);
    bed.run(&["stop", "web", "--kill"]).answer();
    bed.only_the_daemon_is_left();
}
