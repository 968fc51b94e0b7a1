//! The balloon as the transport sees it.

use std::time::Instant;

use plimsoll_balloon::{Balloon, Features, FileDiscarder, FileRegion, queue_count};
use plimsoll_shm::SharedWords;
use plimsoll_units::{Bytes, Gpa};
use plimsoll_vhost_user::{Chain, Device, MappedRegion, Outcome};

/// A balloon over files, and what the transport has to know beside it.
pub(crate) struct BalloonDevice {
    balloon: Balloon<SharedWords, FileDiscarder>,
    /// The queue from which the held statistics buffer came.
    held_from: Option<u16>,
    /// The number of the latest statistics, and when they came.
    stats: Option<(u64, Instant)>,
}

impl BalloonDevice {
    pub(crate) fn new(balloon: Balloon<SharedWords, FileDiscarder>) -> Self {
        Self { balloon, held_from: None, stats: None }
    }

    pub(crate) fn balloon(&self) -> &Balloon<SharedWords, FileDiscarder> {
        &self.balloon
    }

    pub(crate) fn balloon_mut(&mut self) -> &mut Balloon<SharedWords, FileDiscarder> {
        &mut self.balloon
    }

    /// When the latest statistics came.
    pub(crate) fn stats_at(&self) -> Option<Instant> {
        self.stats.map(|(_, at)| at)
    }

    /// Gives the statistics buffer up, if it is held: its queue and its head.
    pub(crate) fn take_held(&mut self) -> Option<(u16, u16)> {
        let queue = self.held_from.take()?;
        Some((queue, self.balloon.take_held()?))
    }
}

impl Device for BalloonDevice {
    fn queues(&self) -> u16 {
        queue_count(self.balloon.offered_features().0)
    }

    fn features(&self) -> u64 {
        self.balloon.offered_features().0
    }

    fn set_features(&mut self, acked: u64) {
        self.balloon.set_acked_features(acked);
        let features = Features(acked);
        tracing::info!(
            statistics = features.contains(Features::STATS_VQ),
            reporting = features.contains(Features::PAGE_REPORTING),
            must_tell_host = features.contains(Features::MUST_TELL_HOST),
            "driver accepted features"
        );
    }

    fn read_config(&self, offset: u32, buffer: &mut [u8]) {
        self.balloon.read_config(offset, buffer);
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) {
        let accepted = self.balloon.write_config(offset, bytes);
        tracing::trace!(?accepted, offset, "driver wrote its configuration");
    }

    fn set_memory(&mut self, regions: &[MappedRegion]) -> Result<(), String> {
        let mut table = Vec::with_capacity(regions.len());
        for mapped in regions {
            table.push(FileRegion {
                gpa: Gpa(mapped.region.guest),
                len: Bytes(mapped.region.length),
                offset: Bytes(mapped.region.offset),
                file: mapped.file.try_clone().map_err(|error| error.to_string())?.into(),
            });
        }
        self.balloon.replace_memory(table).map_err(|error| error.to_string())
    }

    fn started(&mut self, queue: u16, anew: bool) {
        tracing::debug!(queue, anew, role = ?self.balloon.role(queue), "queue started");
        // The inflate queue is the first of every driver's.
        if anew && queue == 0 {
            self.balloon.reset();
            self.held_from = None;
        }
    }

    fn stopped(&mut self, queue: u16) {
        tracing::debug!(queue, role = ?self.balloon.role(queue), "queue stopped");
        if self.held_from == Some(queue) {
            self.held_from = None;
        }
        if let Some(role) = self.balloon.role(queue) {
            self.balloon.on_ring_stop(role);
        }
    }

    fn handle(&mut self, queue: u16, chain: Chain<'_>) -> Outcome {
        let Some(role) = self.balloon.role(queue) else { return Outcome::Complete { written: 0 } };
        let outcome = self.balloon.handle(role, chain);
        tracing::trace!(queue, ?role, ?outcome, "chain");
        let sequence = self.balloon.stats().sequence;
        if sequence != 0 && self.stats.is_none_or(|(last, _)| last != sequence) {
            self.stats = Some((sequence, Instant::now()));
        }
        match outcome {
            plimsoll_balloon::Outcome::Complete { written } => Outcome::Complete { written },
            plimsoll_balloon::Outcome::Hold => {
                self.held_from = Some(queue);
                Outcome::Hold
            }
        }
    }
}
