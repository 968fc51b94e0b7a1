//! The API by its own words.

use std::{io::Write, os::unix::net::UnixStream, time::Instant};

use plimsoll_api::http::{EventList, Explain};
use plimsoll_model::VmState;
use plimsoll_units::{Bytes, MemTarget};
use serde_json::{Value, json};

use crate::common::{CONFIG, Daemon, backend::Backend, client, registration, sizes, wait_for};

fn target(mib: u64) -> MemTarget {
    MemTarget(Bytes::mib(mib))
}

#[test]
fn a_vm_from_registration_to_oblivion() {
    let daemon = Daemon::start(CONFIG);
    let control = daemon.dir.path().join("web.sock");
    let registered = daemon.register("web", &control, sizes(256, 512, 128));
    assert_eq!((registered.id.0, registered.owner_uid, registered.target), (1, 0, target(256)));
    daemon.wait_life("web", "starting");

    let backend = Backend::start(daemon.dir.path(), "web", 512, 100);
    daemon.wait_life("web", "running");
    let vm = wait_for("the balloon to reach the baseline", || {
        let vm = daemon.show("web");
        (vm.actual == target(256)).then_some(vm)
    });
    assert_eq!(vm.state, VmState::Ok);
    assert_eq!(vm.backend.unwrap().epoch, 1);
    assert_eq!(
        vm.keeper.unwrap().pid,
        std::process::id(),
        "whoever listens is the keeper, unless told otherwise"
    );
    assert_eq!(backend.guest().status.num_pages.0.bytes(), Bytes::mib(256));

    let held = daemon.change("PUT", "/v1/vms/web/hold", &json!({ "target": Bytes::mib(384) }));
    assert_eq!((held.hold, held.target), (Some(target(384)), target(384)));
    assert_eq!(held.last_change.unwrap().by, "0");
    wait_for("the guest to follow", || (daemon.show("web").actual == target(384)).then_some(()));
    let released = daemon.change("DELETE", "/v1/vms/web/hold", &Value::Null);
    assert_eq!(released.hold, None);
    let more = daemon.change("PATCH", "/v1/vms/web", &json!({ "memory": Bytes::mib(448), "weight": 7 }));
    assert_eq!((more.sizes.memory(), more.sizes.weight(), more.target), (Bytes::mib(448), 7, target(448)));

    let explained: Explain = serde_json::from_value(daemon.get("/v1/vms/web/explain")).unwrap();
    assert_eq!(explained.changes[0].to, target(448));
    assert!(explained.changes.iter().any(|c| c.to == target(384) && c.by == "0"));
    let list = daemon.list();
    assert_eq!((list.vms.len(), list.host.told), (1, Bytes::mib(512)));
    assert_eq!(list.host.guaranteed, Bytes::mib(128 + 16));
    let metrics = daemon.get("/metrics");
    assert!(
        metrics.as_str().unwrap().contains("plimsoll_vm_target_bytes{vm=\"web\"} 469762048"),
        "{metrics}"
    );
    assert!(daemon.get("/v1/config").as_str().unwrap().contains("budget = \"4G\""));

    daemon.change("DELETE", "/v1/vms/web", &Value::Null);
    daemon.refused("GET", "/v1/vms/web", &Value::Null, 404);
    assert_eq!(backend.guest().status.num_pages.0.bytes(), Bytes::mib(64), "a forgotten VM is left as it is");
    let kinds: Vec<String> = daemon.events().events.into_iter().map(|e| e.kind).collect();
    for kind in ["daemon-started", "registered", "running", "held", "target", "released", "forgotten"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} in {kinds:?}");
    }
}

#[test]
fn a_vm_may_begin_with_its_settings() {
    let mut daemon = Daemon::start(CONFIG);
    let with = |name: &str, tunables: Value| {
        let mut body = registration(name, &daemon.dir.path().join(name), sizes(256, 512, 128));
        body["tunables"] = tunables;
        body
    };
    let all =
        json!({ "selfballooning": "on", "selfballoon_interval": "2", "frontswap_selfshrinking": "off" });
    let vm = daemon.change("POST", "/v1/vms", &with("a", all));
    assert!(vm.tunables.selfballooning);
    assert_eq!(vm.tunables.selfballoon_interval, 2);
    let registered = daemon.events().events.into_iter().find(|e| e.kind == "registered").unwrap();
    assert!(registered.text.contains("selfballooning=on"), "{}", registered.text);
    for (tunables, status, part) in [
        (json!({ "selfballoon_interval": "0" }), 422, "at least 1"),
        (json!({ "selfballooning": "on", "colour": "red" }), 422, "no setting"),
        (json!({ "frontswap_selfshrinking": "on" }), 422, "swap store"),
        (json!({ "selfballooning": true }), 400, "string"),
    ] {
        let message = daemon.refused("POST", "/v1/vms", &with("b", tunables), status);
        assert!(message.contains(part), "{part}: {message}");
    }
    let plain = daemon.change("POST", "/v1/vms", &with("c", json!({})));
    assert!(plain.tunables.is_default());
    daemon.process.kill();
    daemon.start_again();
    let kept: Vec<_> = daemon.list().vms.iter().map(|vm| vm.tunables).collect();
    assert_eq!(kept, [vm.tunables, plain.tunables]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    let before = daemon.list().vms;
    let at = |name: &str| daemon.dir.path().join(name);
    let refused = |body: &Value, status: u16, part: &str| {
        let message = daemon.refused("POST", "/v1/vms", body, status);
        assert!(message.contains(part), "{part}: {message}");
    };
    let good = registration("b", &at("b"), sizes(256, 512, 128));
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    refused(&registration("a", &at("b"), sizes(256, 512, 128)), 409, "there is a VM called `a`");
    refused(&registration("b", &backend.path, sizes(256, 512, 128)), 409, "is registered already, as `a`");
    refused(&registration("b", &at("b"), sizes(8192, 8192, 1)), 422, "the budget is 4G");
    refused(&with("sizes", Value::Null), 422, "needs sizes");
    refused(&with("name", json!("../b")), 400, "cannot name a VM");
    refused(&with("colour", json!("red")), 400, "unknown field");
    refused(
        &with("sizes", json!({ "floor": 0, "memory": 0, "maxmem": 0, "weight": 1 })),
        400,
        "needs at least 1M",
    );
    let above = json!({ "floor": 1 << 20, "memory": 2 << 20, "maxmem": 1 << 20, "weight": 1 });
    refused(&with("sizes", above), 400, "memory=2M is more than maxmem=1M");
    refused(
        &with("sizes", json!({ "floor": -1, "memory": 1 << 20, "maxmem": 1 << 20, "weight": 1 })),
        400,
        "-1",
    );
    refused(&with("endpoint", json!({ "kind": "uml", "control": "relative" })), 400, "not an absolute path");
    refused(
        &with("endpoint", json!({ "kind": "uml", "control": format!("/{}", "x".repeat(200)) })),
        400,
        "201 bytes",
    );
    refused(&with("endpoint", json!({ "kind": "xen" })), 400, "unknown variant");

    let change = |method: &str, path: &str, body: Value, status: u16, part: &str| {
        let message = daemon.refused(method, path, &body, status);
        assert!(message.contains(part), "{part}: {message}");
    };
    change("PATCH", "/v1/vms/a", json!({ "memory": Bytes::gib(1) }), 422, "more than maxmem=512M");
    change(
        "PATCH",
        "/v1/vms/a",
        json!({ "memory": Bytes::mib(64) }),
        422,
        "floor=128M is more than memory=64M",
    );
    change("PATCH", "/v1/vms/a", json!({ "weight": 0 }), 422, "1 to 10000");
    change(
        "PATCH",
        "/v1/vms/a",
        json!({ "vmm": { "pid": 4_000_000, "start_time": 1 } }),
        422,
        "it has ended",
    );
    change("PUT", "/v1/vms/a/hold", json!({ "target": Bytes::mib(64) }), 422, "its floor is 128M");
    change("DELETE", "/v1/vms/a/hold", Value::Null, 422, "is not held");
    change("POST", "/v1/vms/a/stop", json!({ "how": "powerdown" }), 503, "its own console socket");
    change("GET", "/v1/vms/nobody", Value::Null, 404, "no VM is called `nobody`");
    change("PUT", "/v1/vms/nobody/hold", json!({}), 404, "no VM is called `nobody`");
    let after = daemon.list().vms;
    assert_eq!((before[0].sizes, before[0].hold, after.len()), (after[0].sizes, after[0].hold, 1));
}

#[test]
fn floors_never_exceed_the_host() {
    let daemon = Daemon::start(CONFIG);
    let mut taken = 0;
    for n in 0..10 {
        let body =
            registration(&format!("vm{n}"), &daemon.dir.path().join(n.to_string()), sizes(1024, 1024, 500));
        let (status, answer) = daemon.ask("POST", "/v1/vms", Some(&body));
        assert!(matches!(status, 201 | 422), "{answer}");
        taken += u64::from(status == 201);
    }
    // 4096 = 6 * (500 + 16) + 1000 holds no memory of 1024 more.
    assert_eq!(taken, 6);
    assert_eq!(daemon.list().host.guaranteed, Bytes::mib(6 * 516));
}

#[test]
fn hostile_http_is_answered_or_hung_up_on() {
    let daemon = Daemon::start(CONFIG);
    let socket = daemon.socket();
    let huge = json!({ "name": "x".repeat(100_000) });
    let message = daemon.refused("POST", "/v1/vms", &huge, 413);
    assert!(message.contains("65536 bytes"), "{message}");
    daemon.refused("PUT", "/v1/vms", &Value::Null, 405);
    daemon.refused("GET", "/v2/vms", &Value::Null, 404);
    daemon.refused("GET", "/v1/vms/a%2Fb", &Value::Null, 400);
    daemon.refused("GET", "/v1/vms/%FF", &Value::Null, 400);
    daemon.refused("GET", "/v1/events?after=-1", &Value::Null, 400);
    daemon.refused("GET", "/v1/events?colour=red", &Value::Null, 400);
    let bodies: [&[u8]; 5] = [b"{", b"[[[[", b"\xff\xfe", b"null", b"{\"name\":1}"];
    for body in bodies {
        let head = format!(
            "POST /v1/vms HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let (status, answer) = client::raw(&socket, &[head.as_bytes(), body].concat()).unwrap();
        assert_eq!(status, 400, "{answer}");
    }
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let head = format!(
        "POST /v1/vms HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{deep}",
        deep.len()
    );
    assert_eq!(client::raw(&socket, head.as_bytes()).unwrap().0, 400);
    // No HTTP at all, and a head without end: an error or nothing, and the daemon lives.
    let nonsense: [&[u8]; 3] = [b"\0\0\0\0\r\n\r\n", b"QMP_GREETING\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"];
    for bytes in nonsense {
        if let Ok((status, _)) = client::raw(&socket, bytes) {
            assert!(status >= 400);
        }
    }
    let mut endless = UnixStream::connect(&socket).unwrap();
    let _ = endless.write_all(format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20)).as_bytes());
    daemon.wait_ticks(1);
    assert_eq!(daemon.list().vms, []);
}

#[test]
fn many_silent_connections_lock_nobody_out_for_good() {
    let daemon = Daemon::start(CONFIG);
    let silent: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    // Those beyond the limit are closed at once.
    let refused = client::try_request(&daemon.socket(), "GET", "/v1/host", None);
    assert!(refused.is_err(), "{refused:?}");
    drop(silent);
    wait_for("a free place", || client::try_request(&daemon.socket(), "GET", "/v1/host", None).ok());
}

#[test]
fn events_are_waited_for() {
    let daemon = Daemon::start(CONFIG);
    let last = daemon.events().last_seq;
    let socket = daemon.socket();
    let waiting = std::thread::spawn(move || {
        let path = format!("/v1/events?after={last}&wait_ms=20000&vm=late");
        let begun = Instant::now();
        let (status, answer) = client::request(&socket, "GET", &path, None);
        assert_eq!(status, 200);
        (serde_json::from_value::<EventList>(answer).unwrap(), begun.elapsed())
    });
    daemon.register("early", &daemon.dir.path().join("e"), sizes(64, 64, 32));
    daemon.register("late", &daemon.dir.path().join("l"), sizes(64, 64, 32));
    let (list, took) = waiting.join().unwrap();
    assert_eq!((list.events.len(), list.events[0].kind.as_str()), (1, "registered"));
    assert!(took.as_secs() < 15, "{took:?}");
    let after = format!("/v1/events?after={}&wait_ms=30&vm=late", list.last_seq);
    let nothing: EventList = serde_json::from_value(daemon.get(&after)).unwrap();
    assert_eq!(nothing.events, []);
}
