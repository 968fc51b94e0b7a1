//! End-to-end tests on real guests.
