//! The table: rows with their targets, samples by column, and how both are printed.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::json;

use crate::figures::Figures;

/// What a row's figures are compared with.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// Only shown.
    None,
    /// At most this.
    Most(f64),
    /// At most the first on Garage, the second with the embedded server.
    MostEach(f64, f64),
    /// At least this share of ext4's figure.
    OfExt4(f64),
}

/// One kind of figure.
pub struct Row {
    /// What samples are filed under.
    pub key: &'static str,
    /// What is printed.
    pub title: &'static str,
    /// What the figures are.
    pub unit: &'static str,
    /// Which figure counts: 0.5 is the median, 1 the largest.
    pub quantile: f64,
    /// What it should be.
    pub target: Target,
    /// Another row whose samples this one shows.
    pub of: &'static str,
}

const fn row(key: &'static str, title: &'static str, unit: &'static str, target: Target) -> Row {
    Row {
        key,
        title,
        unit,
        quantile: 0.5,
        target,
        of: key,
    }
}

/// The same samples, judged by their 99th percentile.
const fn p99(of: &'static str, title: &'static str, target: Target) -> Row {
    Row {
        key: "",
        title,
        unit: "ms",
        quantile: 0.99,
        target,
        of,
    }
}

/// The columns, in order.
pub const COLUMNS: [&str; 7] = [
    "tmpfs",
    "ext4",
    "rclone old",
    "rclone tuned",
    "s3fs",
    "berth",
    "berth embedded",
];
const PEERS: [&str; 3] = ["rclone old", "rclone tuned", "s3fs"];
const OURS: [&str; 2] = ["berth", "berth embedded"];

/// All rows of the full size.
pub const ROWS: [Row; 34] = [
    row("mount", "the mount comes up", "s", Target::None),
    row(
        "walk.fresh",
        "fresh mount: find, then find + stat of 5,000 files",
        "s",
        Target::Most(0.15),
    ),
    row("walk.dropped", "find + stat, dentries dropped", "s", Target::Most(0.05)),
    row("walk.warm", "find + stat, warm", "s", Target::None),
    row(
        "read.cold",
        "cold read of 5,000 x 4 KiB, nothing cached on the host",
        "s",
        Target::Most(1.5),
    ),
    row("read.warm", "warm read of them", "s", Target::Most(0.25)),
    row("read.one", "one warm open + read + close", "µs", Target::Most(35.0)),
    row(
        "read.session",
        "the same in the read-only session of sandboxes",
        "µs",
        Target::Most(6.0),
    ),
    row(
        "copy.4k",
        "cp -r 1,000 x 4 KiB in, until all in S3",
        "s",
        Target::Most(0.8),
    ),
    row("copy.4k.cp", "... cp returns", "s", Target::Most(0.3)),
    row(
        "copy.30k",
        "cp -r 640 x 30 KB in, until all in S3",
        "s",
        Target::Most(0.6),
    ),
    row("copy.30k.cp", "... cp returns", "s", Target::None),
    row(
        "save",
        "save of 4 KiB, open ... close (floors: with fsync)",
        "ms",
        Target::Most(1.0),
    ),
    p99("save", "... 99th percentile", Target::Most(5.0)),
    row("save.s3", "save -> object in S3", "ms", Target::Most(10.0)),
    p99("save.s3", "... 99th percentile", Target::Most(100.0)),
    row("replace", "100 saves by temp + fsync + rename", "s", Target::Most(0.1)),
    row("replace.s3", "... until all in S3", "s", Target::None),
    row("replace.puts", "... PUTs, copies included", "", Target::Most(20.0)),
    row("replace.temps", "... PUTs of temp objects", "", Target::Most(0.0)),
    row("replace.left", "... temp objects left", "", Target::Most(0.0)),
    row(
        "remote.read",
        "change elsewhere -> read",
        "ms",
        Target::MostEach(1000.0, 50.0),
    ),
    row("remote.stat", "... -> stat", "ms", Target::MostEach(1000.0, 50.0)),
    row("remote.new", "... -> new name", "ms", Target::MostEach(1000.0, 50.0)),
    row("remote.inotify", "... -> inotify", "ms", Target::MostEach(1000.0, 50.0)),
    row("git.clone", "git clone of 1,000 files", "s", Target::Most(0.5)),
    row("git.status", "git status", "s", Target::Most(0.05)),
    row("git.first", "... the first after the clone", "s", Target::None),
    row(
        "crash.lost",
        "lost of 200 acknowledged saves, kill -9",
        "",
        Target::Most(0.0),
    ),
    row("crash.there", "... in S3 when killed", "", Target::None),
    row(
        "stream.write",
        "1 GiB sequential write, fsync",
        "MiB/s",
        Target::OfExt4(0.7),
    ),
    row(
        "stream.read",
        "... read of the cached file",
        "MiB/s",
        Target::OfExt4(0.7),
    ),
    row("memory", "memory for 100,000 files known", "MiB", Target::Most(60.0)),
    row("memory.rss", "... of the whole process", "MiB", Target::None),
];

/// Samples and remarks, by row and column.
#[derive(Default)]
pub struct Table {
    samples: BTreeMap<(&'static str, &'static str), Figures>,
    notes: BTreeMap<(&'static str, &'static str), Vec<String>>,
    /// A run of another size has figures and ratios, and no verdict.
    small: bool,
}

impl Table {
    pub fn new(small: bool) -> Self {
        Self {
            small,
            ..Self::default()
        }
    }

    pub fn add(&mut self, row: &'static str, column: &'static str, value: f64) {
        eprintln!("    {column:<15} {row:<16} {}", short(value));
        self.samples.entry((row, column)).or_default().add(value);
    }

    /// Many samples, told in one line.
    pub fn add_quietly(&mut self, row: &'static str, column: &'static str, values: Vec<f64>) {
        let figures = self.samples.entry((row, column)).or_default();
        values.into_iter().for_each(|value| figures.add(value));
        let [low, middle, high] = [0.0, 0.5, 0.99].map(|quantile| short(figures.at(quantile)));
        eprintln!("    {column:<15} {row:<16} {low} / {middle} / p99 {high}");
    }

    /// Why a figure is missing, or what is odd about it.
    pub fn note(&mut self, row: &'static str, column: &'static str, text: impl Into<String>) {
        let text = text.into();
        eprintln!("    {column:<15} {row:<16} {text}");
        let notes = self.notes.entry((row, column)).or_default();
        if !notes.contains(&text) {
            notes.push(text);
        }
    }

    /// A group broke off: its rows without samples say why.
    pub fn broke_off(&mut self, group: &str, column: &'static str, why: &str) {
        let of_group = |row: &&Row| row.key == group || row.key.starts_with(&format!("{group}."));
        for row in ROWS.iter().filter(of_group) {
            if !self.samples.contains_key(&(row.key, column)) && !self.notes.contains_key(&(row.key, column)) {
                self.note(row.key, column, why);
            }
        }
    }

    fn figure(&self, row: &Row, column: &'static str) -> Option<f64> {
        Some(self.samples.get(&(row.of, column))?.at(row.quantile))
    }

    fn best_peer(&self, row: &Row) -> Option<f64> {
        let figures = PEERS.iter().filter_map(|peer| self.figure(row, peer));
        figures.min_by(f64::total_cmp)
    }

    fn cell(&self, row: &Row, column: &'static str) -> String {
        let notes = self
            .notes
            .get(&(row.of, column))
            .map_or_else(String::new, |notes| notes.join("; "));
        let Some(figures) = self.samples.get(&(row.of, column)) else {
            return if notes.is_empty() { "–".into() } else { notes };
        };
        let shown = if row.quantile > 0.9 {
            short(figures.at(row.quantile))
        } else if figures.count() == 1 {
            short(figures.median())
        } else {
            format!(
                "{} / **{}** / {}",
                short(figures.at(0.0)),
                short(figures.median()),
                short(figures.at(0.95))
            )
        };
        if notes.is_empty() {
            shown
        } else {
            format!("{shown} ({notes})")
        }
    }

    /// The bound for one of our columns.
    fn bound(&self, row: &Row, column: &str) -> Option<Bound> {
        match row.target {
            Target::None => None,
            Target::Most(most) => Some(Bound::Most(most)),
            Target::MostEach(external, embedded) => {
                Some(Bound::Most(if column == "berth" { external } else { embedded }))
            }
            Target::OfExt4(share) => Some(Bound::Least(share * self.figure(row, "ext4")?)),
        }
    }

    /// Ratios of our columns: to the best peer, to the target, and the verdict.
    fn verdicts(&self, row: &Row) -> [String; 3] {
        let each = |say: &dyn Fn(&'static str, f64) -> String| {
            let said: Vec<String> = OURS
                .iter()
                .map(|ours| {
                    self.figure(row, ours)
                        .map_or_else(|| "–".into(), |figure| say(ours, figure))
                })
                .collect();
            if said[0] == said[1] {
                said[0].clone()
            } else {
                said.join(", ")
            }
        };
        let ratio = |part: f64, whole: f64| {
            if whole == 0.0 {
                "–".to_owned()
            } else {
                short(part / whole)
            }
        };
        [
            each(&|_, figure| {
                self.best_peer(row)
                    .map_or_else(|| "–".into(), |best| ratio(figure, best))
            }),
            each(&|ours, figure| match self.bound(row, ours) {
                Some(Bound::Most(bound) | Bound::Least(bound)) => ratio(figure, bound),
                None => "–".into(),
            }),
            each(&|ours, figure| match self.bound(row, ours) {
                Some(_) if self.small => "–".into(),
                Some(Bound::Most(bound)) => yes_or_no(figure <= bound),
                Some(Bound::Least(bound)) => yes_or_no(figure >= bound),
                None => "–".into(),
            }),
        ]
    }

    /// Rows that have something to show, as Markdown.
    pub fn print(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "| work | {} | ÷ best peer | ÷ target | target | met |",
            COLUMNS.join(" | ")
        );
        let _ = writeln!(out, "|{}", " --- |".repeat(COLUMNS.len() + 5));
        for row in &ROWS {
            let cells: Vec<String> = COLUMNS.iter().map(|column| self.cell(row, column)).collect();
            if cells.iter().all(|cell| cell == "–") {
                continue;
            }
            let [peer, ratio, met] = self.verdicts(row);
            let target = match row.target {
                Target::None => "–".into(),
                Target::Most(most) => format!("≤ {most}"),
                Target::MostEach(external, embedded) => format!("≤ {external}, {embedded}"),
                Target::OfExt4(share) => format!("≥ {share} × ext4"),
            };
            let unit = if row.unit.is_empty() {
                String::new()
            } else {
                format!(", {}", row.unit)
            };
            let cells = cells.join(" | ");
            let _ = writeln!(
                out,
                "| {}{unit} | {cells} | {peer} | {ratio} | {target} | {met} |",
                row.title
            );
        }
        out
    }

    /// All samples.
    pub fn json(&self) -> serde_json::Value {
        let rows = ROWS.iter().filter(|row| !row.key.is_empty()).map(|row| {
            let columns: BTreeMap<_, _> = COLUMNS
                .iter()
                .filter_map(|column| {
                    let samples = self.samples.get(&(row.key, *column)).map(Figures::all);
                    let notes = self.notes.get(&(row.key, *column));
                    (samples.is_some() || notes.is_some())
                        .then(|| (*column, json!({ "samples": samples, "notes": notes })))
                })
                .collect();
            json!({ "row": row.key, "title": row.title, "unit": row.unit, "columns": columns })
        });
        json!({ "small": self.small, "rows": rows.collect::<Vec<_>>() })
    }
}

enum Bound {
    Most(f64),
    Least(f64),
}

fn yes_or_no(met: bool) -> String {
    if met { "yes".into() } else { "**no**".into() }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    let size = value.abs();
    if value == value.trunc() && size < 1e6 {
        format!("{value}")
    } else if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else if size >= 0.1 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_how_far_it_is_from_the_best_peer_and_from_its_target() {
        let mut table = Table::default();
        for (column, value) in [
            ("rclone old", 3.0),
            ("s3fs", 2.0),
            ("berth", 0.1),
            ("berth embedded", 0.3),
        ] {
            table.add("walk.fresh", column, value);
        }
        let printed = table.print();
        let line = printed.lines().nth(2).unwrap();
        assert!(
            line.ends_with("| 0.0500, 0.150 | 0.667, 2 | ≤ 0.15 | yes, **no** |"),
            "{line}"
        );
        assert_eq!(printed.lines().count(), 3, "{printed}");
    }

    #[test]
    fn a_peer_that_failed_is_no_best_peer_and_says_why() {
        let mut table = Table::default();
        table.broke_off("git", "rclone tuned", "exit status: 128");
        table.add("git.clone", "berth", 0.4);
        let line = table.print().lines().nth(2).unwrap().to_owned();
        assert!(
            line.contains("| exit status: 128 |") && line.ends_with("| – | 0.800, – | ≤ 0.5 | yes, – |"),
            "{line}"
        );
    }
}
