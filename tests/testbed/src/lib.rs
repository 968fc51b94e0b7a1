//! Boots real guests and puts everything back afterwards.
