//! Pressure stall information: readings and triggers.
