//! Plain data that the collector, the arbiter and the journal share.
