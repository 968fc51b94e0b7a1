//! Whose VM it is. Needs root, to be somebody else.

use std::{
    env,
    fs::{self, Permissions},
    io::Read,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::common::{CONFIG, Daemon, Process, backend::Backend, client, registration, sizes, wait_for};

/// Nobody, as Debian numbers it; any user that is not root would do.
const STRANGER: &str = "65534";

/// Set where this program was started by a test of itself as another user.
const TASK: &str = "PLIMSOLL_TEST_TASK";

/// Starts `task` of [`as_somebody_else`] as a stranger.
fn stranger(task: &Value) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        eprintln_loud("not root: whose VM it is goes untested");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups"]);
    command.arg(env::current_exe().unwrap()).args(["--exact", "ownership::as_somebody_else", "--nocapture"]);
    command.env(TASK, task.to_string());
    Some(command)
}

#[expect(clippy::print_stderr, reason = "what a test leaves out is to be seen")]
fn eprintln_loud(text: &str) {
    eprintln!("SKIPPED: {text}");
}

/// Not a test of its own: what the tests below have done as another user.
#[test]
fn as_somebody_else() {
    let Ok(task) = env::var(TASK) else { return };
    let task: Value = serde_json::from_str(&task).unwrap();
    if let Some(path) = task["listen"].as_str() {
        let listener = UnixListener::bind(path).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        fs::write(task["report"].as_str().unwrap(), seen).unwrap();
        return;
    }
    let socket = Path::new(task["socket"].as_str().unwrap());
    for ask in task["asks"].as_array().unwrap() {
        let [method, path] = [&ask["method"], &ask["path"]].map(|v| v.as_str().unwrap());
        let (status, answer) = client::request(socket, method, path, Some(&ask["body"]));
        assert_eq!(json!(status), ask["status"], "{method} {path}: {answer}");
        let part = ask["part"].as_str().unwrap_or_default();
        assert!(answer.to_string().contains(part), "{method} {path}: {answer}");
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
}

#[test]
fn a_stranger_may_look_and_nothing_else() {
    let daemon = Daemon::start(CONFIG);
    let backend = Backend::start(daemon.dir.path(), "a", 512, 100);
    daemon.run_vm("a", &backend, sizes(256, 512, 128));
    // As if the stranger were in the group.
    open_to_all(daemon.dir.path());
    open_to_all(&daemon.socket());
    open_to_all(&backend.path);
    let ask = |method: &str, path: &str, body: Value, status: u16, part: &str| json!({ "method": method, "path": path, "body": body, "status": status, "part": part });
    let theirs = daemon.dir.path().join("roots.sock");
    let roots = UnixListener::bind(&theirs).unwrap();
    open_to_all(&theirs);
    let mut adoption = registration("mine", &theirs, sizes(64, 64, 32));
    adoption["adopt"] = json!(true);
    let not_yours = "belongs to user 0";
    let asks = [
        ask("GET", "/v1/vms", Value::Null, 200, "\"a\""),
        ask("GET", "/v1/vms/a/explain", Value::Null, 200, "reason_text"),
        ask("PATCH", "/v1/vms/a", json!({ "weight": 5 }), 403, not_yours),
        ask("PUT", "/v1/vms/a/hold", json!({}), 403, not_yours),
        ask("DELETE", "/v1/vms/a/hold", Value::Null, 403, not_yours),
        ask("POST", "/v1/vms/a/stop", json!({ "how": "announce" }), 403, not_yours),
        ask("DELETE", "/v1/vms/a", Value::Null, 403, not_yours),
        ask("POST", "/v1/vms", adoption, 403, "is user 0, the VM belongs to user 65534"),
        // One's own VM, and somebody else's process.
        ask(
            "POST",
            "/v1/vms",
            registration("own", &daemon.dir.path().join("own"), sizes(64, 64, 32)),
            201,
            "",
        ),
        ask(
            "PATCH",
            "/v1/vms/own",
            json!({ "vmm": crate::common::process_ref(std::process::id()) }),
            403,
            "is not user 65534's",
        ),
        ask("PATCH", "/v1/vms/own", json!({ "weight": 5 }), 200, ""),
    ];
    let Some(mut command) = stranger(&json!({ "socket": daemon.socket(), "asks": asks })) else { return };
    assert!(command.status().unwrap().success());
    // Whoever listened for root heard nothing at all.
    roots.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    roots.accept().unwrap().0.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"");
    assert_eq!(daemon.show("own").owner_uid.to_string(), STRANGER);
    // Root may change it.
    daemon.change("PUT", "/v1/vms/own/hold", &json!({}));
}

#[test]
fn a_vm_whose_socket_is_a_strangers_hears_nothing() {
    let daemon = Daemon::start(CONFIG);
    open_to_all(daemon.dir.path());
    let (path, report) = (daemon.dir.path().join("s.sock"), daemon.dir.path().join("report"));
    // The stranger registers a VM at a socket at which, later, root listens: hung up on each time.
    let body = registration("own", &path, sizes(64, 64, 32));
    let ask = json!({ "method": "POST", "path": "/v1/vms", "body": body, "status": 201 });
    let task = json!({ "socket": daemon.socket(), "asks": [ask] });
    open_to_all(&daemon.socket());
    let Some(mut command) = stranger(&task) else { return };
    assert!(command.status().unwrap().success());
    let backend = Backend::start(daemon.dir.path(), "s", 64, 10);
    let problem = wait_for("the refusal", || daemon.show("own").problem.filter(|p| p.contains("user 0")));
    assert!(problem.contains("belongs to user 65534"), "{problem}");
    assert_eq!(backend.guest().requests, 0);
    drop(backend);
    // And the stranger's own listener is spoken to.
    let listen = json!({ "listen": path, "report": report });
    let mut child = Process::start(&mut stranger(&listen).unwrap());
    wait_for("its end, after it was asked and hung up on", || child.0.try_wait().unwrap());
    assert!(fs::read_to_string(&report).unwrap().contains("stats_interval"));
}
