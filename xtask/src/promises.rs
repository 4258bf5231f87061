//! Documents that promise something name the test which holds it: here is seen to it that there is such a test.
//!
//! A name is text in backquotes. `remote.rs` or `tests/e2e/mount.rs` is a file; a word of lower case with three underscores or
//! more is a test: of the file named just before it, or else of any test of the mount.

use std::fs;
use std::path::{Path, PathBuf};

/// The documents.
pub const DOCUMENTS: [&str; 2] = ["docs/mount.md", "docs/semantics.md"];
/// Where a file may be that is named without its folder.
const FOLDERS: [&str; 3] = ["", "crates/berth-mount", "crates/berth-mount/tests"];
/// Where a test may be that is named without its file.
const TESTS: [&str; 2] = ["crates/berth-mount/tests", "tests/e2e"];

/// Names of files and tests in a document that do not exist, with their lines.
pub fn broken(document: &str, text: &str, repository: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut tell = |what: String| findings.push(format!("{document}:{}: {what}", at + 1));
        let mut file: Option<PathBuf> = None;
        for name in quoted(line) {
            if is_file(name) {
                file = find(name, repository);
                if file.is_none() {
                    tell(format!("there is no file {name}"));
                }
            } else if is_test(name) {
                match file.take() {
                    Some(file) if has(&file, name) => {}
                    Some(file) => tell(format!("there is no test {name} in {}", file.display())),
                    None if TESTS.iter().any(|folder| somewhere(&repository.join(folder), name)) => {}
                    None => tell(format!("there is no test {name}")),
                }
            }
        }
    }
    findings
}

/// What stands in backquotes. A line with an odd number of them has a last piece that is none.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    let pieces = line.matches('`').count() / 2;
    line.split('`').skip(1).step_by(2).take(pieces)
}

fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ext| ext == "rs") && !name.contains([' ', '*'])
}

fn is_test(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(plain) && name.matches('_').count() >= 3
}

fn find(name: &str, repository: &Path) -> Option<PathBuf> {
    let mut places = FOLDERS.iter().map(|folder| repository.join(folder).join(name));
    places.find(|path| path.is_file())
}

fn has(file: &Path, test: &str) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.contains(&format!("fn {test}("))
}

fn somewhere(folder: &Path, test: &str) -> bool {
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .any(|path| has(&path, test))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::repository;

    #[test]
    fn a_name_without_its_test_is_found_with_its_line() {
        let told = |text: &str| broken("a.md", text, repository());
        assert!(told("`remote.rs` `a_file_made_elsewhere_appears_even_after_it_was_missed`").is_empty());
        assert!(told("x | `tests/e2e/mount.rs`, `model.rs` `random_operations_behave_as_on_a_disk`").is_empty());
        assert!(told("as `a_file_made_elsewhere_appears_even_after_it_was_missed` says").is_empty());
        assert!(
            told("`[mount] exclude`, `O_TRUNC`, `journal_max`, `file.conflict-HOST-TIME`, an odd ` at_the_very_end")
                .is_empty()
        );
        let moved = told("\n`cache.rs` `a_file_made_elsewhere_appears_even_after_it_was_missed`");
        assert!(
            moved[0].starts_with("a.md:2: there is no test a_file_made"),
            "{moved:?}"
        );
        assert_eq!(
            told("`no_such_test_at_all`"),
            ["a.md:1: there is no test no_such_test_at_all"]
        );
        assert_eq!(told("`gone.rs`"), ["a.md:1: there is no file gone.rs"]);
    }

    #[test]
    fn every_promise_has_its_test() {
        for document in DOCUMENTS {
            let text = fs::read_to_string(repository().join(document)).unwrap_or_default();
            assert!(!text.is_empty(), "{document} is missing");
            assert_eq!(broken(document, &text, repository()), Vec::<String>::new());
        }
    }
}
