//! Bytes of `/proc` files, cut into names and numbers. Bytes, because names of processes need not be text.

/// Lines of a name, a colon or a blank, and a word; others are passed over. What follows the word (`kB`) is ignored.
pub fn fields(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let end = line.iter().position(|b| *b == b':' || *b == b' ')?;
        let (name, rest) = line.split_at(end);
        Some((name, words(rest.get(1..)?).next()?))
    })
}

/// Those of the [`fields`] whose word is a number.
pub(crate) fn entries(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    fields(text).filter_map(|(name, word)| Some((name, number(word)?)))
}

/// The words between blanks.
pub fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// A decimal number of at most 64 bits; `None` for anything else, a sign included.
#[must_use]
pub fn number(word: &[u8]) -> Option<u64> {
    // from_str would take a plus sign.
    let digits = word.first().is_some_and(u8::is_ascii_digit);
    std::str::from_utf8(word).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_numbers() {
        let text =
            b"MemTotal:       24684084 kB\npswpin 7\n\nName:\t\xff\nHuge: 18446744073709551616\nx -3\n";
        let got: Vec<_> = entries(text).collect();
        assert_eq!(got, [(&b"MemTotal"[..], 24_684_084), (&b"pswpin"[..], 7)]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = entries(&text).count();
        }

        #[test]
        fn every_number_is_read_back(n in any::<u64>()) {
            prop_assert_eq!(number(n.to_string().as_bytes()), Some(n));
        }
    }
}
