//! Tables for people, in Markdown, so that the README can take them as they are.

/// A table under construction: a head and rows of as many cells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its head.
    pub(crate) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![head.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row; what is missing stays empty, what is too much is left out.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).collect();
        row.resize(self.rows.first().map_or(0, Vec::len), String::new());
        self.rows.push(row);
    }

    /// The text: the first column to the left, numbers to the right, columns aligned.
    pub(crate) fn markdown(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| shown(cell).chars().count()).max().unwrap_or(0).max(4)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            text.push_str(&line(row, &widths));
            if index == 0 {
                let rule = widths.iter().enumerate().map(|(column, &width)| {
                    if column == 0 { "-".repeat(width) } else { format!("{}:", "-".repeat(width - 1)) }
                });
                text.push_str(&line(&rule.collect::<Vec<_>>(), &widths));
            }
        }
        text
    }
}

/// A bar would end the cell.
fn shown(cell: &str) -> String {
    cell.replace('|', "\\|").replace('\n', " ")
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut text = String::from("|");
    for (column, (cell, &width)) in row.iter().zip(widths).enumerate() {
        let cell = shown(cell);
        let cell = if column == 0 { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") };
        text.push_str(&cell);
    }
    text.push('\n');
    text
}

/// A count with a comma at each thousand.
pub(crate) fn thousands(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod test {
    use super::{Table, thousands};

    #[test]
    fn cells_are_aligned_and_bars_do_no_harm() {
        let mut table = Table::new(["what", "nothing", "plimsoll"]);
        table.row(["swapped | out", "1,234", "0"]);
        table.row(["short"]);
        let expected = "\
| what           | nothing | plimsoll |
| -------------- | ------: | -------: |
| swapped \\| out |   1,234 |        0 |
| short          |         |          |
";
        assert_eq!(table.markdown(), expected);
    }

    #[test]
    fn thousands_are_set_apart() {
        let shown: Vec<_> = [0, 999, 1000, 1_234_567].into_iter().map(thousands).collect();
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }
}
