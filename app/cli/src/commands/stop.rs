//! `stop`: gently, then harder, then by SIGKILL; with the daemon or, for the caller's own VMs, without.

use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hyper::Method;
use plimsoll_api::http::{Endpoint, ProcessRef, Stop, StopHow, VmView};
use plimsoll_model::VmName;
use plimsoll_qmp::{DEFAULT_TIMEOUT, QmpClient, QmpSocket};
use rustix::process::getuid;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::Context;
use super::run::{end_keeper, remove_group};
use crate::args::StopArgs;
use crate::process::{self, Handle};
use crate::record::{Kind, Record, VmDir};
use crate::{output, render};

/// How long a VMM may take to end when it was told to, and a process when it was killed.
const HARD_DEADLINE: Duration = Duration::from_secs(5);

/// How often is looked whether a guest has begun to boot again.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, args: &StopArgs) -> anyhow::Result<ExitCode> {
    let stop = async {
        let subject = Subject::find(context, &args.name).await?;
        let how = subject.shut_down(args.timeout, args.kill).await?;
        subject.clear().await?;
        anyhow::Ok(how)
    };
    let how = stop.await.with_context(|| format!("cannot stop {}", args.name))?;
    output::answer(&format!("{} {}", args.name, how.says()))?;
    Ok(ExitCode::SUCCESS)
}

/// How a VM came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// It had ended before.
    Before,
    /// Its guest shut down.
    Gently,
    /// Its VMM was told to end.
    Hard,
    /// Its process was killed.
    Killed,
}

impl How {
    fn says(self) -> &'static str {
        match self {
            Self::Before => "had ended already; cleared away",
            Self::Gently => "has shut down",
            Self::Hard => "did not shut down in time and was ended",
            Self::Killed => "was killed",
        }
    }
}

/// What a guest did when it was asked to shut down.
enum Outcome {
    /// It did, and its VMM ended.
    Ended,
    /// It did, and boots again.
    Rebooted,
    /// Nothing in time.
    Silent,
}

/// Device, inode and time of change of a socket.
type SocketId = (u64, u64, i64, i64);

/// The signals that ask this program to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Stream,
    terminate: Stream,
    hangup: Stream,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        let watch = |kind| signal(kind).context("cannot watch for signals");
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    /// The next one's name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "Ctrl-C",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}

/// A VM that is to be stopped, as the daemon and the caller's own record know it.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    context: &'a Context,
    name: VmName,
    kind: Kind,
    vmm: Option<ProcessRef>,
    keeper: Option<ProcessRef>,
    /// Whose processes may be killed.
    owner: u32,
    /// The folder whose sockets are used.
    dir: VmDir,
    /// QEMU's socket, for an adopted one outside any folder of ours.
    qmp: Option<std::path::PathBuf>,
    /// What `run` wrote down, if this user did.
    record: Option<Record>,
    /// Whether the daemon knows it.
    registered: bool,
}

impl<'a> Subject<'a> {
    /// Asks the daemon and reads the caller's own record; either will do.
    pub(super) async fn find(context: &'a Context, name: &VmName) -> anyhow::Result<Self> {
        let dir = VmDir::new(context.run_dir.vm_dir(name)?);
        let record = dir.read()?;
        match context.vm(name).await {
            Ok(view) => Self::of_view(context, &view, record, dir),
            Err(e) => {
                let Some(record) = record else { return Err(e.into()) };
                if !e.is_not_found() && !e.is_down() {
                    output::note(&format!("{e}; going on without the daemon"));
                } else if e.is_down() {
                    output::note("the daemon is not running; going on without it");
                }
                Ok(Self::of_record(context, record, dir))
            }
        }
    }

    fn of_view(
        context: &'a Context,
        view: &VmView,
        record: Option<Record>,
        own_dir: VmDir,
    ) -> anyhow::Result<Self> {
        let (kind, socket) = match &view.endpoint {
            Endpoint::Qemu { qmp, .. } => (Kind::Qemu, std::path::PathBuf::from(qmp)),
            Endpoint::Uml { control } => (Kind::Uml, std::path::PathBuf::from(control)),
        };
        let Some(folder) = socket.parent() else { bail!("the daemon names no folder of the VM") };
        // A record of another VM, one that ran under this name before, says nothing of this one.
        let record = record.filter(|_| folder == own_dir.path());
        let known = |told: Option<ProcessRef>, own: fn(&Record) -> Option<ProcessRef>| {
            told.or_else(|| record.as_ref().and_then(own))
        };
        Ok(Self {
            context,
            name: view.name.clone(),
            kind,
            vmm: known(view.vmm, |r| r.vmm),
            keeper: known(view.keeper, |r| r.keeper),
            owner: view.owner_uid,
            dir: VmDir::new(folder.to_path_buf()),
            qmp: (kind == Kind::Qemu).then_some(socket.clone()),
            record,
            registered: true,
        })
    }

    fn of_record(context: &'a Context, record: Record, dir: VmDir) -> Self {
        Self {
            context,
            name: record.name.clone(),
            kind: record.kind,
            vmm: record.vmm,
            keeper: record.keeper,
            owner: getuid().as_raw(),
            qmp: (record.kind == Kind::Qemu).then(|| dir.qmp_socket()),
            dir,
            record: Some(record),
            registered: false,
        }
    }

    /// Ends the VMM: asks the guest and waits `timeout`, tells the VMM, kills it. `kill` begins at the end.
    pub(super) async fn shut_down(&self, timeout: Duration, kill: bool) -> anyhow::Result<How> {
        let Some(vmm) = self.vmm else {
            bail!("its VMM's process is not known; end it by hand, `plimsoll list` then shows it as gone");
        };
        let Some(handle) = Handle::open(vmm)? else { return Ok(How::Before) };
        self.check_owner(vmm)?;
        if self.registered {
            self.tell(StopHow::Announce).await?;
        }
        if !kill {
            let mut rebooted = false;
            let before = self.mconsole();
            match self.ask_guest().await {
                Ok(()) => match self.wait_for_guest(&handle, timeout, before).await? {
                    Outcome::Ended => return Ok(How::Gently),
                    Outcome::Rebooted => rebooted = true,
                    Outcome::Silent => {}
                },
                Err(e) => output::note(&format!(
                    "cannot ask {}'s guest to shut down: {}",
                    self.name,
                    output::explained(&e)
                )),
            }
            match self.tell_vmm().await {
                Ok(()) => {
                    if handle.ended(HARD_DEADLINE).await? {
                        return Ok(if rebooted { How::Gently } else { How::Hard });
                    }
                }
                Err(e) => output::note(&format!(
                    "cannot tell {}'s VMM to end: {}",
                    self.name,
                    output::explained(&e)
                )),
            }
        }
        handle.kill()?;
        if !handle.ended(HARD_DEADLINE).await? {
            bail!(
                "its VMM, process {}, does not end although it was killed: it waits in the kernel",
                vmm.pid
            );
        }
        Ok(How::Killed)
    }

    /// The daemon's word for a process is the registrant's: it must not make root kill somebody else's.
    fn check_owner(&self, process: ProcessRef) -> anyhow::Result<()> {
        match process::user(process.pid) {
            Some(user) if user != self.owner && self.owner != 0 => bail!(
                "process {} belongs to user {user}, but {} to user {}; not touched",
                process.pid,
                self.name,
                self.owner
            ),
            Some(_) | None => Ok(()),
        }
    }

    async fn tell(&self, how: StopHow) -> anyhow::Result<()> {
        self.context.vm_ask(Method::POST, &self.name, "/stop", Some(&Stop { how })).await?;
        Ok(())
    }

    async fn ask_guest(&self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Qemu if self.registered => self.tell(StopHow::Powerdown).await,
            Kind::Qemu => Ok(self.qemu().await?.system_powerdown().await?),
            Kind::Uml => super::mconsole::cad(&self.dir).await,
        }
    }

    async fn tell_vmm(&self) -> anyhow::Result<()> {
        match self.kind {
            Kind::Qemu if self.registered => self.tell(StopHow::Quit).await,
            Kind::Qemu => Ok(self.qemu().await?.quit().await?),
            Kind::Uml => super::mconsole::halt(&self.dir).await,
        }
    }

    async fn qemu(&self) -> anyhow::Result<QmpClient> {
        let path = self.qmp.as_deref().context("it has no QMP socket")?;
        Ok(QmpSocket::connect(path, DEFAULT_TIMEOUT).await?.handshake(DEFAULT_TIMEOUT).await?)
    }

    /// Waits for the VMM's end, `false` if it does not come. User Mode Linux whose guest answers Ctrl-Alt-Del by
    /// rebooting, which is what Linux does by itself, makes its mconsole socket anew; then the guest has shut down,
    /// and its next boot is not waited for. `before` is the socket as it was before the guest was asked.
    async fn wait_for_guest(
        &self,
        handle: &Handle,
        timeout: Duration,
        before: Option<SocketId>,
    ) -> anyhow::Result<Outcome> {
        let begin = Instant::now();
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            if handle.ended(left.min(LOOK)).await? {
                return Ok(Outcome::Ended);
            }
            let now = self.mconsole();
            if self.kind == Kind::Uml && now.is_some() && now != before {
                return Ok(Outcome::Rebooted);
            }
            if left.is_zero() {
                return Ok(Outcome::Silent);
            }
            output::progress(&format!(
                "{}: waiting for its guest, {} s",
                self.name,
                begin.elapsed().as_secs()
            ));
        }
    }

    /// Which mconsole socket is there now.
    fn mconsole(&self) -> Option<SocketId> {
        let found = std::fs::metadata(self.dir.mconsole()).ok()?;
        Some((found.dev(), found.ino(), found.ctime(), found.ctime_nsec()))
    }

    /// Clears away what is left of a VM whose VMM has ended.
    pub(super) async fn clear(&self) -> anyhow::Result<()> {
        output::progress_end();
        if let (Some(vmm), Some(record)) = (self.vmm, &self.record) {
            process::end_session(vmm.pid, &record.program)?;
        }
        if let Some(keeper) = self.keeper {
            self.check_owner(keeper)?;
            end_keeper(keeper).await?;
        }
        if let Some(record) = &self.record {
            remove_group(record).await?;
            self.dir.remove()?;
        } else if self.dir.path().join("vm.json").exists() {
            output::note(&format!(
                "{} is left for its owner, user {}",
                render::clean(&self.dir.path().display().to_string()),
                self.owner
            ));
        }
        if self.registered {
            match self.context.vm_ask(Method::DELETE, &self.name, "", None::<&()>).await {
                Err(e) if !e.is_not_found() => return Err(e).context("cannot have the daemon forget it"),
                Err(_) | Ok(_) => {}
            }
        }
        Ok(())
    }
}
