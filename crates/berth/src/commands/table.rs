//! Tables for people: aligned columns, no frames, so that they can also be cut by `awk`.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::NOTHING};

/// A table with these headings; `right` are the columns of numbers.
pub fn table(headings: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(headings);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table as text, without the blanks at the ends of its lines.
pub fn render(table: &Table) -> String {
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// A time span in one or two units: `3m 20s`.
pub fn age(span: std::time::Duration) -> String {
    let whole = std::time::Duration::from_secs(span.as_secs());
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Bytes for people: `52.3 MiB`.
pub fn bytes(number: u64) -> String {
    bytesize::ByteSize::b(number).display().iec().to_string()
}
