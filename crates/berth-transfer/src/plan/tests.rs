#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::time::SystemTime;

use berth_workspace::IndexEntry;

use super::*;

fn object(path: &str, size: u64) -> ObjectInfo {
    ObjectInfo {
        key: format!("shop/{path}"),
        size,
        etag: format!("etag-{path}"),
        modified: SystemTime::UNIX_EPOCH,
    }
}

fn bucket(objects: &[(&str, u64)], entries: &[(&str, IndexEntry)]) -> Bucket {
    let mut bucket = Bucket::default();
    bucket.markers.insert(String::new());
    for (path, size) in objects {
        bucket.objects.insert((*path).to_owned(), object(path, *size));
    }
    for (path, entry) in entries {
        bucket.index.index.entries.insert((*path).to_owned(), entry.clone());
    }
    bucket
}

fn found(kind: FoundKind, mode: u32) -> Found {
    Found {
        kind,
        mode,
        mtime_ns: 7,
    }
}

fn file(size: u64) -> Found {
    found(FoundKind::File { size }, 0o644)
}

fn link(target: &str) -> Found {
    found(FoundKind::Symlink { target: target.into() }, 0o777)
}

fn dir() -> Found {
    found(FoundKind::Dir, 0o755)
}

fn folder(entries: &[(&str, Found)]) -> Scan {
    let mut scan = Scan::default();
    scan.entries
        .extend(entries.iter().map(|(path, found)| ((*path).to_owned(), found.clone())));
    scan
}

fn refusals(refused: &[Difference]) -> Vec<(&str, bool)> {
    refused
        .iter()
        .map(|difference| (difference.path.as_str(), difference.can_be_forced))
        .collect()
}

#[test]
fn only_what_is_missing_is_sent_and_what_may_be_the_same_is_compared() {
    let scan = folder(&[("new", file(1)), ("same", file(2)), ("d", dir()), ("l", link("new"))]);
    let plan = import(
        &scan,
        &bucket(&[("same", 2), ("theirs", 3)], &[("l", IndexEntry::symlink("new"))]),
    );
    assert_eq!(
        plan.send,
        [Send {
            path: "new".into(),
            size: 1,
            replaces: Precondition::Absent
        }]
    );
    assert_eq!(plan.compare, [("same".to_owned(), object("same", 2))]);
    assert_eq!((plan.only_there, plan.refused.len()), (1, 0));
}

#[test]
fn other_content_is_refused_and_by_force_replaces_the_very_version_that_was_seen() {
    let scan = folder(&[("a", file(1)), ("b", file(1)), ("c", link("x")), ("d", link("x"))]);
    let there = bucket(
        &[("a", 2), ("c", 9)],
        &[("b", IndexEntry::symlink("y")), ("d", IndexEntry::symlink("y"))],
    );
    let plan = import(&scan, &there);
    assert_eq!(
        refusals(&plan.refused),
        [("a", true), ("b", true), ("c", true), ("d", true)]
    );
    assert_eq!(plan.send[0].replaces, Precondition::Matches("etag-a".into()));
    assert_eq!(plan.send[1].replaces, Precondition::Absent);
    assert_eq!(plan.remove, [("c".to_owned(), object("c", 9))]);
}

#[test]
fn a_file_in_the_place_of_a_folder_is_never_overwritten() {
    let scan = folder(&[("a", dir()), ("a/b", file(1)), ("c", file(1)), ("d", link("x"))]);
    let plan = import(&scan, &bucket(&[("a", 1), ("c/x", 1), ("d/x", 1)], &[]));
    assert_eq!(refusals(&plan.refused), [("a", false), ("c", false), ("d", false)]);
}

#[test]
fn the_index_gets_what_was_found_and_keeps_what_others_wrote() {
    let mut old = WorkspaceIndex::default();
    old.entries.insert("theirs".into(), IndexEntry::symlink("t"));
    old.entries.insert("a".into(), IndexEntry::symlink("old"));
    let scan = folder(&[
        ("a", found(FoundKind::File { size: 1 }, 0o755)),
        ("b", file(1)),
        ("e", dir()),
        ("l", link("a")),
        ("s", found(FoundKind::Special, 0o644)),
    ]);
    let index = merged(&old, &scan.entries);
    let with_time = |entry: IndexEntry| IndexEntry {
        mtime_ns: Some(7),
        ..entry
    };
    assert_eq!(index.entries["theirs"], IndexEntry::symlink("t"));
    assert_eq!(
        index.entries["a"],
        with_time(IndexEntry {
            mode: Some(0o755),
            ..IndexEntry::file()
        })
    );
    assert_eq!(index.entries["b"], with_time(IndexEntry::file()));
    assert_eq!(index.entries["e"], with_time(IndexEntry::dir()));
    assert_eq!(index.entries["l"], with_time(IndexEntry::symlink("a")));
    assert!(!index.entries.contains_key("s"));
    assert_eq!(merged(&index, &scan.entries), index);
}

fn all(_: &str, _: EntryKind, _: u64) -> bool {
    true
}

#[test]
fn an_export_wants_files_links_and_folders_with_their_bits() {
    let entries = [
        (
            "a/run",
            IndexEntry {
                mode: Some(0o4755),
                mtime_ns: Some(5),
                ..IndexEntry::file()
            },
        ),
        (
            "a",
            IndexEntry {
                mode: Some(0o700),
                ..IndexEntry::dir()
            },
        ),
        ("empty", IndexEntry::dir()),
        ("l", IndexEntry::symlink("a/run")),
        ("gone", IndexEntry::file()),
        ("../up", IndexEntry::symlink("x")),
    ];
    let plan = export(
        &bucket(&[("a/run", 3), ("deep/er/f", 1)], &entries),
        &Scan::default(),
        &mut all,
    );
    let wanted: Vec<_> = plan
        .wanted
        .iter()
        .map(|(path, wanted)| (path.as_str(), wanted.mode))
        .collect();
    let expected = [
        ("a", 0o700),
        ("a/run", 0o755),
        ("deep", 0o755),
        ("deep/er", 0o755),
        ("deep/er/f", 0o644),
        ("empty", 0o755),
        ("l", 0o777),
    ];
    assert_eq!(wanted, expected);
    assert_eq!(plan.set_id_bits, 1);
    assert_eq!(plan.fetch, ["a/run", "deep/er/f"]);
    assert_eq!(plan.odd.len(), 1);
}

#[test]
fn what_the_bucket_calls_both_a_file_and_a_folder_is_told() {
    let entries = [("l", IndexEntry::symlink("/etc"))];
    let plan = export(
        &bucket(&[("a", 1), ("a/b", 1), ("l/passwd", 1)], &entries),
        &Scan::default(),
        &mut all,
    );
    let odd: Vec<_> = plan.odd.iter().map(|failed| failed.path.as_str()).collect();
    assert_eq!(odd, ["a", "l"]);
    assert_eq!(
        plan.wanted["l"].kind,
        WantedKind::Dir,
        "nothing is written through a link"
    );
    assert_eq!(plan.fetch, ["a/b", "l/passwd"]);
}

#[test]
fn an_export_overwrites_other_content_only_by_force_and_folders_never() {
    let here = folder(&[
        ("differs", file(9)),
        ("equal-size", file(1)),
        ("kind", link("x")),
        ("dir", file(1)),
        ("f", dir()),
        ("pipe", found(FoundKind::Special, 0o644)),
        ("mine", file(1)),
    ]);
    let there = bucket(
        &[
            ("differs", 1),
            ("equal-size", 1),
            ("kind", 1),
            ("dir/x", 1),
            ("f", 1),
            ("pipe", 1),
        ],
        &[],
    );
    let plan = export(&there, &here, &mut all);
    let expected = [
        ("differs", true),
        ("dir", false),
        ("f", false),
        ("kind", true),
        ("pipe", false),
    ];
    assert_eq!(refusals(&plan.refused), expected);
    assert_eq!(plan.compare, ["equal-size"]);
    assert_eq!(plan.only_there, ["mine"]);
}

#[test]
fn what_is_not_kept_is_not_wanted() {
    let mut keep = |path: &str, _: EntryKind, _: u64| !path.starts_with("big");
    let plan = export(
        &bucket(&[("big/a", 1), ("b", 1)], &[("big", IndexEntry::dir())]),
        &Scan::default(),
        &mut keep,
    );
    assert_eq!(plan.wanted.keys().collect::<Vec<_>>(), ["b"]);
}
