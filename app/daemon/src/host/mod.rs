//! The host, or the memory cgroup that stands for it: what there is to give, and how it stands.
//!
//! Where the configuration says `auto`:
//!
//! * `reserve` is kept from the VMs. For a host: a sixteenth of its memory and 128M, at most a quarter, for the
//!   kernel, the page cache and other programs (Proxmox VE keeps a fifth by default, see its
//!   `ballooning-target`). For a cgroup, which has nothing but VMs in it: a 32nd of its limit, 8M at least, for
//!   page tables and what the kernel charges besides.
//! * `budget` is the memory (or the limit) less the reserve.
//! * `low` is a quarter of the reserve for a host, half of it for a cgroup. `MemAvailable` leaves out the kernel's
//!   own watermarks already, so a host with less than this has all but used up what it kept for itself.

mod group;
mod pressure;

use plimsoll_model::{HostSample, PsiTotals};
use plimsoll_procfs::{MemInfo, ProcError, Procfs};
use plimsoll_psi::{HOST_MEMORY, PsiError};
use plimsoll_units::Bytes;

use crate::config::HostConfig;
use group::{Group, GroupReading};
pub(crate) use pressure::Pressure;

/// Why the host cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// /proc does not tell.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// The cgroup does not tell.
    #[error("the cgroup `{name}` of host.cgroup cannot stand for the host: {source}")]
    Group {
        /// As configured.
        name: String,
        /// What is wrong.
        source: plimsoll_cgroup::CgroupError,
    },
}

/// Reads the host.
#[derive(Debug)]
pub(crate) struct HostReader {
    config: HostConfig,
    proc: Procfs,
    group: Option<Group>,
    last: HostSample,
    /// What was complained of and has not been well since.
    said_error: bool,
    said_no_psi: bool,
}

impl HostReader {
    /// Reads once, so that what is wrong shows at the start.
    pub(crate) fn new(config: HostConfig) -> Result<Self, HostError> {
        let group = match &config.cgroup {
            Some(name) => {
                let failed = |source| HostError::Group { name: name.clone(), source };
                Some(Group::open(name).map_err(failed)?)
            }
            None => None,
        };
        let last = HostSample {
            budget: Bytes::ZERO,
            available: Bytes::ZERO,
            low: Bytes::ZERO,
            psi: None,
            swap_in_pages: 0,
            swap_out_pages: 0,
        };
        let mut reader =
            Self { config, proc: Procfs::new(), group, last, said_error: false, said_no_psi: false };
        reader.last = reader.try_read()?;
        Ok(reader)
    }

    /// The host now. If it cannot be read, as it was: a tick without news is better than none.
    pub(crate) fn read(&mut self) -> HostSample {
        match self.try_read() {
            Ok(sample) => {
                self.said_error = false;
                self.last = sample;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said_error, true) {
                    tracing::warn!(%error, "cannot read the host; its last reading stands until it can be read again");
                }
            }
        }
        self.last
    }

    /// The pressure file, where there is one.
    pub(crate) fn pressure_path(&self) -> Option<std::path::PathBuf> {
        match &self.group {
            Some(group) => group.pressure_path(),
            None => Some(HOST_MEMORY.into()),
        }
    }

    fn try_read(&mut self) -> Result<HostSample, HostError> {
        let memory = self.proc.meminfo()?;
        let stat = self.proc.vmstat()?;
        let group = match &mut self.group {
            Some(group) => {
                let name = self.config.cgroup.clone().unwrap_or_default();
                Some(group.read().map_err(|source| HostError::Group { name, source })?)
            }
            None => None,
        };
        let swap =
            group.as_ref().and_then(|g| g.swap).unwrap_or((stat.swap_in_pages(), stat.swap_out_pages()));
        let psi = self.psi();
        let (budget, available, low) = reckon(&self.config, &memory, group.as_ref());
        Ok(HostSample { budget, available, low, psi, swap_in_pages: swap.0, swap_out_pages: swap.1 })
    }

    fn psi(&mut self) -> Option<PsiTotals> {
        let read = match self.pressure_path() {
            Some(path) => plimsoll_psi::read(&path),
            None => Err(PsiError::Absent { path: "memory.pressure of the cgroup".into() }),
        };
        match read {
            Ok(pressure) => {
                let full_us = pressure.full.map_or(0, |full| full.total_us);
                Some(PsiTotals { some_us: pressure.some.total_us, full_us })
            }
            Err(error) => {
                if !std::mem::replace(&mut self.said_no_psi, true) {
                    tracing::warn!(%error, "no pressure information: stalls of the host go unseen, only available memory counts");
                }
                None
            }
        }
    }
}

/// Budget, available and low.
fn reckon(config: &HostConfig, memory: &MemInfo, group: Option<&GroupReading>) -> (Bytes, Bytes, Bytes) {
    let (whole, available) = match group {
        Some(group) => {
            let whole = group.limit.unwrap_or(memory.total).min(memory.total);
            let left = whole.minus(group.usage).plus(group.reclaimable).min(whole);
            // A group cannot have what the host around it does not have.
            (whole, left.min(memory.available))
        }
        None => (memory.total, memory.available),
    };
    let reserve = config.reserve.unwrap_or_else(|| auto_reserve(whole, group.is_some()));
    let budget = config.budget.unwrap_or_else(|| whole.minus(reserve)).pages_floor().bytes();
    let share = if group.is_some() { 2 } else { 4 };
    let low = config.low.unwrap_or_else(|| reserve.scale(1, share));
    (budget, available, low)
}

fn auto_reserve(whole: Bytes, group: bool) -> Bytes {
    if group {
        whole.scale(1, 32).max(Bytes::mib(8))
    } else {
        whole.scale(1, 16).plus(Bytes::mib(128)).min(whole.scale(1, 4))
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    fn memory(total: Bytes, available: Bytes) -> MemInfo {
        MemInfo { total, available, ..MemInfo::default() }
    }

    fn group(limit: Option<Bytes>, usage: Bytes, reclaimable: Bytes) -> GroupReading {
        GroupReading { limit, usage, reclaimable, swap: None }
    }

    #[test]
    fn this_host_can_be_read() {
        let mut reader = HostReader::new(Config::default().host).unwrap();
        let sample = reader.read();
        assert!(sample.low < sample.budget, "{sample:?}");
        assert!(sample.available > Bytes::ZERO);
    }

    #[test]
    fn a_missing_cgroup_is_told_at_the_start() {
        let config = HostConfig { cgroup: Some("no/such/group".into()), ..Config::default().host };
        let message = HostReader::new(config).unwrap_err().to_string();
        assert!(message.contains("`no/such/group`"), "{message}");
    }

    #[test]
    fn a_group_is_reckoned_by_its_limit() {
        let m = Bytes::mib;
        let config = Config::default().host;
        let (budget, available, low) =
            reckon(&config, &memory(m(24_000), m(20_000)), Some(&group(Some(m(640)), m(500), m(100))));
        assert_eq!((budget, available, low), (m(620), m(240), m(10)));
        // The host around it has less.
        let (_, available, _) =
            reckon(&config, &memory(m(24_000), m(50)), Some(&group(Some(m(640)), m(500), m(100))));
        assert_eq!(available, m(50));
        // More than it has cannot be reclaimed from it, and without a limit it is the host.
        let (_, available, _) =
            reckon(&config, &memory(m(24_000), m(20_000)), Some(&group(Some(m(640)), m(5), m(900))));
        assert_eq!(available, m(640));
        let (budget, ..) = reckon(&config, &memory(m(3200), m(20_000)), Some(&group(None, m(5), m(0))));
        assert_eq!(budget, m(3100));
    }

    #[test]
    fn what_is_configured_is_used() {
        let m = Bytes::mib;
        let config = HostConfig { reserve: Some(m(100)), ..Config::default().host };
        assert_eq!(reckon(&config, &memory(m(1000), m(10)), None), (m(900), m(10), m(25)));
        let config = HostConfig { budget: Some(m(500)), low: Some(m(7)), ..config };
        assert_eq!(reckon(&config, &memory(m(1000), m(10)), None), (m(500), m(10), m(7)));
    }

    proptest! {
        #[test]
        fn the_autos_leave_room_on_every_host(total in 1u64 << 26..1 << 46, in_group: bool) {
            let whole = Bytes(total);
            let reading = in_group.then(|| group(Some(whole), Bytes::ZERO, Bytes::ZERO));
            let (budget, _, low) = reckon(&Config::default().host, &memory(whole, whole), reading.as_ref());
            prop_assert!(budget >= whole.scale(3, 4).minus(Bytes(4096)));
            prop_assert!(budget < whole);
            prop_assert!(low < whole.minus(budget));
        }
    }
}
