//! The arbiter: a pure function from what is known to what is to be done.
