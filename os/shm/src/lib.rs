//! Shared memory between a keeper and its back end, and the system calls around it.
