//! What the agent in a guest and the host say to each other.
#![forbid(unsafe_code)]
