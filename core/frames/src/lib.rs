//! The ledger of guest frames over a fixed layout that survives SIGKILL.
