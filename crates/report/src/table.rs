//! Tables: columns and rows of texts, drawn for a terminal or for a page. Whatever value is shown in columns is drawn
//! by this.

use std::fmt::Write;

use crate::chart::escaped;

/// A column: its head, the side on which its cells stand, and what room it has on a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    head: String,
    right: bool,
    least: usize,
    gap: usize,
}

impl Column {
    /// A column of texts.
    #[must_use]
    pub fn left(head: &str) -> Self {
        Self {
            head: head.to_owned(),
            right: false,
            least: 0,
            gap: 0,
        }
    }

    /// A column of figures: one space at least is before each.
    #[must_use]
    pub fn right(head: &str) -> Self {
        Self {
            right: true,
            gap: 1,
            ..Self::left(head)
        }
    }

    /// At least so many characters wide, the space before it counted.
    #[must_use]
    pub fn wide(self, least: usize) -> Self {
        Self { least, ..self }
    }

    /// With so many spaces before it.
    #[must_use]
    pub fn behind(self, gap: usize) -> Self {
        Self { gap, ..self }
    }
}

/// A row. What stands in place of the cells that it lacks is a remark.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    cells: Vec<String>,
    remark: Option<String>,
}

/// Columns, and the rows that were added so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

impl Table {
    /// Without a row.
    #[must_use]
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that it lacks are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(Row {
            cells: cells.into_iter().map(Into::into).collect(),
            remark: None,
        });
    }

    /// Adds a row of which a remark takes the place of all further cells.
    pub fn remarked(&mut self, cells: impl IntoIterator<Item = impl Into<String>>, remark: &str) {
        self.row(cells);
        if let Some(row) = self.rows.last_mut() {
            row.remark = Some(remark.to_owned());
        }
    }

    /// Whether any column has a head.
    fn has_heads(&self) -> bool {
        self.columns.iter().any(|column| !column.head.is_empty())
    }

    /// Lines of a terminal without an end of line behind the last. A column is as wide as its longest cell.
    #[must_use]
    pub fn text(&self) -> String {
        let heads = self.has_heads().then(|| Row {
            cells: self.columns.iter().map(|c| c.head.clone()).collect(),
            remark: None,
        });
        let rows: Vec<&Row> = heads.iter().chain(&self.rows).collect();
        let long = |row: &&Row, i: usize| row.cells.get(i).map_or(0, |cell| cell.chars().count());
        let widths = self.columns.iter().enumerate().map(|(i, column)| {
            let longest = rows.iter().map(|row| long(row, i)).max().unwrap_or(0);
            (column.least.saturating_sub(column.gap)).max(longest)
        });
        let widths: Vec<usize> = widths.collect();
        let lines = rows.iter().map(|row| {
            let mut line = String::new();
            for ((cell, column), &width) in row.cells.iter().zip(&self.columns).zip(&widths) {
                let gap = " ".repeat(column.gap);
                let _ = match column.right {
                    true => write!(line, "{gap}{cell:>width$}"),
                    false => write!(line, "{gap}{cell:<width$}"),
                };
            }
            if let Some(remark) = &row.remark {
                let _ = write!(line, "  {remark}");
            }
            line.trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The element of a page. Texts are never markup.
    #[must_use]
    pub fn html(&self) -> String {
        let class = |i: usize| match self.columns.get(i) {
            Some(column) if column.right => " class=\"n\"",
            _ => "",
        };
        let mut text = "<table>\n".to_owned();
        if self.has_heads() {
            text.push_str("<tr>");
            for (i, column) in self.columns.iter().enumerate() {
                let _ = write!(text, "<th{}>{}</th>", class(i), escaped(&column.head));
            }
            text.push_str("</tr>\n");
        }
        for row in &self.rows {
            text.push_str("<tr>");
            for (i, cell) in row.cells.iter().enumerate() {
                let _ = write!(text, "<td{}>{}</td>", class(i), escaped(cell));
            }
            if let Some(remark) = &row.remark {
                let rest = self.columns.len().saturating_sub(row.cells.len()).max(1);
                let _ = write!(text, "<td colspan=\"{rest}\">{}</td>", escaped(remark));
            }
            text.push_str("</tr>\n");
        }
        text.push_str("</table>");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([
            Column::left("what").wide(6),
            Column::right("size").wide(8),
            Column::left("").behind(2),
        ]);
        table.row(["a", "1 GiB", "é"]);
        table.row(["a longer name", "12345678 GiB"]);
        table.remarked(["<b>"], "does not fit");
        table
    }

    /// Columns grow with their cells, and no cell touches the next.
    #[test]
    fn columns_are_as_wide_as_their_cells() {
        assert_eq!(
            sample().text(),
            "what                  size\n\
             a                    1 GiB  é\n\
             a longer name 12345678 GiB\n\
             <b>            does not fit"
        );
        let mut one = Table::new([Column::left("").wide(3), Column::right("").wide(4)]);
        one.row(["a", "b"]);
        assert_eq!(one.text(), "a     b");
        assert_eq!(
            one.html(),
            "<table>\n<tr><td>a</td><td class=\"n\">b</td></tr>\n</table>"
        );
    }

    #[test]
    fn a_page_has_no_markup_of_a_cell() {
        let page = sample().html();
        assert!(
            page.contains("<td>&lt;b&gt;</td><td colspan=\"2\">does not fit</td>"),
            "{page}"
        );
        assert!(
            page.contains("<th class=\"n\">size</th>") && !page.contains("<b>"),
            "{page}"
        );
    }
}
