//! What the agent inside a guest says, and what becomes of it when it lies, stops or floods.
//!
//! The bytes come from inside real guests: from Plimsoll's agent, or from a shell that writes to its line what was made
//! up here. Beside the guest whose line is abused there is one that must not notice and one that needs memory meanwhile.

mod committed;
mod floods;
mod frames;
mod honest;
mod inside;
mod lies;
mod world;
