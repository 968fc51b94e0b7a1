//! What is wrong with a configuration, and where.

use std::{io, path::PathBuf};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The text is no TOML, has an unknown key, or a value of the wrong kind.
    #[error("{}:{line}: {message}\n    {excerpt}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and what to write instead where that can be told.
        message: String,
        /// The line itself.
        excerpt: String,
    },
    /// A value that is well written and makes no sense.
    #[error("{}: `{key}`: {message}", path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The key with its section.
        key: &'static str,
        /// What would do.
        message: String,
    },
}

impl ConfigError {
    /// Says where in `text` the TOML reader stumbled, and which key may have been meant.
    pub(crate) fn from_toml(path: PathBuf, text: &str, error: &toml::de::Error) -> Self {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..offset).unwrap_or("");
        let line = before.matches('\n').count().saturating_add(1);
        let excerpt = text.lines().nth(line.saturating_sub(1)).unwrap_or("").trim();
        let mut message = error.message().trim().replace('\n', "; ");
        if let Some(near) = suggestion(&message) {
            message.push_str(&format!("; did you mean `{near}`?"));
        }
        Self::Text { path, line, message, excerpt: excerpt.chars().take(120).collect() }
    }
}

/// serde says: unknown field `tikc`, expected one of `tick`, ...: the nearest of those, if one is near.
fn suggestion(message: &str) -> Option<&str> {
    let mut quoted = message.strip_prefix("unknown field ")?.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let (distance, best) = quoted.map(|known| (edits(wrong, known), known)).min()?;
    (distance <= (best.len() / 3).max(2)).then_some(best)
}

/// The least number of insertions, deletions and replacements that turn `a` into `b` (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    // Keys are short; a longer one is near nothing, and must not cost the square of its length.
    let a: Vec<char> = a.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, y) in b.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        for (slot, x) in row.iter_mut().skip(1).zip(&a) {
            let replace = diagonal.saturating_add(usize::from(*x != y));
            diagonal = *slot;
            left = replace.min(diagonal.saturating_add(1)).min(left.saturating_add(1));
            *slot = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i.saturating_add(1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in
            [("", "abc", 3), ("abc", "", 3), ("tick", "tikc", 2), ("tick", "tick", 0), ("low", "lo", 1)]
        {
            assert_eq!(edits(a, b), n, "{a} {b}");
        }
    }

    #[test]
    fn only_near_keys_are_suggested() {
        let message = |wrong| format!("unknown field `{wrong}`, expected one of `budget`, `reserve`, `low`");
        assert_eq!(suggestion(&message("bugdet")), Some("budget"));
        assert_eq!(suggestion(&message("reserves")), Some("reserve"));
        assert_eq!(suggestion(&message("colour-of-the-sky")), None);
        assert_eq!(suggestion("invalid type: integer `5`, expected a string"), None);
    }
}
