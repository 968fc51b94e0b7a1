//! The commands Plimsoll needs, each with its own result.

use plimsoll_units::{Bytes, MemTarget};
use serde::Deserialize;
use serde_json::json;

use crate::{
    BalloonStats, QemuVersion, QmpClient, QmpError,
    error::shorten,
    stats::RawStats,
    wire::{Empty, KEPT_TEXT, NO_ARGUMENTS, RawVersion},
};

/// Where user-created devices live in QEMU's object tree: those with an id, and those without.
const DEVICE_FOLDERS: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];

/// Matches `child<virtio-balloon-pci>`, `-pci-transitional`, `-device`, `-ccw` and what else may come.
const BALLOON_TYPE: &str = "child<virtio-balloon";

/// The balloon device's path in QEMU's object tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BalloonDevice(String);

impl BalloonDevice {
    /// The path, such as `/machine/peripheral/balloon0`.
    #[must_use]
    pub fn qom_path(&self) -> &str {
        &self.0
    }
}

/// What `query-status` tells.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RunState {
    /// Whether the virtual CPUs run.
    pub running: bool,
    /// QEMU's word: `running`, `paused`, `prelaunch`, `inmigrate`, `shutdown`, ... (`qapi/run-state.json`).
    pub status: String,
}

/// What `query-memory-size-summary` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemorySize {
    /// Memory the machine was started with (`-m`).
    pub base_memory: Bytes,
    /// Memory plugged in since, or at start by `-device pc-dimm`.
    #[serde(default)]
    pub plugged_memory: Bytes,
}

impl MemorySize {
    /// What the guest is told it has.
    #[must_use]
    pub const fn total(self) -> Bytes {
        self.base_memory.plus(self.plugged_memory)
    }
}

#[derive(Deserialize)]
struct NameReply {
    name: Option<String>,
}

#[derive(Deserialize)]
struct BalloonReply {
    actual: Bytes,
}

#[derive(Deserialize)]
struct QomEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

impl QmpClient {
    /// Whether the machine runs.
    pub async fn query_status(&mut self) -> Result<RunState, QmpError> {
        let state: RunState = self.execute("query-status", NO_ARGUMENTS).await?;
        Ok(RunState { status: shorten(state.status, KEPT_TEXT), ..state })
    }

    /// The name given with `-name`, if any.
    pub async fn query_name(&mut self) -> Result<Option<String>, QmpError> {
        let reply: NameReply = self.execute("query-name", NO_ARGUMENTS).await?;
        Ok(reply.name.map(|name| shorten(name, KEPT_TEXT)))
    }

    /// The version, as in the greeting.
    pub async fn query_version(&mut self) -> Result<QemuVersion, QmpError> {
        let raw: RawVersion = self.execute("query-version", NO_ARGUMENTS).await?;
        Ok(raw.into())
    }

    /// What the guest holds: the machine's memory less the balloon. [`QmpError::NoBalloon`] without a balloon
    /// device. The guest has a say in it, so any number is possible.
    pub async fn query_balloon(&mut self) -> Result<MemTarget, QmpError> {
        let reply: Result<BalloonReply, QmpError> = self.execute("query-balloon", NO_ARGUMENTS).await;
        reply.map(|r| MemTarget(r.actual)).map_err(name_missing_balloon)
    }

    /// Sets what shall be left to the guest. QEMU remembers it for a driver that comes later, refuses 0 and
    /// takes more than there is for all there is.
    pub async fn set_target(&mut self, target: MemTarget) -> Result<(), QmpError> {
        let done: Result<Empty, QmpError> = self.execute("balloon", json!({ "value": target.0.0 })).await;
        done.map(drop).map_err(name_missing_balloon)
    }

    /// Finds the balloon device; [`QmpError::NoBalloon`] if there is none. QEMU allows one at most.
    pub async fn find_balloon(&mut self) -> Result<BalloonDevice, QmpError> {
        for folder in DEVICE_FOLDERS {
            let entries: Vec<QomEntry> = self.execute("qom-list", json!({ "path": folder })).await?;
            if let Some(found) = entries.iter().find(|entry| entry.kind.starts_with(BALLOON_TYPE)) {
                return Ok(BalloonDevice(format!("{folder}/{}", found.name)));
            }
        }
        Err(QmpError::NoBalloon { path: self.path().to_owned() })
    }

    /// How often QEMU asks the guest for its statistics, in seconds; 0 stops it.
    pub async fn set_stats_interval(
        &mut self,
        balloon: &BalloonDevice,
        seconds: u32,
    ) -> Result<(), QmpError> {
        let arguments = json!({
            "path": balloon.0, "property": "guest-stats-polling-interval", "value": seconds,
        });
        self.execute::<Empty>("qom-set", arguments).await.map(drop)
    }

    /// The statistics the guest sent last.
    pub async fn guest_stats(&mut self, balloon: &BalloonDevice) -> Result<BalloonStats, QmpError> {
        let arguments = json!({ "path": balloon.0, "property": "guest-stats" });
        let result = self.exchange("qom-get", arguments).await?;
        match serde_json::from_str::<RawStats<'_>>(result.get()) {
            Ok(raw) => Ok(raw.into()),
            Err(err) => Err(self.bad_reply("qom-get", &result, &err)),
        }
    }

    /// How much memory the machine has.
    pub async fn query_memory_size(&mut self) -> Result<MemorySize, QmpError> {
        self.execute("query-memory-size-summary", NO_ARGUMENTS).await
    }

    /// Stops the virtual CPUs.
    pub async fn stop(&mut self) -> Result<(), QmpError> {
        self.execute::<Empty>("stop", NO_ARGUMENTS).await.map(drop)
    }

    /// Lets them go on.
    pub async fn cont(&mut self) -> Result<(), QmpError> {
        self.execute::<Empty>("cont", NO_ARGUMENTS).await.map(drop)
    }

    /// Asks the guest to shut down, as the power button does. A guest without ACPI does not hear it.
    pub async fn system_powerdown(&mut self) -> Result<(), QmpError> {
        self.execute::<Empty>("system_powerdown", NO_ARGUMENTS).await.map(drop)
    }

    /// Resets the machine.
    pub async fn system_reset(&mut self) -> Result<(), QmpError> {
        self.execute::<Empty>("system_reset", NO_ARGUMENTS).await.map(drop)
    }

    /// Ends QEMU, and this connection with it. QEMU may hang up before it answers; that counts as done.
    pub async fn quit(mut self) -> Result<(), QmpError> {
        match self.execute::<Empty>("quit", NO_ARGUMENTS).await {
            Ok(_) | Err(QmpError::Closed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// QEMU's class for a balloon command without a balloon (`system/balloon.c`).
fn name_missing_balloon(error: QmpError) -> QmpError {
    if let QmpError::Refused { path, class, .. } = &error
        && class == "DeviceNotActive"
    {
        return QmpError::NoBalloon { path: path.clone() };
    }
    error
}
