//! Names near a word that was not understood.

/// Words that other tools use for what we call otherwise.
const OTHER_WORDS: &[(&str, &str)] = &[
    ("ls", "list"),
    ("ps", "list"),
    ("vms", "list"),
    ("status", "show"),
    ("info", "show"),
    ("inspect", "show"),
    ("describe", "show"),
    ("start", "run"),
    ("create", "run"),
    ("launch", "run"),
    ("boot", "run"),
    ("attach", "adopt"),
    ("register", "adopt"),
    ("import", "adopt"),
    ("kill", "stop"),
    ("shutdown", "stop"),
    ("poweroff", "stop"),
    ("destroy", "stop"),
    ("delete", "stop"),
    ("rm", "stop"),
    ("pin", "hold"),
    ("freeze", "hold"),
    ("lock", "hold"),
    ("unhold", "release"),
    ("unpin", "release"),
    ("unlock", "release"),
    ("why", "explain"),
    ("log", "events"),
    ("logs", "events"),
    ("journal", "events"),
    ("watch", "top"),
    ("stat", "host"),
    ("stats", "host"),
    ("resize", "set"),
    ("balloon", "set"),
    ("memory", "set"),
    ("server", "daemon"),
    ("plimsolld", "daemon"),
    ("settings", "config"),
];

/// The command that does what `word` means elsewhere.
pub(crate) fn other_word(word: &str) -> Option<&'static str> {
    OTHER_WORDS.iter().find(|(theirs, _)| *theirs == word).map(|(_, ours)| *ours)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`, in characters, case
/// ignored (optimal string alignment).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    // `rows[i][j]`: from the first `i` characters of `a` to the first `j` of `b`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// At most three of `known` that may have been meant, nearest first: at most a third of the letters wrong,
/// or one the beginning of the other.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (distance(word, name), name))
        .filter(|(far, name)| {
            let longest = name.chars().count().max(word.chars().count());
            *far <= longest.div_ceil(3).max(1)
                || (!word.is_empty() && (name.starts_with(word) || word.starts_with(name)))
        })
        .collect();
    near.sort_unstable();
    near.into_iter().map(|(_, name)| name).take(3).collect()
}

/// `did you mean web or web2?`, if anything is near.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let near = nearest(word, known);
    (!near.is_empty()).then(|| format!("did you mean {}?", near.join(" or ")))
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_names_come_first_and_far_ones_not_at_all() {
        assert_eq!(nearest("wbe1", ["db", "web2", "web1", "mail"]), ["web1", "web2"]);
        assert_eq!(nearest("web", ["web2", "db", "web1"]), ["web1", "web2"]);
        assert_eq!(nearest("memroy", ["memory", "weight"]), ["memory"]);
        assert!(nearest("zzz", ["web", "db"]).is_empty());
        assert_eq!(did_you_mean("x", []), None);
    }

    proptest! {
        #[test]
        fn distance_is_symmetric_bounded_and_0_only_for_the_same(a in "[a-c]{0,8}", b in "[a-c]{0,8}") {
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert_eq!(distance(&a, &b) == 0, a == b);
            prop_assert!(distance(&a, &b) <= a.len().max(b.len()));
            prop_assert!(distance(&a, &b) >= a.len().abs_diff(b.len()));
        }

        #[test]
        fn a_slip_of_the_fingers_counts_as_one(word in "[a-z]{2,10}", at in 0usize..8) {
            let mut slipped: Vec<char> = word.chars().collect();
            let at = at.min(slipped.len() - 2);
            slipped.swap(at, at + 1);
            let slipped: String = slipped.into_iter().collect();
            prop_assert_eq!(distance(&word, &slipped), usize::from(word != slipped));
        }
    }
}
