//! A daemon of its own for each test, back ends of straw, and a client.

pub(crate) mod backend;
pub(crate) mod client;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use plimsoll_api::http::{Endpoint, EventList, ListView, ProcessRef, Register, VmView};
use plimsoll_model::{OnExhausted, OnPagerLoss, Sizes, VmName};
use plimsoll_units::Bytes;
use serde_json::Value;

use backend::Backend;

/// Far more than anything takes here, far less than for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until `look` finds something; says what was waited for if it never does.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited for: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Ends a child when the test ends, however it ends.
#[derive(Debug)]
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    /// Something that runs and does nothing, in the place of a VMM or a keeper.
    pub(crate) fn idle() -> Self {
        Self::start(Command::new("sleep").arg("600"))
    }

    pub(crate) fn reference(&self) -> ProcessRef {
        process_ref(self.0.id())
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn process_ref(pid: u32) -> ProcessRef {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time = stat.rsplit(')').next().unwrap().split_whitespace().nth(19).unwrap();
    ProcessRef { pid, start_time: start_time.parse().unwrap() }
}

/// A daemon with a run folder of its own.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) process: Process,
}

/// A budget that does not depend on the machine, and no journal.
pub(crate) const CONFIG: &str = "
    [host]
    budget = \"4G\"
    low = \"1M\"
    overhead-uml = \"16M\"
    [journal]
    dir = \"none\"
";

impl Daemon {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_logging(config, "debug")
    }

    /// With another log than the whole.
    pub(crate) fn start_logging(config: &str, log: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plimsoll.toml"), config).unwrap();
        let process = spawn(dir.path(), log);
        let daemon = Self { dir, process };
        daemon.wait_until_it_answers();
        daemon
    }

    /// A new daemon in the place of one that has ended.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(self.dir.path(), "debug");
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        wait_for("the daemon's first tick", || {
            let (status, host) = client::try_request(&self.socket(), "GET", "/v1/host", None).ok()?;
            assert_eq!(status, 200);
            (host["ticks"].as_u64().unwrap() > 0).then_some(())
        });
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir().join("api.sock")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    pub(crate) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        client::request(&self.socket(), method, path, body)
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, None);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    pub(crate) fn list(&self) -> ListView {
        serde_json::from_value(self.get("/v1/vms")).unwrap()
    }

    pub(crate) fn show(&self, name: &str) -> VmView {
        serde_json::from_value(self.get(&format!("/v1/vms/{name}"))).unwrap()
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.list().host.ticks
    }

    /// Waits until that many more ticks have ended.
    pub(crate) fn wait_ticks(&self, n: u64) {
        let until = self.ticks() + n;
        wait_for("ticks", || (self.ticks() >= until).then_some(()));
    }

    /// Asks, and expects that refusal.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &Value, status: u16) -> String {
        let (got, answer) = self.ask(method, path, Some(body));
        assert_eq!(got, status, "{method} {path}: {answer}");
        answer["error"].as_str().unwrap().to_owned()
    }

    /// Asks, and expects a VM.
    pub(crate) fn change(&self, method: &str, path: &str, body: &Value) -> VmView {
        let (status, answer) = self.ask(method, path, Some(body));
        assert!(matches!(status, 200 | 201), "{method} {path}: {status} {answer}");
        serde_json::from_value(answer).unwrap()
    }

    pub(crate) fn register(&self, name: &str, control: &Path, sizes: Sizes) -> VmView {
        self.change("POST", "/v1/vms", &registration(name, control, sizes))
    }

    /// Registers a VM behind a back end of straw and waits until it runs.
    pub(crate) fn run_vm(&self, name: &str, backend: &Backend, sizes: Sizes) -> VmView {
        self.register(name, &backend.path, sizes);
        self.wait_life(name, "running")
    }

    pub(crate) fn wait_life(&self, name: &str, life: &str) -> VmView {
        wait_for(&format!("{name} to be {life}"), || {
            let (status, vm) = self.ask("GET", &format!("/v1/vms/{name}"), None);
            let vm: VmView = (status == 200).then(|| serde_json::from_value(vm).unwrap())?;
            (serde_json::to_value(vm.life).unwrap() == life).then_some(vm)
        })
    }

    pub(crate) fn events(&self) -> EventList {
        serde_json::from_value(self.get("/v1/events")).unwrap()
    }

    /// The kinds of the events of a VM.
    pub(crate) fn kinds(&self, vm: &str) -> Vec<String> {
        let list: EventList = serde_json::from_value(self.get(&format!("/v1/events?vm={vm}"))).unwrap();
        list.events.into_iter().map(|e| e.kind).collect()
    }
}

fn spawn(dir: &Path, level: &str) -> Process {
    let log = File::options().append(true).create(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsolld"));
    command.arg("--config").arg(dir.join("plimsoll.toml")).arg("--run-dir").arg(dir.join("run"));
    command.args(["--log", level]).env_remove("NOTIFY_SOCKET").stderr(log);
    Process::start(&mut command)
}

/// memory, maxmem and floor in MiB.
pub(crate) fn sizes(memory: u64, maxmem: u64, floor: u64) -> Sizes {
    Sizes::new(Bytes::mib(memory), Bytes::mib(maxmem), Some(Bytes::mib(floor)), None).unwrap()
}

pub(crate) fn registration(name: &str, control: &Path, sizes: Sizes) -> Value {
    let request = Register {
        name: VmName::new(name).unwrap(),
        endpoint: Endpoint::Uml { control: control.to_str().unwrap().to_owned() },
        sizes: Some(sizes),
        adopt: false,
        console: None,
        tunables: BTreeMap::new(),
        on_exhausted: OnExhausted::default(),
        on_pager_loss: OnPagerLoss::default(),
    };
    serde_json::to_value(request).unwrap()
}
