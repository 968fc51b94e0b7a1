//! QEMU: a virtio-serial port behind a socket.

use plimsoll_testbed::guard::ShmDir;
use plimsoll_testbed::guest::QemuSpec;
use plimsoll_testbed::images;
use plimsoll_testbed::skip::unless_available;
use plimsoll_units::Bytes;

use crate::host::{Host, STEP, agent_built, agrees_with_meminfo};

#[test]
fn through_a_virtio_port_that_the_agent_finds_by_its_name() {
    let name = "agent-qemu";
    let Some(image) = unless_available(name, agent_built().and_then(|()| images::qemu())) else { return };
    let dir = ShmDir::create(name).expect("a directory");
    let socket = dir.path().join("agent.sock");
    let mut spec = QemuSpec::new(name, Bytes::mib(256), image);
    spec.append = "plimsoll.agent".into();
    let chardev = format!("socket,id=agent,path={},server=on,wait=off", socket.display());
    let port = format!("virtserialport,chardev=agent,name={}", plimsoll_agent_proto::PORT_NAME);
    let arguments = ["-device", "virtio-serial-pci", "-chardev", &chardev, "-device", &port];
    spec.arguments = arguments.map(str::to_owned).to_vec();
    let guest = spec.boot().expect("boots");

    // The agent has spoken into the void until now.
    let mut host = Host::connect(&socket);
    let first = host.next();
    agrees_with_meminfo(&guest, &mut host);
    guest.send("fill 1M", STEP).expect("starts the worker");
    host.until_quiet();
    let filling = guest.begin("fill 96M").expect("begins");
    host.until_urgent();
    guest.wait(&filling, STEP).expect("fills");
    host.ask_for(200);
    agrees_with_meminfo(&guest, &mut host);

    // A host that goes and comes again finds the same agent, and nothing but whole frames after the first.
    drop(host);
    guest.send("free", STEP).expect("frees");
    let mut host = Host::connect(&socket);
    agrees_with_meminfo(&guest, &mut host);
    let later = host.next();
    assert_eq!(later.session, first.session);
    assert!(host.counters().bad_frames <= 1, "{:?}", host.counters());
}
