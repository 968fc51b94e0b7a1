//! `/proc/pressure/memory` (the kernel's `Documentation/accounting/psi.rst`), since Linux 4.20.

use plimsoll_model::PsiTotals;
use plimsoll_procfs::{number, words};

/// The stall times since boot.
pub(crate) fn read(text: &[u8]) -> Option<PsiTotals> {
    let total = |kind: &[u8]| {
        let mut lines = text.split(|byte| *byte == b'\n');
        let line = lines.find(|line| words(line).next() == Some(kind))?;
        number(words(line).find_map(|word| word.strip_prefix(b"total="))?)
    };
    Some(PsiTotals { some_us: total(b"some")?, full_us: total(b"full")? })
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_totals_are_taken() {
        let text = b"some avg10=0.00 avg60=1.28 avg300=0.40 total=54160523\n\
            full avg10=0.00 avg60=0.71 avg300=0.21 total=38181827\n";
        assert_eq!(read(text), Some(PsiTotals { some_us: 54_160_523, full_us: 38_181_827 }));
    }

    #[test]
    fn half_of_it_is_nothing() {
        assert_eq!(read(b""), None);
        assert_eq!(read(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"), None);
        assert_eq!(read(b"some total=1\nfull total=x\n"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(some|full|total=| |[0-9]{0,22}|\n|.){0,40}") {
            let _ = read(text.as_bytes());
        }
    }
}
