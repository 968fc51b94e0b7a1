//! Answers made readable. Pure: data in, text out.

pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod show;
pub(crate) mod size;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod vms;

/// `text` without control characters: what a guest or a log says must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod test {
    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(super::clean("a\x1b[2Jb\r\n\tc\u{9b}"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\tc\u{fffd}");
    }
}
