//! What a transfer did, for people and for scripts.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::Serialize;

/// Names shown of a long list; scripts get all of them.
const SHOWN: usize = 20;

/// The whole transfer.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Report {
    /// Nothing was written: what is said to be moved would be.
    pub dry_run: bool,
    /// It was called off before it was done.
    pub interrupted: bool,
    /// Why it ended before it was done.
    pub stopped: Option<String>,
    /// By workspace.
    pub workspaces: Vec<WorkspaceReport>,
}

/// One workspace.
#[derive(Debug, Default, Clone, Serialize)]
pub struct WorkspaceReport {
    /// The workspace.
    pub name: String,
    /// The plain folder it comes from or goes to.
    pub folder: PathBuf,
    /// Files moved now, each compared by checksum at its end.
    pub moved: Count,
    /// Files that were at the destination already, with the same checksum.
    pub same: Count,
    /// Folders.
    pub folders: u64,
    /// Symbolic links.
    pub links: u64,
    /// Paths that only the destination has; they are left alone.
    pub only_there: u64,
    /// What has other content at the destination and was not overwritten.
    pub refused: Vec<Difference>,
    /// What did not work.
    pub failed: Vec<Failed>,
    /// What was not meant to be moved, or cannot be.
    pub left_out: LeftOut,
}

/// Files, and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Count {
    /// How many.
    pub files: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// A path that is another thing at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Relative to the workspace.
    pub path: String,
    /// How it differs.
    pub why: String,
    /// Whether `force` would overwrite it.
    pub can_be_forced: bool,
}

/// A path that could not be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// Relative to the workspace.
    pub path: String,
    /// What went wrong.
    pub why: String,
}

/// What was not moved, and why.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// By pattern.
    pub excluded: BTreeMap<String, Count>,
    /// Sockets, FIFOs and devices.
    pub special: Vec<String>,
    /// Files with several names here: each name became a file of its own. These are not left out.
    pub hard_links: u64,
    /// Set-user and set-group bits.
    pub set_id_bits: u64,
    /// Files and folders that may not be read, with the system's words.
    pub unreadable: Vec<Failed>,
    /// Names that cannot be at the destination.
    pub names: Vec<Failed>,
}

impl Count {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

impl Report {
    /// Whether everything that was asked for is at the destination now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let whole = |w: &WorkspaceReport| {
            w.refused.is_empty()
                && w.failed.is_empty()
                && w.left_out.unreadable.is_empty()
                && w.left_out.names.is_empty()
        };
        !self.interrupted && self.stopped.is_none() && self.workspaces.iter().all(whole)
    }

    /// Whether nothing was written because something would have been overwritten.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.workspaces.iter().any(|w| !w.refused.is_empty())
    }

    /// Files whose checksums were compared.
    #[must_use]
    pub fn verified(&self) -> u64 {
        self.workspaces.iter().map(|w| w.moved.files + w.same.files).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for workspace in &self.workspaces {
            workspace.write(f, self.dry_run)?;
        }
        if self.dry_run {
            return writeln!(f, "This was a dry run: nothing was written.");
        }
        let unverified = if self.interrupted || self.stopped.is_some() {
            " so far"
        } else {
            ""
        };
        writeln!(f, "Checksums agree: {}{unverified}.", files(self.verified()))
    }
}

impl WorkspaceReport {
    fn write(&self, f: &mut fmt::Formatter<'_>, dry_run: bool) -> fmt::Result {
        let moved = if dry_run { "to move" } else { "moved" };
        writeln!(
            f,
            "{}: {} {moved} ({}), {} there already ({}), {} folders, {} links",
            self.name,
            files(self.moved.files),
            bytes(self.moved.bytes),
            self.same.files,
            bytes(self.same.bytes),
            self.folders,
            self.links
        )?;
        if self.only_there > 0 {
            writeln!(
                f,
                "  left alone: {} that only the destination has",
                paths(self.only_there)
            )?;
        }
        let forced = self.refused.iter().filter(|difference| difference.can_be_forced);
        let forced: Vec<_> = forced.map(|d| (d.path.as_str(), d.why.as_str())).collect();
        list(f, "not overwritten", &forced)?;
        let never = self.refused.iter().filter(|difference| !difference.can_be_forced);
        let never: Vec<_> = never.map(|d| (d.path.as_str(), d.why.as_str())).collect();
        list(f, "in the way", &never)?;
        list(f, "failed", &pairs(&self.failed))?;
        self.left_out.write(f)
    }
}

impl LeftOut {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pattern, count) in &self.excluded {
            writeln!(
                f,
                "  left out: {pattern}: {} ({})",
                files(count.files),
                bytes(count.bytes)
            )?;
        }
        let special: Vec<_> = self
            .special
            .iter()
            .map(|path| (path.as_str(), "neither file, folder nor link"))
            .collect();
        list(f, "left out", &special)?;
        list(f, "cannot be read", &pairs(&self.unreadable))?;
        list(f, "cannot be stored", &pairs(&self.names))?;
        if self.hard_links > 0 {
            writeln!(
                f,
                "  hard links: {} have other names too; each is a file of its own now",
                files(self.hard_links)
            )?;
        }
        if self.set_id_bits > 0 {
            writeln!(
                f,
                "  left out: the set-user and set-group bits of {}",
                paths(self.set_id_bits)
            )?;
        }
        Ok(())
    }
}

fn pairs(failed: &[Failed]) -> Vec<(&str, &str)> {
    failed.iter().map(|one| (one.path.as_str(), one.why.as_str())).collect()
}

/// One line for each, quoted where a name would break the line.
fn list(f: &mut fmt::Formatter<'_>, title: &str, entries: &[(&str, &str)]) -> fmt::Result {
    for (path, why) in entries.iter().take(SHOWN) {
        writeln!(f, "  {title}: {}: {why}", printable(path))?;
    }
    if entries.len() > SHOWN {
        writeln!(f, "  {title}: and {} more; --json names all", entries.len() - SHOWN)?;
    }
    Ok(())
}

/// A path as it is, unless it holds what a terminal would act on.
fn printable(path: &str) -> String {
    if path.chars().any(char::is_control) {
        format!("{path:?}")
    } else {
        path.to_owned()
    }
}

fn files(number: u64) -> String {
    counted(number, "file")
}

fn paths(number: u64) -> String {
    counted(number, "path")
}

fn counted(number: u64, what: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {what}{ending}")
}

/// Bytes for people, in binary units.
fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    // Precise enough for one decimal.
    #[allow(clippy::cast_precision_loss)]
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
    }

    #[test]
    fn a_long_list_is_cut_and_a_name_that_moves_the_cursor_is_quoted() {
        let mut report = WorkspaceReport {
            name: "shop".into(),
            ..Default::default()
        };
        for number in 0..30 {
            report.failed.push(Failed {
                path: format!("f{number}"),
                why: "no".into(),
            });
        }
        report.left_out.special.push("a\x1b[2J".into());
        let text = Report {
            workspaces: vec![report],
            ..Default::default()
        }
        .to_string();
        assert!(text.contains("failed: f19: no\n") && !text.contains("f20"), "{text}");
        assert!(text.contains("and 10 more"), "{text}");
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}"), "{text}");
    }

    #[test]
    fn what_was_not_moved_makes_a_report_incomplete_and_what_was_not_meant_to_be_does_not() {
        let with = |left_out| Report {
            workspaces: vec![WorkspaceReport {
                left_out,
                ..Default::default()
            }],
            ..Default::default()
        };
        let meant = LeftOut {
            excluded: BTreeMap::from([("*.log".into(), Count { files: 1, bytes: 1 })]),
            special: vec!["socket".into()],
            hard_links: 2,
            ..Default::default()
        };
        assert!(with(meant).is_complete());
        let one = vec![Failed {
            path: "x".into(),
            why: "denied".into(),
        }];
        assert!(
            !with(LeftOut {
                unreadable: one.clone(),
                ..Default::default()
            })
            .is_complete()
        );
        assert!(
            !with(LeftOut {
                names: one,
                ..Default::default()
            })
            .is_complete()
        );
        assert!(
            !Report {
                interrupted: true,
                ..Default::default()
            }
            .is_complete()
        );
    }
}
