//! The vhost-user transport: messages and rings, and nothing of what they carry.
