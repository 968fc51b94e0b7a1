//! The front end of the `vhost` crate, which others wrote: the two must understand each other.

use std::os::fd::AsRawFd;

use plimsoll_units::Bytes;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::Keeper;
use crate::driver::{GUEST, LENGTH, USER, memfd, ring_at};

#[test]
fn an_independent_front_end_is_served() {
    let keeper = Keeper::start("vhost-crate", Bytes(LENGTH), &["--initial-balloon", "9"]);
    let mut front = Frontend::connect(keeper.socket(), 4).unwrap();
    front.set_owner().unwrap();
    let features = front.get_features().unwrap();
    front.set_features(features).unwrap();
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ;
    let offered = front.get_protocol_features().unwrap();
    assert!(offered.contains(wanted), "{offered:?}");
    front.set_protocol_features(wanted).unwrap();
    // From now on every request asks for an acknowledgement and fails if it is refused.
    front.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(front.get_queue_num().unwrap(), 4);
    front.set_features(features).unwrap();

    let memory = memfd(LENGTH);
    front
        .set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST,
            memory_size: LENGTH,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        }])
        .unwrap();
    for ring in 0..2 {
        let [descriptors, available, used] = ring_at(u32::try_from(ring).unwrap()).map(|at| USER + at);
        let (kick, call) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        let place = VringConfigData {
            queue_max_size: 64,
            queue_size: 64,
            flags: 0,
            desc_table_addr: descriptors,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        front.set_vring_num(ring, 64).unwrap();
        front.set_vring_addr(ring, &place).unwrap();
        front.set_vring_base(ring, 0).unwrap();
        front.set_vring_call(ring, &call).unwrap();
        front.set_vring_kick(ring, &kick).unwrap();
        front.set_vring_enable(ring, true).unwrap();
    }
    assert!(keeper.status().driver_ready);
    let (_, bytes) = front.get_config(0, 16, VhostUserConfigFlags::WRITABLE, &[0; 16]).unwrap();
    assert_eq!(bytes[..4], 9u32.to_le_bytes());
    front.set_config(4, VhostUserConfigFlags::WRITABLE, &3u32.to_le_bytes()).unwrap();
    assert_eq!(keeper.status().actual.0.0, 3);
    assert_eq!(front.get_vring_base(1).unwrap(), 0);
    front.set_vring_num(1, 1000).unwrap_err();
    assert!(keeper.status().driver_ready);
}
