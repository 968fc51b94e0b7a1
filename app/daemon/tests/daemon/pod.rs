//! VMs whose memory is populated on demand: a real QEMU whose CPUs never start, and a pager of straw.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Instant,
};

use plimsoll_api::http::{Life, VmView};
use plimsoll_model::{Link, OnExhausted, OnPagerLoss, Reason, Standstill, VmState};
use plimsoll_units::{Bytes, MemTarget};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::common::{
    CONFIG, Daemon, PATIENCE, Process,
    backend::{Backend, Manner},
    sizes, wait_for,
};
use crate::qemu::qemu;

const M: fn(u64) -> Bytes = Bytes::mib;

/// A VM of 64M of 128M with its QEMU and its pager.
struct World {
    daemon: Daemon,
    pager: Backend,
    qemu: Process,
    keeper: Process,
}

impl World {
    /// `None`, after saying so, without a QEMU.
    fn begin(config: &str, on_exhausted: OnExhausted, on_pager_loss: OnPagerLoss) -> Option<Self> {
        Self::with(config, on_exhausted, on_pager_loss, &[])
    }

    /// With more arguments for QEMU.
    fn with(
        config: &str,
        on_exhausted: OnExhausted,
        on_pager_loss: OnPagerLoss,
        more: &[&str],
    ) -> Option<Self> {
        let daemon = Daemon::start(config);
        let qmp = daemon.dir.path().join("qmp");
        let qemu = qemu(&qmp, &[&["-device", "virtio-balloon-pci"], more].concat())?;
        let pager = Backend::pager(daemon.dir.path(), "pager", 128, 64);
        let body = registration(&qmp, &pager.path, on_exhausted, on_pager_loss);
        wait_for("its registration", || (daemon.ask("POST", "/v1/vms", Some(&body)).0 == 201).then_some(()));
        let keeper = Process::idle();
        let processes = json!({ "vmm": qemu.reference(), "keeper": keeper.reference() });
        daemon.change("PATCH", "/v1/vms/a", &processes);
        daemon.wait_life("a", "running");
        wait_for("its pager's word", || daemon.show("a").pager.and_then(|pager| pager.status));
        Some(Self { daemon, pager, qemu, keeper })
    }

    fn show(&self) -> VmView {
        self.daemon.show("a")
    }

    fn set(&self, what: &Value) {
        self.daemon.change("PATCH", "/v1/vms/a", what);
    }

    fn resident(&self) -> Bytes {
        self.pager.guest().status.pager.unwrap().resident
    }
}

fn registration(qmp: &Path, control: &Path, on_exhausted: OnExhausted, on_pager_loss: OnPagerLoss) -> Value {
    json!({
        "name": "a",
        "endpoint": { "kind": "qemu", "qmp": qmp, "pager": control },
        "sizes": sizes(64, 128, 32),
        "adopt": false,
        "on_exhausted": on_exhausted,
        "on_pager_loss": on_pager_loss,
    })
}

/// Nothing but what calls for a tick makes one.
fn slow() -> String {
    format!("tick = \"5s\"\n{CONFIG}")
}

#[test]
fn a_guest_that_waits_goes_on_before_the_next_tick_is_due() {
    let Some(world) = World::begin(&slow(), OnExhausted::Grow, OnPagerLoss::Stall) else { return };
    let before = world.show();
    assert_eq!((before.target.0, before.resident, before.link), (M(64), Some(M(0)), Link::NoDriver));
    let begun = Instant::now();
    world.pager.guest().touch(M(70));
    wait_for("it to go on", || (world.resident() == M(70)).then_some(()));
    let took = begun.elapsed();
    assert!(took.as_millis() < 2500, "{took:?} of the 5 s to the next tick");
    let after = world.show();
    assert_eq!(after.target.0, M(72), "{after:?}");
    let change = after.last_change.unwrap();
    assert!(matches!(change.reason, Reason::Exhausted { granted, .. } if granted == M(8)), "{change:?}");
    wait_for("its relief to be told", || {
        world.daemon.kinds("a").contains(&"pod-relieved".to_owned()).then_some(())
    });
    let kinds = world.daemon.kinds("a");
    assert!(kinds.contains(&"pod-exhausted".to_owned()), "{kinds:?}");
    // It asks again and again, and is given twice as much each time.
    world.pager.guest().touch(M(128));
    wait_for("all of it", || (world.resident() == M(128)).then_some(()));
    let took = begun.elapsed();
    assert!(took.as_millis() < 4500, "{took:?} of the 5 s to the next tick");
    wait_for("its limit to be told", || {
        let metrics = world.daemon.get("/metrics");
        let limit = "plimsoll_vm_pager_limit_bytes{vm=\"a\"} 134217728";
        metrics.as_str().unwrap().contains(limit).then_some(())
    });
}

#[test]
fn a_guest_that_is_to_wait_waits_until_it_is_given_more() {
    let Some(world) = World::begin(CONFIG, OnExhausted::Wait, OnPagerLoss::Stall) else { return };
    world.pager.guest().touch(M(100));
    let vm = wait_for("it to be shown", || Some(world.show()).filter(|vm| vm.state == VmState::Stalled));
    assert!(
        matches!(vm.reason, Reason::Stalled { why: Standstill::Wait, limit, .. } if limit == M(64)),
        "{vm:?}"
    );
    assert_eq!((vm.life, vm.target.0, vm.resident), (Life::Running, M(64), Some(M(64))));
    world.daemon.wait_ticks(2);
    assert_eq!(world.resident(), M(64), "nobody gives it anything");
    let begun = Instant::now();
    world.set(&json!({ "memory": M(112) }));
    assert_eq!(world.resident(), M(100), "it has gone on when the change is answered");
    assert!(begun.elapsed().as_millis() < 2500, "{:?}", begun.elapsed());
    assert_eq!(world.show().target.0, M(112));
    // And the other way: what it does not hold is taken back at once, and no more of it than that.
    world.set(&json!({ "memory": M(64) }));
    wait_for("the limit to fall", || (world.show().pager?.status?.limit == M(100)).then_some(()));
    world.set(&json!({ "on_exhausted": "grow" }));
    world.pager.guest().touch(M(108));
    wait_for("it to go on by itself", || (world.resident() == M(108)).then_some(()));
}

#[test]
fn a_vm_is_stopped_where_that_was_wished_for_and_told_why() {
    let Some(world) = World::begin(CONFIG, OnExhausted::Stop, OnPagerLoss::Stall) else { return };
    world.pager.guest().touch(M(65));
    world.daemon.wait_life("a", "gone");
    assert_eq!(world.resident(), M(64));
    let events = world.daemon.get("/v1/events?vm=a");
    let told = events["events"].as_array().unwrap().iter().any(|event| {
        event["kind"] == "stopping" && event["text"].as_str().unwrap().contains("on-exhausted=stop")
    });
    assert!(told, "{events}");
}

/// A VMM of which a CPU waits for memory may not answer; nor can it end by itself.
#[test]
fn a_vmm_that_stands_still_with_its_guest_keeps_nobody_from_helping_it_or_ending_it() {
    for on_exhausted in [OnExhausted::Grow, OnExhausted::Stop] {
        let Some(world) = World::begin(CONFIG, on_exhausted, OnPagerLoss::Stall) else { return };
        let stopped = rustix::process::Pid::from_raw(world.qemu.reference().pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(stopped, Signal::STOP).unwrap();
        if on_exhausted == OnExhausted::Stop {
            world.pager.guest().touch(M(65));
            world.daemon.wait_life("a", "gone");
            continue;
        }
        world.daemon.wait_life("a", "unreachable");
        world.pager.guest().touch(M(80));
        wait_for("it to go on", || (world.resident() == M(80)).then_some(()));
        assert!(world.show().target.0 >= M(80));
    }
}

#[test]
fn a_pager_that_comes_back_is_told_again_and_one_that_lies_gains_nothing() {
    let Some(mut world) = World::begin(CONFIG, OnExhausted::Grow, OnPagerLoss::Stall) else { return };
    world.set(&json!({ "memory": M(96) }));
    world.pager.guest().status.pager.as_mut().unwrap().target = MemTarget(M(1));
    world.pager = world.pager.restart();
    wait_for("the target to be set again", || {
        let pager = world.pager.guest().status.pager?;
        (pager.target.0 == M(96)).then_some(())
    });
    wait_for("its start to be told", || {
        world.daemon.kinds("a").contains(&"backend-restarted".to_owned()).then_some(())
    });
    {
        let mut guest = world.pager.guest();
        let pager = guest.status.pager.as_mut().unwrap();
        (pager.limit, pager.resident, pager.target) =
            (Bytes(u64::MAX), Bytes(u64::MAX), MemTarget(Bytes(u64::MAX)));
    }
    wait_for("its lie", || {
        let status = world.show().pager?.status?;
        (status.limit == M(128) && status.resident == M(128)).then_some(())
    });
    world.pager.guest().manner = Manner::Refusing;
    world.set(&json!({ "memory": M(64) }));
    wait_for("the refusal", || world.show().problem.filter(|problem| problem.contains("its pager refused")));
    assert_eq!(world.daemon.get("/v1/host")["claimed"], json!(M(128 + 64)), "as much as it says it may take");
}

#[test]
fn a_pager_that_is_gone_for_good_is_told_and_its_vm_is_reckoned_with_as_it_was_wished() {
    for (on_pager_loss, claims) in [(OnPagerLoss::Stall, M(64 + 64)), (OnPagerLoss::Open, M(128 + 64))] {
        let Some(mut world) = World::begin(CONFIG, OnExhausted::Grow, on_pager_loss) else { return };
        world.pager.guest().touch(M(60));
        wait_for("it to be heard", || (world.show().resident == Some(M(60))).then_some(()));
        world.keeper.kill();
        let vm = world.daemon.wait_life("a", "unprotected");
        assert!(vm.pager.is_some_and(|pager| pager.lost));
        assert!(world.daemon.kinds("a").contains(&"pager-lost".to_owned()));
        let claimed = |daemon: &Daemon| daemon.get("/v1/host")["claimed"].clone();
        match on_pager_loss {
            OnPagerLoss::Stall => {
                wait_for("what it has to be claimed", || {
                    (claimed(&world.daemon) == json!(claims)).then_some(())
                });
            }
            // Its QEMU is asked as before, and its CPUs have never begun: by the kernel's count it has next to nothing.
            OnPagerLoss::Open => {
                wait_for("its QEMU to be heard", || (world.show().link == Link::NoDriver).then_some(()));
            }
        }
    }
}

/// One command over a monitor of its own; the answer's `return`.
fn monitor(socket: &Path, command: &str) -> Value {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["qmp_capabilities", command] {
        writeln!(&stream, "{{\"execute\": \"{command}\"}}").unwrap();
    }
    let answers = lines.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    answers.filter(|answer| !answer["return"].is_null()).nth(1).unwrap()["return"].clone()
}

#[test]
fn a_guest_that_is_rebooted_begins_with_nothing_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let second = dir.path().join("qmp2");
    let more = ["-qmp", &format!("unix:{},server=on,wait=off", second.display())];
    let Some(world) = World::with(&slow(), OnExhausted::Grow, OnPagerLoss::Stall, &more) else { return };
    monitor(&second, "cont");
    world.pager.guest().touch(M(60));
    wait_for("it to be heard", || (world.show().resident == Some(M(60))).then_some(()));
    let resets = || world.pager.guest().resets;
    monitor(&second, "system_reset");
    wait_for("its memory to be given back", || (resets() > 0).then_some(()));
    wait_for("it to run again", || {
        monitor(&second, "query-status")["running"].as_bool().unwrap().then_some(())
    });
    assert_eq!(resets(), 1, "once is enough");
    assert_eq!(world.resident(), M(0));
    wait_for("it to be told", || world.daemon.kinds("a").contains(&"rebooted".to_owned()).then_some(()));
    let rebooted = |kind: &&String| *kind == "rebooted";
    assert_eq!(world.daemon.kinds("a").iter().filter(rebooted).count(), 1, "{:?}", world.daemon.kinds("a"));

    // One that resets all the time keeps its memory, and runs.
    for _ in 0..5 {
        monitor(&second, "system_reset");
    }
    wait_for("it to run on", || monitor(&second, "query-status")["running"].as_bool().unwrap().then_some(()));
    assert!(resets() <= 3, "{}", resets());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "u", 512, 100);
    daemon.run_vm("u", &backend, sizes(256, 512, 128));
    let refused = daemon.refused("PATCH", "/v1/vms/u", &json!({ "on_exhausted": "wait" }), 422);
    assert!(refused.contains("populated on demand"), "{refused}");
    let body = registration(Path::new("/q"), Path::new("relative"), OnExhausted::Grow, OnPagerLoss::Stall);
    let refused = daemon.refused("POST", "/v1/vms", &body, 400);
    assert!(refused.contains("`relative` is not an absolute path"), "{refused}");
    let long = format!("/{}", "x".repeat(200));
    let body = registration(Path::new("/q"), Path::new(&long), OnExhausted::Grow, OnPagerLoss::Stall);
    assert!(daemon.refused("POST", "/v1/vms", &body, 400).contains("201 bytes"));
    let body = json!({ "on_exhausted": "never" });
    daemon.refused("PATCH", "/v1/vms/u", &body, 400);
}
