//! The daemon's HTTP API: JSON over a Unix socket, version 1, paths below `/v1`.
//!
//! | method and path | body | answer |
//! | --- | --- | --- |
//! | `GET /v1/host` | | [`HostView`] |
//! | `GET /v1/vms` | | [`ListView`] |
//! | `POST /v1/vms` | [`Register`] | [`VmView`] (201), refused with 409 or 422 |
//! | `GET /v1/vms/NAME` | | [`VmView`] |
//! | `PATCH /v1/vms/NAME` | [`Patch`] | [`VmView`] |
//! | `DELETE /v1/vms/NAME` | | [`VmView`] as it was; the daemon forgets the VM and leaves it running |
//! | `PUT /v1/vms/NAME/hold` | [`Hold`] | [`VmView`] |
//! | `DELETE /v1/vms/NAME/hold` | | [`VmView`] |
//! | `POST /v1/vms/NAME/stop` | [`Stop`] | [`VmView`] |
//! | `GET /v1/vms/NAME/explain` | | [`Explain`] |
//! | `GET /v1/events?after=SEQ&wait_ms=MS&vm=NAME` | | [`EventList`] |
//! | `GET /v1/config` | | the configuration in force, as TOML text |
//! | `GET /metrics` | | Prometheus text |
//!
//! Every error is a [`Problem`] with the status 400 (not understood), 403 (not yours), 404 (no such VM),
//! 409 (name taken), 422 (understood, but not possible; the message has the numbers) or 503 (the VM does
//! not answer).

use std::collections::BTreeMap;

use plimsoll_model::{
    AgentStats, HostSample, HostState, Link, OnExhausted, OnPagerLoss, Reason, Sizes, Source, StatsSample,
    Tunables, VmId, VmName, VmState,
};
use plimsoll_units::{Bytes, MemTarget};
use serde::{Deserialize, Serialize};

use crate::control::{AgentCounters, Counters, LedgerCounts, PagerStatus};

/// The API socket's name in the daemon's run folder.
pub const SOCKET_NAME: &str = "api.sock";

/// The run folder when none is given and the caller is root.
pub const RUN_DIR: &str = "/run/plimsoll";

/// The largest request body the daemon reads, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// Which kind of VMM, and where it is spoken to. Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Endpoint {
    /// QEMU with its own balloon, over QMP.
    Qemu {
        /// The QMP socket.
        qmp: String,
        /// The socket of the character device behind the virtio-serial port `org.plimsoll.agent.0`, if there is one: the
        /// agent in the guest speaks there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<String>,
        /// The control socket of its pager, see [`crate::control`], if its memory is populated on demand.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pager: Option<String>,
    },
    /// User Mode Linux behind a keeper.
    Uml {
        /// The back end's control socket, see [`crate::control`].
        control: String,
    },
}

impl Endpoint {
    /// The socket by which the VM is told its target. Two endpoints with the same one are the same VM.
    #[must_use]
    pub fn socket(&self) -> &str {
        match self {
            Self::Qemu { qmp, .. } => qmp,
            Self::Uml { control } => control,
        }
    }

    /// The socket by which the daemon itself hears the agent in the guest, where it does.
    #[must_use]
    pub fn agent_socket(&self) -> Option<&str> {
        match self {
            Self::Qemu { agent, .. } => agent.as_deref(),
            Self::Uml { .. } => None,
        }
    }

    /// The socket by which its pager is spoken to, where its memory is populated on demand.
    #[must_use]
    pub fn pager_socket(&self) -> Option<&str> {
        match self {
            Self::Qemu { pager, .. } => pager.as_deref(),
            Self::Uml { .. } => None,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A process by number and start time (field 22 of /proc/PID/stat, clock ticks since boot), so that a
/// number used again is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// The process number.
    pub pid: u32,
    /// Its start time.
    pub start_time: u64,
}

/// Registers a VM: admits it, reserves its memory and begins to speak to it.
///
/// `plimsoll run` registers before it starts anything, so that a VM that does not fit never runs;
/// `plimsoll adopt` registers a VM that runs. The processes that listen at the endpoint must belong to the
/// user who registers, unless that is root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Its name.
    pub name: VmName,
    /// Where it is (or will be) spoken to.
    pub endpoint: Endpoint,
    /// What it is promised. For an adopted QEMU without them: maxmem as QEMU says, memory what the guest
    /// holds now, floor half of that.
    pub sizes: Option<Sizes>,
    /// The VM runs already: it must answer now, or the registration is refused.
    pub adopt: bool,
    /// Console log, for `show`.
    #[serde(default)]
    pub console: Option<String>,
    /// Self-ballooning settings to begin with, by the names and in the words of [`Tunables::set`]; all of them
    /// or the registration is refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tunables: BTreeMap<String, String>,
    /// What becomes of the guest when it touches more memory than it may have; of a VM with a pager.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_exhausted: OnExhausted,
    /// What becomes of it when its pager is gone for good; of a VM with a pager.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_pager_loss: OnPagerLoss,
}

/// Changes to a VM; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// A new baseline, within floor and maxmem; it is also the new target unless the VM is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// A new weight, 1 to 10000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Self-ballooning settings, by the names and in the words of [`Tunables::set`]; all of them or none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tunables: BTreeMap<String, String>,
    /// What becomes of the guest when it touches more memory than it may have; only of a VM with a pager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_exhausted: Option<OnExhausted>,
    /// The VMM's process, once it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<ProcessRef>,
    /// The keeper's process, once it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeper: Option<ProcessRef>,
}

/// Pins a VM's target until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The target to pin, within floor and maxmem; absent: where it is now.
    #[serde(default)]
    pub target: Option<MemTarget>,
}

/// Ends a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// What to do now. The caller waits and goes on to the next step if need be.
    pub how: StopHow,
}

/// The steps of stopping, gentle to hard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopHow {
    /// Only note that the VM is about to be stopped by the caller, so that its end is no surprise.
    Announce,
    /// Ask the guest to power down (QMP `system_powerdown`).
    Powerdown,
    /// Tell the VMM to end at once (QMP `quit`).
    Quit,
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Registered; its VMM has not answered yet.
    Starting,
    /// Its VMM answers.
    Running,
    /// Its VMM has stopped answering.
    Unreachable,
    /// Its VMM runs, but the keeper or back end that served its balloon is gone for good: its target can no
    /// longer be enforced.
    Unprotected,
    /// It is being stopped by an operator.
    Stopping,
    /// Its VMM has ended; shown for a while, claims nothing.
    Gone,
}

/// A VM as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Where it is spoken to.
    pub endpoint: Endpoint,
    /// Where it is in its life.
    pub life: Life,
    /// The arbiter's word for its state at the last tick.
    pub state: VmState,
    /// Whether its guest can be moved.
    pub link: Link,
    /// What it was promised.
    pub sizes: Sizes,
    /// The target in force.
    pub target: MemTarget,
    /// What the guest holds: maxmem less its balloon.
    pub actual: MemTarget,
    /// Host memory behind the guest.
    pub resident: Option<Bytes>,
    /// Memory of the VMM beyond its guest's own that is reckoned with.
    pub overhead: Bytes,
    /// An operator's pin.
    pub hold: Option<MemTarget>,
    /// Self-ballooning settings.
    #[serde(default)]
    pub tunables: Tunables,
    /// Whose word the need is taken from.
    #[serde(default)]
    pub source: Source,
    /// What the guest needs by that word.
    pub need: Option<Bytes>,
    /// What it could spare.
    pub spare: Bytes,
    /// The guest's word.
    pub stats: Option<StatsSample>,
    /// How old that is, in milliseconds.
    pub stats_age_ms: Option<u64>,
    /// The word of the agent inside the guest, if one speaks.
    #[serde(default)]
    pub agent: Option<AgentView>,
    /// What came over the agent's line; `None` where there is no line.
    #[serde(default)]
    pub agent_line: Option<AgentCounters>,
    /// Why its target is what it is.
    pub reason: Reason,
    /// The same in a sentence.
    pub reason_text: String,
    /// The user who registered it.
    pub owner_uid: u32,
    /// The VMM's process.
    pub vmm: Option<ProcessRef>,
    /// The keeper's process.
    pub keeper: Option<ProcessRef>,
    /// Console log.
    pub console: Option<String>,
    /// What the back end tells, where there is one.
    pub backend: Option<BackendView>,
    /// Its pager, where its memory is populated on demand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pager: Option<PagerView>,
    /// The last thing that went wrong in speaking to it, if nothing has gone right since.
    pub problem: Option<String>,
    /// The change of target that made it what it is.
    pub last_change: Option<Change>,
}

/// What the agent inside a guest said last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentView {
    /// How old that is, in milliseconds.
    pub age_ms: u64,
    /// What it said.
    pub stats: AgentStats,
}

/// The pager of a VM whose memory is populated on demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PagerView {
    /// What becomes of the guest when it touches more memory than it may have.
    pub on_exhausted: OnExhausted,
    /// What becomes of it when its pager is gone for good.
    pub on_pager_loss: OnPagerLoss,
    /// The pager is gone for good.
    #[serde(default)]
    pub lost: bool,
    /// How often its back end was started; 0 before it was heard.
    #[serde(default)]
    pub epoch: u64,
    /// How old what it said is, in milliseconds; `None` before it was heard.
    pub age_ms: Option<u64>,
    /// What it said last.
    pub status: Option<PagerStatus>,
}

/// What a keeper's back end tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// How often it was started.
    pub epoch: u64,
    /// How often a front end connected.
    pub generation: u64,
    /// The ledger's counts.
    pub ledger: LedgerCounts,
    /// What the device did.
    pub counters: Counters,
}

/// A change of a VM's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Microseconds since 1970, for people.
    pub wall_us: u64,
    /// The target before.
    pub from: MemTarget,
    /// The target after.
    pub to: MemTarget,
    /// Why.
    pub reason: Reason,
    /// The same in a sentence.
    pub reason_text: String,
    /// Who: `arbiter`, or the user's number.
    pub by: String,
}

/// The host as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// The daemon's version.
    pub version: String,
    /// The cgroup that stands for the host, if one does.
    pub cgroup: Option<String>,
    /// How it stands.
    pub state: HostState,
    /// The last reading.
    pub sample: HostSample,
    /// What the VMs claim: targets or holdings, whichever is more, and overheads.
    pub claimed: Bytes,
    /// The sum of the floors and overheads: what was guaranteed.
    pub guaranteed: Bytes,
    /// The sum of what the guests were told.
    pub told: Bytes,
    /// What distressed guests wait for.
    pub waiting: Bytes,
    /// Ticks since the daemon started.
    pub ticks: u64,
    /// How long the last tick took, in microseconds.
    pub tick_us: u64,
}

/// The host and every VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListView {
    /// The host.
    pub host: HostView,
    /// The VMs by name.
    pub vms: Vec<VmView>,
}

/// Why a VM's target is what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explain {
    /// The VM.
    pub vm: VmView,
    /// The host.
    pub host: HostView,
    /// Its last changes, newest first, at most 16.
    pub changes: Vec<Change>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Rising by one; begins at 1 with each start of the daemon.
    pub seq: u64,
    /// Microseconds since 1970.
    pub wall_us: u64,
    /// Which VM, if one.
    pub vm: Option<VmName>,
    /// What kind: `registered`, `running`, `target`, `held`, `released`, `distressed`, `relieved`, `stuck`,
    /// `unreachable`, `unprotected`, `rebooted`, `backend-restarted`, `pod-exhausted`, `pod-relieved`, `pager-lost`,
    /// `stopping`, `gone`, `forgotten`, `host-tight`, `host-short`, `host-ample`, `daemon-started`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// Events, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// At most 1000.
    pub events: Vec<Event>,
    /// Ask for what came after this next time.
    pub last_seq: u64,
    /// Events between the `after` that was asked for and the oldest kept, which are lost.
    pub lost: u64,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For people: what was tried, on what, and what to do.
    pub error: String,
}
