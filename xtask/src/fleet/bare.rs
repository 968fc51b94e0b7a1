//! Guests without a balloon.

use std::time::Duration;

use anyhow::{Context, Result};
use plimsoll_testbed::guard::TestCgroup;
use plimsoll_testbed::guest::{Guest, Reply, UmlSpec};
use plimsoll_testbed::images;

use super::{Fleet, GuestSpec, Seen};

/// User Mode Linux guests that nobody cares for, each in a group of its own below the common one, as `plimsoll run`
/// has them: the kernel's reclaim shall see the same groups on both sides.
pub(crate) struct Bare {
    guests: Vec<Guest>,
}

impl Bare {
    /// Boots them at once and waits until all are ready.
    ///
    /// # Errors
    /// When one cannot be started or does not get ready.
    pub(crate) fn start(specs: &[GuestSpec], cgroup: &TestCgroup) -> Result<Self> {
        let image = images::uml()?;
        let launch = |spec: &GuestSpec| -> Result<Guest> {
            let group = cgroup.child(&spec.name)?;
            let mut uml = UmlSpec::new(&spec.name, spec.told, image.clone());
            uml.cgroup = Some(&group);
            uml.disks.extend(spec.disk.clone());
            Ok(uml.launch()?)
        };
        let guests = specs.iter().map(launch).collect::<Result<Vec<_>>>()?;
        for (guest, spec) in guests.iter().zip(specs) {
            guest.wait_boots(1, spec.boot_limit)?;
        }
        Ok(Self { guests })
    }
}

impl Fleet for Bare {
    fn count(&self) -> usize {
        self.guests.len()
    }

    fn ask(&self, index: usize, command: &str, limit: Duration) -> Result<Reply> {
        Ok(self.guests.get(index).context("there is no such guest")?.send(command, limit)?)
    }

    fn sizes(&self) -> Vec<Seen> {
        let seen = |guest: &Guest| Seen { target: None, resident: guest.resident().ok() };
        self.guests.iter().map(seen).collect()
    }
}
