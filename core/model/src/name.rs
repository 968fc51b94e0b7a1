//! What VMs are called.

use alloc::string::{String, ToString};
use core::fmt;

use serde::{Deserialize, Serialize};

/// A VM's number, given by the daemon when the VM is registered and never used again while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmId(pub u64);

/// A VM's name: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// It becomes a folder, a cgroup and a metric label, hence the narrow alphabet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

/// Why a text is not a VM's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or more than 63 characters.
    #[error("a VM's name has 1 to 63 characters, `{0}` has {1}")]
    Length(String, usize),
    /// A character outside the alphabet, or a bad first one.
    #[error("`{0}` cannot name a VM: only letters, digits, `.`, `_` and `-`, the first a letter or digit")]
    Character(String),
}

impl VmName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// Checks `text`.
    pub fn new(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > Self::MAX_LEN {
            let shown: String = text.chars().take(80).collect();
            return Err(NameError::Length(shown, text.chars().count()));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !text.chars().all(fits) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(NameError::Character(text.escape_default().to_string()));
        }
        Ok(Self(text.to_string()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl core::str::FromStr for VmName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_harmless_names() {
        for good in ["web", "a", "db-1.prod_2", "7"] {
            assert_eq!(VmName::new(good).map(|n| n.to_string()), Ok(good.to_string()));
        }
        for bad in ["", "-x", ".", "..", "a/b", "a b", "ü", "a\n", "a,b"] {
            assert!(VmName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(VmName::new(&"x".repeat(63)).unwrap().as_str().len(), 63);
        assert!(matches!(VmName::new(&"x".repeat(64)), Err(NameError::Length(_, 64))));
    }
}
