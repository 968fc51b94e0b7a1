//! What the arbiter promises, for any input: raw values, hostile guests, any order of events.

#![expect(clippy::unwrap_used, reason = "a test ends where its set-up fails")]

mod agent;
mod any;
mod kit;
mod pod;
mod scenes;
mod world;
