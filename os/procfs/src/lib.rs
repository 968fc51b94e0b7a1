//! The few files of /proc that Plimsoll reads.
