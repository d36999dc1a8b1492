//! Data on standard output, as kubectl prints it: a table, a wide table, JSON or YAML.

use std::io::{self, Write};

use guildnet_model::Class;
use serde::Serialize;

use crate::{cli::Format, failure::Failure};

/// Rows under headings. `wide` columns come last and are left out of the narrow table.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    narrow: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(narrow: &[&'static str], wide: &[&'static str]) -> Self {
        Self { headings: [narrow, wide].concat(), narrow: narrow.len(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Columns three spaces apart, as kubectl's; nothing behind the last one.
    pub(crate) fn render(&self, wide: bool) -> String {
        let columns = if wide { self.headings.len() } else { self.narrow };
        let headings = self.headings.iter().map(|h| (*h).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |c: usize| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let cells =
                line.iter().zip(&widths).map(|(cell, width)| format!("{:width$}", or_dash(cell), width = *width));
            text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn or_dash(cell: &str) -> &str {
    if cell.is_empty() { "-" } else { cell }
}

/// Prints a value in the format that was asked for.
pub(crate) fn data(format: Format, value: &impl Serialize, table: impl FnOnce() -> Table) -> Result<(), Failure> {
    out(&match format {
        Format::Table => table().render(false),
        Format::Wide => table().render(true),
        Format::Json => json(value)?,
        Format::Yaml => yaml(value)?,
    })
}

/// The same for what has a text of its own instead of a table.
pub(crate) fn data_or(
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce(bool) -> String,
) -> Result<(), Failure> {
    out(&match format {
        Format::Table => text(false),
        Format::Wide => text(true),
        Format::Json => json(value)?,
        Format::Yaml => yaml(value)?,
    })
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|t| t + "\n").map_err(|why| Failure::new(Class::Failed, format!("no JSON: {why}"), "report this"))
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|why| Failure::new(Class::Failed, format!("no YAML: {why}"), "report this"))
}

/// Writes text to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn out(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Class::Failed, format!("standard output: {why}"), "make room, or name another file"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "STATE"], &["NODE"]);
        table.row(["a".into(), "ready".into(), "gn-a".into()]);
        table.row(["long-id".into(), String::new(), String::new()]);
        insta::assert_snapshot!(table.render(false), @r"
        ID        STATE
        a         ready
        long-id   -
        ");
        insta::assert_snapshot!(table.render(true), @r"
        ID        STATE   NODE
        a         ready   gn-a
        long-id   -       -
        ");
    }
}
