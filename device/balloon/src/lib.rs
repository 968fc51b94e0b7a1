//! The virtio memory balloon, free of any transport.
