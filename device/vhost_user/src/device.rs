//! What a device is to the transport.

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use crate::MappedRegion;

/// A chain of buffers from the guest.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// What is to become of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Return it to the guest now.
    Complete {
        /// Bytes written into it.
        written: u32,
    },
    /// The device keeps it and returns it later, with [`crate::Session::complete`].
    Hold,
}

/// A virtio device. Every call comes from one thread, and whatever the guest put into a chain is the
/// device's to survive.
pub trait Device {
    /// How many queues it has at most, at most [`crate::layout::MAX_RINGS`].
    fn queues(&self) -> u16;

    /// The features it offers, without those of rings and transport.
    fn features(&self) -> u64;

    /// The features the driver accepted, a subset of what was offered. May come several times.
    fn set_features(&mut self, acked: u64);

    /// The driver reads the configuration space. All of `buffer` is to be filled, zeros past the end.
    fn read_config(&self, offset: u32, buffer: &mut [u8]);

    /// The driver writes the configuration space.
    fn write_config(&mut self, offset: u32, bytes: &[u8]);

    /// The guest's memory is this from now on, in place of what it was; no regions: none.
    ///
    /// # Errors
    /// Why the device cannot work with it. It then has none.
    fn set_memory(&mut self, regions: &[MappedRegion]) -> Result<(), String>;

    /// A queue starts. `anew`: with the first entry of a new ring, as a driver that begins does; else it goes on
    /// where it stood, and what the device held comes again.
    fn started(&mut self, queue: u16, anew: bool);

    /// A queue was stopped. The device forgets what it held of it.
    fn stopped(&mut self, queue: u16);

    /// Execute a chain. It may be one that a killed process had begun to execute already.
    fn handle(&mut self, queue: u16, chain: Chain<'_>) -> Outcome;
}
