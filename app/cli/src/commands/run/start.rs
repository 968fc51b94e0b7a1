//! Starting keeper and VMM, and taking everything back.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::Method;
use plimsoll_api::http::ProcessRef;
use rustix::process::Signal;

use super::check::{Machine, Plan};
use super::line::{Line, inheriting};
use super::pod::Pod;
use crate::commands::Context;
use crate::output;
use crate::process::{self, Handle};
use crate::record::{Record, VmDir};

/// How long a keeper may take until its sockets are there.
const KEEPER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a process may take to end after SIGTERM, and after SIGKILL.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// How long a process may take to become the program it was started for.
const DETACH_DEADLINE: Duration = Duration::from_secs(5);

/// How often is looked whether something has come to pass.
const POLL: Duration = Duration::from_millis(20);

/// A program with arguments and additions to the environment. The rest is inherited, so that whoever marks what
/// they start by its environment finds keeper and VMM again.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) env: Vec<(OsString, OsString)>,
}

/// A keeper to be started, and the sockets it makes when it is ready.
struct Keeper {
    launch: Launch,
    stdin: Stdio,
    sockets: [PathBuf; 2],
}

impl Keeper {
    /// The one that a VM needs, if it needs one.
    fn of(plan: &Plan) -> anyhow::Result<Option<Self>> {
        let (name, sizes, dir) = (&plan.name, plan.sizes, &plan.dir);
        Ok(match (&plan.machine, plan.pod()) {
            (Machine::Uml(uml), _) => Some(Self {
                launch: uml.keeper(name, sizes, dir),
                stdin: uml.line().map_or_else(|| Ok(Stdio::null()), Line::host)?,
                sockets: [dir.balloon_socket(), dir.control_socket()],
            }),
            (Machine::Qemu(_), Some(pod)) => Some(Self {
                launch: pod.keeper(name, sizes, dir),
                stdin: pod.stdin()?,
                sockets: [dir.pod_socket(), dir.control_socket()],
            }),
            (Machine::Qemu(_), None) => None,
        })
    }
}

/// What was started so far.
#[derive(Debug, Default)]
pub(super) struct Started {
    made_dir: bool,
    made_group: bool,
    keeper: Option<Child>,
    vmm: Option<Child>,
    /// The VMM's program, links followed.
    program: PathBuf,
}

impl Started {
    /// Starts what the plan says; what was done until a failure is remembered for [`Self::undo`].
    pub(super) async fn start(&mut self, plan: &Plan) -> anyhow::Result<()> {
        clear_leftover(&plan.dir).await?;
        let cgroup = plan.group.as_ref().map(|group| group.name().to_string());
        let launch = match &plan.machine {
            Machine::Uml(uml) => uml.launch(),
            Machine::Qemu(qemu) => qemu.launch(&plan.name, plan.sizes, &plan.dir),
        };
        let program = std::fs::canonicalize(&launch.program)
            .with_context(|| format!("cannot find {}", launch.program.display()))?;
        let mut record = Record::new(plan.name.clone(), plan.kind(), program.clone(), cgroup);
        self.program = program;
        plan.dir.create(&record)?;
        self.made_dir = true;
        let join = match &plan.group {
            Some(group) => {
                let join = group.create(plan.sizes.floor())?;
                self.made_group = true;
                join
            }
            None => Vec::new(),
        };
        if let Some(keeper) = Keeper::of(plan)? {
            let log = plan.dir.append(&plan.dir.keeper_log())?;
            self.keeper = Some(spawn(&keeper.launch, keeper.stdin, log, &join)?);
            detached(&mut self.keeper, "keeper").await?;
            record.keeper = self.keeper();
            plan.dir.write(&record)?;
            self.wait_for_keeper(&keeper.sockets).await?;
        }
        let log = plan.dir.append(&plan.dir.console_log())?;
        let stdin = plan.dir.open_console_in()?.into();
        let inherited = match &plan.machine {
            Machine::Uml(uml) => uml.line().map(Line::guest),
            Machine::Qemu(qemu) => qemu.pod().map(Pod::memory),
        };
        self.vmm = Some(inheriting(inherited, || spawn(&launch, stdin, log, &join))?);
        detached(&mut self.vmm, "VMM").await?;
        record.vmm = self.vmm();
        plan.dir.write(&record)
    }

    /// The VMM, while it runs.
    pub(super) fn vmm(&self) -> Option<ProcessRef> {
        process::reference(self.vmm.as_ref()?.id())
    }

    /// The keeper, while it runs.
    pub(super) fn keeper(&self) -> Option<ProcessRef> {
        process::reference(self.keeper.as_ref()?.id())
    }

    /// Fails if something that was started has ended.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.vmm_ended()? {
            bail!("its VMM ended with {status}");
        }
        if let Some(status) = ended(&mut self.keeper)? {
            bail!("its keeper ended with {status}");
        }
        Ok(())
    }

    /// How the VMM ended, if it has.
    pub(super) fn vmm_ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        ended(&mut self.vmm)
    }

    /// The keeper makes its sockets when it is ready.
    async fn wait_for_keeper(&mut self, sockets: &[PathBuf]) -> anyhow::Result<()> {
        let begin = Instant::now();
        while let Some(missing) = sockets.iter().find(|socket| !process::is_listening(socket)) {
            if let Some(status) = ended(&mut self.keeper)? {
                bail!("its keeper ended with {status}");
            }
            if begin.elapsed() > KEEPER_DEADLINE {
                bail!(
                    "its keeper did not listen at {} within {} s",
                    missing.display(),
                    KEEPER_DEADLINE.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Takes everything back, the last first. What cannot be taken back is said.
    pub(super) async fn undo(mut self, context: &Context, plan: &Plan) {
        if let Some(vmm) = &mut self.vmm {
            let pid = vmm.id();
            said(end_child(vmm, Signal::KILL).await);
            said(process::end_session(pid, &self.program));
        }
        if let Some(keeper) = &mut self.keeper {
            said(end_child(keeper, Signal::TERM).await);
        }
        let forgotten = context.vm_ask(Method::DELETE, &plan.name, "", None::<&()>).await;
        match forgotten {
            Err(e) if !e.is_not_found() => said(Err(e).context("cannot have the daemon forget the VM")),
            Err(_) | Ok(_) => {}
        }
        if let (true, Some(group)) = (self.made_group, &plan.group) {
            said(group.remove().await);
        }
        if self.made_dir {
            said(plan.dir.remove());
        }
    }
}

fn said(outcome: anyhow::Result<()>) {
    if let Err(e) = outcome {
        output::note(&output::explained(&e));
    }
}

fn ended(child: &mut Option<Child>) -> anyhow::Result<Option<ExitStatus>> {
    match child {
        Some(child) => child.try_wait().context("cannot wait for a process"),
        None => Ok(None),
    }
}

/// Sends `signal`, after a while SIGKILL, and waits for the end. A child's number is not used again before
/// it was waited for, so it can be signalled by number.
async fn end_child(child: &mut Child, signal: Signal) -> anyhow::Result<()> {
    let pid = child.id();
    for signal in [signal, Signal::KILL] {
        if child.try_wait().context("cannot wait for a process")?.is_some() {
            return Ok(());
        }
        if let Some(number) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(number, signal)
                .with_context(|| format!("cannot end process {pid}"))?;
        }
        let begin = Instant::now();
        while begin.elapsed() < END_DEADLINE {
            if child.try_wait().context("cannot wait for a process")?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    bail!("process {pid} does not end")
}

/// Starts a program in a session of its own, by way of this program's `__detach`.
fn spawn(launch: &Launch, stdin: Stdio, log: File, join: &[PathBuf]) -> anyhow::Result<Child> {
    let cannot = || format!("cannot start {}", launch.program.display());
    let stderr = log.try_clone().with_context(cannot)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("plimsoll").arg("__detach");
    for procs in join {
        command.arg("--join").arg(procs);
    }
    command
        .arg("--")
        .arg(&launch.program)
        .args(&launch.args)
        .envs(launch.env.iter().cloned())
        .stdin(stdin)
        .stdout(log)
        .stderr(stderr)
        .spawn()
        .with_context(cannot)
}

/// Waits until a process that [`spawn`] started has become its program: from then on it has a session, and
/// cgroups, of its own, and what is typed at this one's terminal does not reach it.
async fn detached(child: &mut Option<Child>, what: &str) -> anyhow::Result<()> {
    let Some(pid) = child.as_ref().map(Child::id) else { return Ok(()) };
    let own = std::fs::read_link("/proc/self/exe").context("cannot tell which program this is")?;
    let begin = Instant::now();
    while std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == own) {
        if begin.elapsed() > DETACH_DEADLINE {
            bail!("its {what} did not start within {} s", DETACH_DEADLINE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    match ended(child)? {
        Some(status) => bail!("its {what} ended with {status}"),
        None => Ok(()),
    }
}

/// Removes what an earlier VM of this name left; refuses if that one runs still.
async fn clear_leftover(dir: &VmDir) -> anyhow::Result<()> {
    if !dir.path().exists() {
        return Ok(());
    }
    if let Some(record) = dir.read()? {
        if let Some(vmm) = record.running() {
            bail!(
                "a VM of this name runs already as process {}, unknown to the daemon; `plimsoll stop {}` ends it",
                vmm.pid,
                record.name
            );
        }
        if let Some(vmm) = record.vmm {
            process::end_session(vmm.pid, &record.program)?;
        }
        if let Some(keeper) = record.keeper {
            end_keeper(keeper).await?;
        }
        super::group::remove_recorded(&record).await?;
    }
    dir.remove()
}

/// Ends a keeper, gently first: it removes its sockets and ends its back end.
pub(crate) async fn end_keeper(keeper: ProcessRef) -> anyhow::Result<()> {
    let Some(handle) = Handle::open(keeper)? else { return Ok(()) };
    for end in [Handle::terminate, Handle::kill] {
        end(&handle)?;
        if handle.ended(END_DEADLINE).await? {
            return Ok(());
        }
    }
    bail!("the keeper, process {}, does not end", keeper.pid)
}
