//! Settings of the kernel, changed for a while.

use std::path::Path;

use super::{Deed, Undo};
use crate::BedError;

/// zswap's switch: `Y` or `N`.
pub const ZSWAP_ENABLED: &str = "/sys/module/zswap/parameters/enabled";

/// A file under /proc/sys or /sys that holds another value until this is dropped.
#[derive(Debug)]
pub struct Setting {
    _undo: Undo,
}

impl Setting {
    /// Writes `value` into `path`, having noted what it held.
    ///
    /// # Errors
    /// [`BedError::Io`] when it cannot be read or written.
    pub fn set(path: &Path, value: &str) -> Result<Self, BedError> {
        let was = std::fs::read_to_string(path).map_err(BedError::io("read", path))?;
        let undo = Undo::register(Deed::Value { path: path.to_owned(), was })?;
        std::fs::write(path, value).map_err(BedError::io("write", path))?;
        Ok(Self { _undo: undo })
    }

    /// Turns zswap on or off.
    ///
    /// # Errors
    /// [`BedError::Io`] when this kernel has none or this is not root.
    pub fn zswap(enabled: bool) -> Result<Self, BedError> {
        Self::set(Path::new(ZSWAP_ENABLED), if enabled { "Y" } else { "N" })
    }
}

#[cfg(test)]
mod test {
    use super::Setting;
    use crate::guard::ShmDir;

    #[test]
    fn the_old_value_comes_back() {
        let dir = ShmDir::create("setting").expect("a directory");
        let knob = dir.path().join("knob");
        std::fs::write(&knob, "60\n").expect("writes");
        let setting = Setting::set(&knob, "100").expect("sets");
        assert_eq!(std::fs::read_to_string(&knob).expect("reads"), "100");
        drop(setting);
        assert_eq!(std::fs::read_to_string(&knob).expect("reads"), "60\n");
    }
}
