//! A typed client for QEMU's machine protocol.
