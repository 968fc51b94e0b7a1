//! Tables of plain text.

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table that grows by rows and is as wide as it must be.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    heads: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column heads.
    pub(crate) fn new(heads: &[(&'static str, Align)]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells beyond the heads are left out, missing ones are empty.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The text: two spaces between columns, none at the end of a line, lines cut at `width` characters.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let heads: Vec<String> = self.heads.iter().map(|(head, _)| (*head).to_string()).collect();
        let lines = || std::iter::once(&heads).chain(&self.rows);
        let widths: Vec<usize> = (0..self.heads.len())
            .map(|i| lines().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in lines() {
            let mut line = String::new();
            for (i, ((_, align), width)) in self.heads.iter().zip(&widths).enumerate() {
                let cell = row.get(i).map_or("", String::as_str);
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let gap = if i == 0 { "" } else { "  " };
                line.push_str(gap);
                match align {
                    Align::Left => line.extend([cell, &pad]),
                    Align::Right => line.extend([&pad, cell]),
                }
            }
            text.push_str(&cut(line.trim_end(), width));
            text.push('\n');
        }
        text
    }
}

/// At most `width` characters of a line.
pub(crate) fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => line.chars().take(width).collect(),
        _ => line.to_string(),
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("WHY", Align::Left)]);
        table.row(vec!["web".into(), "1024M".into(), "held".into()]);
        table.row(vec!["database".into(), "1M".into(), String::new()]);
        assert_eq!(
            table.render(None),
            "NAME       SIZE  WHY\n\
             web       1024M  held\n\
             database     1M\n"
        );
        assert_eq!(
            table.render(Some(8)),
            "NAME\nweb\ndatabase\n".replace("NAME", "NAME    ").replace("web", "web     ")
        );
    }

    proptest! {
        #[test]
        fn no_line_is_longer_than_allowed(cells in proptest::collection::vec("[a-zé ]{0,12}", 0..12), width in 1usize..40) {
            let mut table = Table::new(&[("A", Align::Left), ("B", Align::Right)]);
            for pair in cells.chunks(2) {
                table.row(pair.to_vec());
            }
            prop_assert!(table.render(Some(width)).lines().all(|line| line.chars().count() <= width));
        }
    }
}
