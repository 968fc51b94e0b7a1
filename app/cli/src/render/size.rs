//! Sizes in tables and sentences.

use plimsoll_units::Bytes;

/// Whole MiB below 10 GiB, GiB with one digit after the point above; rounded down.
pub(crate) fn short(size: Bytes) -> String {
    let mib = size.whole_mib();
    if mib >= 10 << 10 { format!("{}.{}G", mib >> 10, ((mib & 1023) * 10) >> 10) } else { format!("{mib}M") }
}

/// The same, or `-` for what is not known.
pub(crate) fn maybe(size: Option<Bytes>) -> String {
    size.map_or_else(|| "-".to_string(), short)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn tables_show_three_or_four_digits() {
        assert_eq!(short(Bytes::mib(256)), "256M");
        assert_eq!(short(Bytes::mib(1536)), "1536M");
        assert_eq!(short(Bytes::gib(10)), "10.0G");
        assert_eq!(short(Bytes::mib((511 << 10) + 1023)), "511.9G");
        assert_eq!(short(Bytes(1)), "0M");
        assert_eq!(maybe(None), "-");
    }
}
