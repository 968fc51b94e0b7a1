//! A daemon that is none, behind a real socket, and the built command to ask it.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use plimsoll_api::http::{
    Change, Endpoint, Event, EventList, Explain, Hold, HostView, Life, ListView, Patch, Problem, Register,
    Stop, VmView,
};
use plimsoll_model::{
    GuestStats, HostSample, HostState, Link, Reason, Sizes, Source, StatsSample, Tunables, VmId, VmState,
};
use plimsoll_units::{Bytes, MemTarget, MonoTime};
use tempfile::TempDir;

/// What the daemon knows and was asked.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) vms: BTreeMap<String, VmView>,
    pub(crate) events: Vec<Event>,
    /// Method and path of each request, in order.
    pub(crate) asked: Vec<String>,
    /// How VMs were asked to stop.
    pub(crate) stops: Vec<Stop>,
    /// A VM that was told its processes stays `starting`.
    pub(crate) never_running: bool,
}

type Shared = Arc<Mutex<World>>;
type Answer<T> = Result<Json<T>, (StatusCode, Json<Problem>)>;

/// The daemon. Dropped, it is gone with its folder.
#[derive(Debug)]
pub(crate) struct FakeDaemon {
    dir: TempDir,
    world: Shared,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl FakeDaemon {
    /// Starts it in a folder of its own.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world = Shared::default();
        let mut daemon = Self { dir, world, stop: None, thread: None };
        daemon.resume();
        daemon
    }

    /// Starts it again where it was.
    pub(crate) fn resume(&mut self) {
        let socket = self.dir.path().join("api.sock");
        // Bound before the thread starts, so that nobody comes too early.
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let app = app(Arc::clone(&self.world));
        self.stop = Some(stop);
        self.thread = Some(std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                tokio::select! {
                    served = async { axum::serve(listener, app).await } => served.unwrap(),
                    _ = stopped => {}
                }
            });
        }));
    }

    /// Ends it, its socket stays behind as after a kill.
    pub(crate) fn kill(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The built command with this daemon's folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(self.run_dir(), args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Told {
        Told::of(self.command(args).output().unwrap())
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The built command: no terminal, nothing of this test's environment that changes what it prints.
pub(crate) fn command(run_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command
        .arg("--run-dir")
        .arg(run_dir)
        .args(args)
        .env_remove("PLIMSOLL_RUN_DIR")
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    command
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Told {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It failed with `code`, said nothing on stdout, and each of `says` on stderr.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        assert!(self.stderr.starts_with("plimsoll: "), "{self:#?}");
        for part in says {
            assert!(self.stderr.contains(part), "no `{part}` in {self:#?}");
        }
    }

    /// It succeeded; what it said.
    #[track_caller]
    pub(crate) fn answer(&self) -> &str {
        assert_eq!(self.code, 0, "{self:#?}");
        &self.stdout
    }
}

/// Compares `text` with a file in tests/golden; `PLIMSOLL_UPDATE_GOLDEN=1` writes it instead.
#[track_caller]
pub(crate) fn assert_golden(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("PLIMSOLL_UPDATE_GOLDEN").is_some_and(|v| v == "1") {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        golden == text,
        "{} differs (PLIMSOLL_UPDATE_GOLDEN=1 accepts it); now it is:\n{text}",
        path.display()
    );
}

/// A VM at its baseline.
pub(crate) fn vm(name: &str, endpoint: Endpoint, sizes: Sizes) -> VmView {
    let reason = Reason::Baseline { memory: sizes.memory() };
    VmView {
        id: VmId(1),
        name: name.parse().unwrap(),
        endpoint,
        life: Life::Running,
        state: VmState::Ok,
        link: Link::Up,
        sizes,
        target: MemTarget(sizes.memory()),
        actual: MemTarget(sizes.memory()),
        resident: Some(sizes.floor()),
        overhead: Bytes::mib(16),
        hold: None,
        tunables: Tunables::default(),
        source: Source::Device,
        need: Some(sizes.floor()),
        spare: sizes.memory().minus(sizes.floor()),
        stats: None,
        stats_age_ms: None,
        agent: None,
        agent_line: None,
        reason,
        reason_text: reason.to_string(),
        owner_uid: rustix::process::getuid().as_raw(),
        vmm: None,
        keeper: None,
        console: None,
        backend: None,
        pager: None,
        problem: None,
        last_change: None,
    }
}

/// A User Mode Linux guest that sent statistics.
pub(crate) fn uml(name: &str) -> VmView {
    let sizes = Sizes::new(Bytes::mib(256), Bytes::gib(1), None, None).unwrap();
    let control = format!("/run/plimsoll/run/{name}/control.sock");
    let mut view = vm(name, Endpoint::Uml { control }, sizes);
    let stats = GuestStats {
        total: Some(Bytes::mib(240)),
        available: Some(Bytes::mib(90)),
        free: Some(Bytes::mib(40)),
        major_faults: Some(812),
        ..GuestStats::default()
    };
    view.stats = Some(StatsSample { at: MonoTime(1), stats });
    view.stats_age_ms = Some(400);
    view
}

pub(crate) fn host() -> HostView {
    HostView {
        version: "0.1.0".to_string(),
        cgroup: Some("plimsoll".to_string()),
        state: HostState::Tight,
        sample: HostSample {
            budget: Bytes::gib(7),
            available: Bytes::gib(5),
            low: Bytes::mib(512),
            psi: None,
            swap_in_pages: 3,
            swap_out_pages: 4,
        },
        claimed: Bytes::gib(2),
        guaranteed: Bytes::mib(512),
        told: Bytes::gib(14),
        waiting: Bytes::mib(64),
        ticks: 77,
        tick_us: 812,
    }
}

fn app(world: Shared) -> Router {
    Router::new()
        .route(
            "/v1/host",
            get(|State(w): State<Shared>| async move {
                note(&w, "GET /v1/host");
                Json(host())
            }),
        )
        .route("/v1/vms", get(list).post(register))
        .route("/v1/vms/{name}", get(show).patch(patch).delete(forget))
        .route("/v1/vms/{name}/hold", put(hold).delete(release))
        .route("/v1/vms/{name}/stop", post(stop))
        .route("/v1/vms/{name}/explain", get(explain))
        .route("/v1/events", get(events))
        .route("/v1/config", get(|| async { "[host]\nbudget = \"auto\"\n" }))
        .with_state(world)
}

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(world: &Shared, what: &str) {
    lock(world).asked.push(what.to_string());
}

fn problem(status: StatusCode, error: impl Into<String>) -> (StatusCode, Json<Problem>) {
    (status, Json(Problem { error: error.into() }))
}

/// Notes the request and changes the VM, if there is one.
fn with_vm(world: &Shared, what: &str, name: &str, change: impl FnOnce(&mut VmView)) -> Answer<VmView> {
    note(world, &format!("{what} {name}"));
    match lock(world).vms.get_mut(name) {
        Some(vm) => {
            change(vm);
            Ok(Json(vm.clone()))
        }
        None => Err(problem(StatusCode::NOT_FOUND, format!("there is no VM `{name}`"))),
    }
}

async fn list(State(world): State<Shared>) -> Json<ListView> {
    note(&world, "GET /v1/vms");
    Json(ListView { host: host(), vms: lock(&world).vms.values().cloned().collect() })
}

async fn register(
    State(world): State<Shared>,
    Json(wanted): Json<Register>,
) -> Result<(StatusCode, Json<VmView>), (StatusCode, Json<Problem>)> {
    note(&world, "POST /v1/vms");
    let name = wanted.name.to_string();
    if lock(&world).vms.contains_key(&name) {
        return Err(problem(StatusCode::CONFLICT, format!("the name `{name}` is taken by a VM that runs")));
    }
    let sizes =
        wanted.sizes.unwrap_or_else(|| Sizes::new(Bytes::mib(128), Bytes::mib(128), None, None).unwrap());
    if sizes.memory() > host().sample.budget {
        let message =
            format!("memory={} does not fit: the budget is {}", sizes.memory(), host().sample.budget);
        return Err(problem(StatusCode::UNPROCESSABLE_ENTITY, message));
    }
    let mut view = vm(&name, wanted.endpoint, sizes);
    view.life = if wanted.adopt { Life::Running } else { Life::Starting };
    view.console = wanted.console;
    for (key, value) in &wanted.tunables {
        view.tunables.set(key, value).unwrap();
    }
    lock(&world).vms.insert(name, view.clone());
    Ok((StatusCode::CREATED, Json(view)))
}

async fn show(State(world): State<Shared>, UrlPath(name): UrlPath<String>) -> Answer<VmView> {
    with_vm(&world, "GET", &name, |_| {})
}

async fn patch(
    State(world): State<Shared>,
    UrlPath(name): UrlPath<String>,
    Json(patch): Json<Patch>,
) -> Answer<VmView> {
    let runs = !lock(&world).never_running;
    with_vm(&world, "PATCH", &name, |vm| {
        if let Some(memory) = patch.memory {
            vm.sizes = vm.sizes.with_memory(memory).unwrap();
            vm.target = MemTarget(memory);
        }
        if let Some(weight) = patch.weight {
            vm.sizes = vm.sizes.with_weight(weight).unwrap();
        }
        vm.vmm = patch.vmm.or(vm.vmm);
        vm.keeper = patch.keeper.or(vm.keeper);
        if patch.vmm.is_some() && runs {
            vm.life = Life::Running;
        }
    })
}

async fn forget(State(world): State<Shared>, UrlPath(name): UrlPath<String>) -> Answer<VmView> {
    let view = with_vm(&world, "DELETE", &name, |_| {})?;
    lock(&world).vms.remove(&name);
    Ok(view)
}

async fn hold(
    State(world): State<Shared>,
    UrlPath(name): UrlPath<String>,
    Json(hold): Json<Hold>,
) -> Answer<VmView> {
    with_vm(&world, "HOLD", &name, |vm| {
        vm.hold = Some(hold.target.unwrap_or(vm.target));
        vm.target = hold.target.unwrap_or(vm.target);
        vm.state = VmState::Held;
    })
}

async fn release(State(world): State<Shared>, UrlPath(name): UrlPath<String>) -> Answer<VmView> {
    with_vm(&world, "RELEASE", &name, |vm| {
        vm.hold = None;
        vm.state = VmState::Ok;
    })
}

async fn stop(
    State(world): State<Shared>,
    UrlPath(name): UrlPath<String>,
    Json(stop): Json<Stop>,
) -> Answer<VmView> {
    lock(&world).stops.push(stop);
    with_vm(&world, "STOP", &name, |vm| vm.life = Life::Stopping)
}

async fn explain(State(world): State<Shared>, UrlPath(name): UrlPath<String>) -> Answer<Explain> {
    let Json(vm) = with_vm(&world, "EXPLAIN", &name, |_| {})?;
    let reason = Reason::Idle { source: Source::Device, need: Bytes::mib(140), memory: Bytes::mib(256) };
    let change = |wall_us, from, to| Change {
        wall_us,
        from: MemTarget(Bytes::mib(from)),
        to: MemTarget(Bytes::mib(to)),
        reason,
        reason_text: reason.to_string(),
        by: "arbiter".to_string(),
    };
    let changes = vec![change(1_795_260_276_000_000, 300, 256), change(1_795_260_270_000_000, 512, 300)];
    Ok(Json(Explain { vm, host: host(), changes }))
}

async fn events(
    State(world): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Json<EventList> {
    let after: u64 = query.get("after").and_then(|text| text.parse().ok()).unwrap_or(0);
    let vm = query.get("vm");
    let chosen = |event: &&Event| {
        event.seq > after && vm.is_none_or(|vm| event.vm.as_ref().is_some_and(|name| name.as_str() == vm))
    };
    let world = lock(&world);
    let events = world.events.iter().filter(chosen).cloned().collect();
    Json(EventList { events, last_seq: world.events.last().map_or(0, |event| event.seq), lost: 0 })
}
