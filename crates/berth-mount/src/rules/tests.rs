#![allow(clippy::unwrap_used, clippy::expect_used)]
use std::time::{Duration, Instant};

use super::*;

fn rules() -> Rules {
    Rules::new(Excludes::default(), Arc::default())
}

fn list(patterns: &[&str]) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({ "exclude": patterns })).unwrap()
}

#[test]
fn a_workspaces_own_list_holds_below_it_alone_and_beside_the_hosts() {
    let rules = rules();
    rules.read("app", 1, Some(&list(&["*.bin", "docs/out/**"])));
    for (key, shape, local) in [
        ("app/a.bin", Shape::File, true),
        ("app/deep/a.bin", Shape::File, true),
        ("app/a.bin", Shape::Dir, false),
        ("app/docs/out", Shape::Dir, true),
        ("app/docs/out", Shape::Symlink, true),
        ("app/docs/out", Shape::File, false),
        ("app/docs/out/x", Shape::File, true),
        ("app/x.log", Shape::File, true),
        ("app/.x.swp", Shape::File, true),
        ("app/a.js", Shape::File, false),
        ("other/a.bin", Shape::File, false),
        ("a.bin", Shape::File, false),
        ("other/x.log", Shape::File, true),
        ("app/pipe", Shape::Special, true),
    ] {
        assert_eq!(rules.local(key, shape), local, "{key} {shape:?}");
    }
    assert!(!rules.by_host("app/a.bin", Shape::File));
    assert!(!rules.by_workspace("app/x.log", Shape::File));
}

#[test]
fn a_list_can_exclude_neither_its_own_file_nor_by_the_workspaces_name() {
    let rules = rules();
    rules.read("app", 1, Some(&list(&["*.json", "app/**"])));
    assert!(!rules.local("app/workspace.json", Shape::File));
    assert!(rules.local("app/other.json", Shape::File) && rules.local("app/sub/workspace.json", Shape::File));
    assert!(!rules.local("app", Shape::Dir) && !rules.local("app/x", Shape::File));
    assert!(rules.local("app/app/x", Shape::File));
}

#[test]
fn what_cannot_be_read_leaves_the_rules_as_they_were() {
    let rules = rules();
    rules.read("app", 1, Some(&list(&["*.bin"])));
    for (mark, broken) in [
        (2, Some(&b"{\"exclude\": ["[..])),
        (3, Some(&b""[..])),
        (4, Some(&b"{\"port\": -1}"[..])),
        (5, Some(&list(&["!x"])[..])),
        (6, Some(&list(&vec!["x"; 65])[..])),
        (7, None),
        (8, Some(&vec![b' '; MAX_FILE as usize + 1][..])),
    ] {
        rules.read("app", mark, broken);
        assert!(rules.local("app/a.bin", Shape::File), "{mark}");
        assert!(rules.own.read()["app"].told.is_some(), "{mark}");
    }
    assert!(!rules.narrowed());
    rules.read("app", 9, Some(b"{}"));
    assert!(!rules.local("app/a.bin", Shape::File));
    assert!(rules.narrowed() && rules.own.read()["app"].told.is_none());
}

#[test]
fn an_older_look_that_comes_later_counts_for_nothing() {
    let rules = rules();
    rules.read("app", 5, Some(&list(&["*.new"])));
    rules.read("app", 4, Some(&list(&["*.old"])));
    rules.removed("app", 3);
    assert!(rules.local("app/a.new", Shape::File) && !rules.local("app/a.old", Shape::File));
    rules.removed("app", 6);
    rules.read("app", 5, Some(&list(&["*.new"])));
    assert!(!rules.local("app/a.new", Shape::File));
}

#[test]
fn a_renamed_workspace_takes_its_rules_along() {
    let rules = rules();
    rules.read("app", 1, Some(&list(&["*.bin"])));
    rules.renamed("app", "new");
    assert!(rules.local("new/a.bin", Shape::File) && !rules.local("app/a.bin", Shape::File));
}

#[test]
fn each_local_path_has_a_rule_that_can_be_told() {
    let rules = rules();
    rules.read("app", 1, Some(&list(&["*.bin", "out/**"])));
    for (key, shape, rule) in [
        ("app/node_modules", Shape::Dir, Rule::Host("node_modules/**".into())),
        ("app/out", Shape::Symlink, Rule::Workspace("out/**".into())),
        ("app/out/x", Shape::File, Rule::Workspace("out/**".into())),
        ("app/a.bin", Shape::File, Rule::Workspace("*.bin".into())),
        ("app/.a.swp", Shape::File, Rule::Temporary),
        ("app/pipe", Shape::Special, Rule::Special),
        ("app/plain", Shape::File, Rule::NoLonger),
    ] {
        assert_eq!(rules.rule(key, shape), rule, "{key}");
    }
}

#[test]
fn only_a_workspaces_own_file_is_one() {
    for (key, workspace) in [
        ("app/workspace.json", Some("app")),
        ("workspace.json", None),
        ("/workspace.json", None),
        ("app/sub/workspace.json", None),
        ("app/xworkspace.json", None),
    ] {
        assert_eq!(workspace_of_file(key), workspace, "{key}");
    }
}

#[test]
fn what_is_noted_again_while_it_is_looked_at_stays_noted() {
    let stale = Stale::default();
    stale.note("app");
    let looked = stale.all();
    stale.note("app");
    stale.done(&looked);
    assert!(stale.is_any());
    stale.done(&stale.all());
    assert!(!stale.is_any());
}

/// 64 patterns that match nothing and are as slow as can be written, against the longest keys: bounded by the bounds of the
/// list, so a person who writes such a list waits a little, and the mount goes on.
#[test]
fn the_worst_list_is_asked_in_bounded_time() {
    let rules = rules();
    let worst = format!("{}{{a,b}}z", "*a".repeat(120));
    let folders = format!("{worst}/**");
    let patterns: Vec<&str> = (0..32).flat_map(|_| [worst.as_str(), &folders]).collect();
    rules.read("app", 1, Some(&list(&patterns)));
    assert!(rules.own.read()["app"].list.is_some(), "the list is a valid one");
    let deep = format!("app/{}", ["a"; 500].join("/"));
    let long = format!("app/{}", ["a".repeat(250), "a".repeat(250), "a".repeat(250)].join("/"));
    let since = Instant::now();
    for _ in 0..20 {
        assert!(!rules.local(&deep, Shape::File) && !rules.local(&long, Shape::File));
    }
    let each = since.elapsed() / 40;
    eprintln!("{each:?} for a key");
    assert!(each < Duration::from_millis(100), "{each:?} for a key");
}
