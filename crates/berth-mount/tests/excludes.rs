//! `exclude` of a workspace's `workspace.json` on a real mount: what stays on this host, and what S3 gets.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;
mod world;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::symlink,
};

use berth_harness::fault_proxy::{Fault, Reach, Rule as NetworkRule};
use berth_mount::{Rule, Why};
use fixture::{Fixture, wait_for};
use world::World;

fn list(patterns: &[&str]) -> String {
    format!("{{\"exclude\": {patterns:?}}}")
}

/// A workspace `app` whose list is this.
fn excluding(patterns: &[&str]) -> Fixture {
    let text = list(patterns);
    Fixture::with(|_| {}, move |put| put("app/workspace.json", text.as_bytes()))
}

fn set(f: &Fixture, patterns: &[&str]) {
    fs::write(f.path("app/workspace.json"), list(patterns)).unwrap();
}

fn local_files(f: &Fixture) -> u64 {
    f.mount().local_paths("app").files
}

/// Whether a new file of this name would be local-only. Leaves nothing behind.
fn stays_local(f: &Fixture, path: &str) -> bool {
    let workspace = path.split('/').next().unwrap();
    // Not `local_usage`: a removed file counts there until the kernel has forgotten it.
    let before = f.mount().local_paths(workspace).files;
    fs::write(f.path(path), "").unwrap();
    let local = f.mount().local_paths(workspace).files > before;
    fs::remove_file(f.path(path)).unwrap();
    local
}

#[test]
fn a_saved_list_holds_for_the_next_file() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    fs::write(f.path("app/before.bin"), "before").unwrap();
    set(&f, &["*.bin", "out/**"]);
    fs::write(f.path("app/a.bin"), "local").unwrap();
    fs::create_dir_all(f.path("app/out/deep")).unwrap();
    fs::write(f.path("app/out/deep/x"), "local").unwrap();
    symlink("x", f.path("app/out/link")).unwrap();
    fs::create_dir(f.path("other")).unwrap();
    fs::write(f.path("other/a.bin"), "stored").unwrap();
    assert_eq!(
        f.keys(),
        ["app/a", "app/before.bin", "app/workspace.json", "other/", "other/a.bin"]
    );
    assert_eq!(f.text(".berth/index/app.json"), None, "not even in the index");
    assert_eq!(fs::read_to_string(f.path("app/out/deep/x")).unwrap(), "local");
    assert_eq!(local_files(&f), 3);
}

#[test]
fn a_list_renamed_into_place_holds_for_the_next_file() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    fs::write(f.path("app/workspace.json.new"), list(&["*.bin"])).unwrap();
    fs::rename(f.path("app/workspace.json.new"), f.path("app/workspace.json")).unwrap();
    assert!(stays_local(&f, "app/a.bin"));
    // As vim does it: the old file becomes a backup, and in between the list holds.
    fs::rename(f.path("app/workspace.json"), f.path("app/workspace.json~")).unwrap();
    assert!(stays_local(&f, "app/a.bin"));
    set(&f, &["*.dat"]);
    fs::remove_file(f.path("app/workspace.json~")).unwrap();
    assert!(stays_local(&f, "app/a.dat") && !stays_local(&f, "app/a.bin"));
    fs::remove_file(f.path("app/workspace.json")).unwrap();
    assert!(!stays_local(&f, "app/a.dat"), "removed with its file");
}

#[test]
fn a_broken_file_keeps_the_last_good_list() {
    let f = excluding(&["*.bin"]);
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(f.path("app/workspace.json"))
        .unwrap();
    assert!(stays_local(&f, "app/a.bin"), "while it is being written");
    file.write_all(b"{\"exclude\": [").unwrap();
    drop(file);
    assert!(stays_local(&f, "app/a.bin"), "and when that was no list");
    fs::write(f.path("app/workspace.json"), "{\"port\": \"many\"}").unwrap();
    assert!(stays_local(&f, "app/a.bin"));
    fs::write(f.path("app/workspace.json"), list(&vec!["x.bin"; 65])).unwrap();
    assert!(stays_local(&f, "app/a.bin"), "nor too many patterns");
    fs::write(f.path("app/workspace.json"), vec![b' '; 100_000]).unwrap();
    assert!(stays_local(&f, "app/a.bin"), "nor what is too long");
    fs::write(f.path("app/workspace.json"), "{}").unwrap();
    assert!(!stays_local(&f, "app/a.bin"));
}

#[test]
fn a_list_changed_elsewhere_is_followed() {
    let f = excluding(&["*.bin"]);
    f.put("app/workspace.json", list(&["*.dat"]));
    wait_for("the new list holds", || {
        stays_local(&f, "app/a.dat") && !stays_local(&f, "app/a.bin")
    });
    f.put("app/workspace.json", "broken");
    f.put("app/last", "x");
    wait_for("the feed is read to its end", || f.path("app/last").exists());
    assert!(stays_local(&f, "app/a.dat"));
    f.delete("app/workspace.json");
    wait_for("its removal ends it", || !stays_local(&f, "app/a.dat"));
    f.put("fresh/workspace.json", list(&["*.dat"]));
    wait_for("a new workspace has its own", || {
        f.path("fresh").is_dir() && stays_local(&f, "fresh/a.dat")
    });
}

#[test]
fn two_hosts_hold_to_the_same_list() {
    let world = World::new();
    world.put("app/a", "a");
    let (a, b) = (world.host("a", 1, |_| {}), world.host("b", 2, |_| {}));
    fs::write(a.path("app/workspace.json"), list(&["*.bin"])).unwrap();
    world::wait_for("the other host's files stay there", || {
        fs::write(b.path("app/b.bin"), "b").unwrap();
        let local = b.mount().local_paths("app").files == 1;
        if !local {
            fs::remove_file(b.path("app/b.bin")).unwrap();
        }
        local
    });
    fs::write(a.path("app/a.bin"), "a").unwrap();
    for host in [&a, &b] {
        world.settle(host);
    }
    world::wait_for("S3 has neither", || {
        world.objects().into_keys().collect::<Vec<_>>() == ["app/a", "app/workspace.json"]
    });
    assert!(!a.path("app/b.bin").exists() && !b.path("app/a.bin").exists());
}

#[test]
fn a_restart_knows_the_lists_before_the_first_file() {
    let mut f = excluding(&["*.bin"]);
    for _ in 0..2 {
        fs::write(f.path("app/a.bin"), "local").unwrap();
        assert_eq!(local_files(&f), 1);
        f.remount();
        assert!(!f.path("app/a.bin").exists(), "it was in memory alone");
    }
    // Saved, and the daemon ends before S3 has it: the journal knows.
    let world = World::new();
    world.put("app/a", "a");
    let mut host = world.host("a", 1, |_| {});
    host.proxy.reach(Reach::Refused);
    fs::write(host.path("app/workspace.json"), list(&["*.bin"])).unwrap();
    world.kill(&mut host);
    host.proxy.reach(Reach::Up);
    world.start(&mut host);
    fs::write(host.path("app/a.bin"), "local").unwrap();
    assert_eq!(host.mount().local_paths("app").files, 1);
}

#[test]
fn a_list_that_s3_does_not_give_yet_is_asked_for_until_it_does() {
    let world = World::new();
    world.put("app/workspace.json", &list(&["*.bin"]));
    let mut host = world.host("a", 1, |config| config.cache_mode = berth_mount::CacheMode::Off);
    world.kill(&mut host);
    host.proxy.set([NetworkRule {
        method: Some("GET"),
        path: Some("app/workspace.json".into()),
        ..NetworkRule::always(Fault::Status(503))
    }]);
    world.start(&mut host);
    // The host's list alone holds: a save is never refused for that.
    fs::write(host.path("app/early.bin"), "stored").unwrap();
    fs::write(host.path("app/x.log"), "local").unwrap();
    assert_eq!(host.mount().local_paths("app").files, 1);
    host.proxy.heal();
    world::wait_for("the list is read", || {
        fs::write(host.path("app/late.bin"), "late").unwrap();
        let local = host.mount().local_paths("app").files == 2;
        if !local {
            fs::remove_file(host.path("app/late.bin")).unwrap();
        }
        local
    });
    world.settle(&host);
    assert_eq!(world.text("app/early.bin").as_deref(), Some("stored"), "it stays");
}

#[test]
fn what_is_stored_stays_stored_until_it_is_removed() {
    let mut f = Fixture::with(
        |_| {},
        |put| {
            put("app/a.bin", b"1");
            put("app/out/x", b"x");
        },
    );
    set(&f, &["*.bin", "out/**"]);
    assert_eq!(f.mount().local_paths("app").stored_before, 2);
    fs::write(f.path("app/a.bin"), "2").unwrap();
    assert_eq!(f.text("app/a.bin").as_deref(), Some("2"), "a save goes to S3");
    f.sh("sed -i s/2/3/ app/a.bin");
    assert_eq!(
        f.text("app/a.bin").as_deref(),
        Some("3"),
        "by temporary file and rename too"
    );
    f.sh("mv app/a.bin app/a.bin~; printf 4 > app/a.bin; rm app/a.bin~");
    assert_eq!(f.text("app/a.bin").as_deref(), Some("4"), "and by a backup");
    f.sh("mv app/a.bin app/b.bin");
    assert_eq!(f.text("app/b.bin").as_deref(), Some("4"), "under another excluded name");
    fs::write(f.path("app/out/new"), "local").unwrap();
    f.put("app/out/theirs", "theirs");
    wait_for("what others store shows", || f.path("app/out/theirs").exists());
    f.remount();
    assert_eq!(f.sh("cat app/b.bin app/out/x app/out/theirs"), "4xtheirs");
    assert!(!f.path("app/out/new").exists(), "new beside it was local");
    f.sh("mv app other");
    assert_eq!(
        f.text("other/b.bin").as_deref(),
        Some("4"),
        "a workspace's rename removes nothing"
    );
    assert!(stays_local(&f, "other/new.bin"), "and keeps the list");
    f.sh("rm other/b.bin; printf 5 > other/b.bin");
    assert_eq!(f.text("other/b.bin"), None, "removed and made anew, it is local");
    assert_eq!(fs::read_to_string(f.path("other/b.bin")).unwrap(), "5");
}

#[test]
fn what_lost_its_rule_is_stored_with_its_next_save() {
    let f = excluding(&["*.bin", "out/**"]);
    f.sh("printf 1 > app/a.bin; printf 1 > app/b.bin; mkdir -p app/out/deep; printf 1 > app/out/deep/x; chmod 700 app/out");
    set(&f, &[]);
    assert_eq!(f.keys(), ["app/workspace.json"], "not by itself");
    let local = f.mount().local_paths("app");
    assert_eq!((local.files, local.paths), (3, 3));
    assert!(
        local.largest.iter().all(|path| path.rule == Rule::NoLonger),
        "{local:?}"
    );
    fs::write(f.path("app/a.bin"), "22").unwrap();
    assert_eq!(f.text("app/a.bin").as_deref(), Some("22"));
    fs::write(f.path("app/out/deep/x"), "33").unwrap();
    assert_eq!(f.text("app/out/deep/x").as_deref(), Some("33"), "its folders with it");
    f.settle();
    assert!(
        f.text(".berth/index/app.json").unwrap().contains("\"out\""),
        "and their modes"
    );
    fs::rename(f.path("app/b.bin"), f.path("app/c.bin")).unwrap();
    assert_eq!(f.text("app/c.bin").as_deref(), Some("1"), "or with a rename");
    fs::write(f.path("app/out/new"), "new").unwrap();
    assert_eq!(f.text("app/out/new").as_deref(), Some("new"));
    assert_eq!(local_files(&f), 0);
    wait_for("the memory is given back", || f.mount().local_usage().files == 0);
}

#[test]
fn a_new_file_in_a_local_folder_whose_rule_is_gone_is_stored() {
    let mut f = excluding(&["out/**"]);
    f.sh("mkdir -p app/out/deep; printf 1 > app/out/old");
    set(&f, &[]);
    fs::write(f.path("app/out/deep/new"), "new").unwrap();
    fs::create_dir(f.path("app/out/empty")).unwrap();
    symlink("new", f.path("app/out/deep/link")).unwrap();
    assert_eq!(f.keys(), ["app/out/deep/new", "app/workspace.json"]);
    f.remount();
    assert_eq!(
        f.sh("cd app/out; find . | sort | xargs"),
        ". ./deep ./deep/link ./deep/new ./empty\n"
    );
}

#[test]
fn renames_cross_the_border_of_a_workspaces_list_both_ways() {
    let mut f = excluding(&["*.bin", "out/**"]);
    f.sh("printf a > app/a; mkdir app/src; printf s > app/src/s; ln -s s app/src/link; chmod 600 app/a");
    f.settle();
    f.sh("mv app/a app/a.bin; mv app/src app/out");
    assert_eq!(f.keys(), ["app/workspace.json"]);
    assert_eq!(f.sh("cat app/a.bin app/out/link"), "as");
    assert_eq!(local_files(&f), 3);
    f.sh("mv app/a.bin app/b; mv app/out app/lib; mv app/lib/s app/out.bin");
    assert_eq!(f.keys(), ["app/b", "app/workspace.json"]);
    f.sh("mkdir app/out; mv app/lib app/out/lib; mv app/out.bin app/out/lib/s");
    f.sh("mkdir two; mv app/out two/out");
    assert_eq!(
        f.text("two/out/lib/s").as_deref(),
        Some("s"),
        "another workspace has another list"
    );
    f.remount();
    assert_eq!(f.sh("cat app/b two/out/lib/link; stat -c %a app/b"), "as600\n");
    assert_eq!(f.mount().local_usage().files, 0);
}

#[test]
fn an_object_behind_a_local_file_is_told_and_shows_when_that_is_gone() {
    let f = excluding(&["*.bin", "out/**"]);
    f.sh("printf ours > app/a.bin; mkdir app/out; printf ours > app/out/x; ln -s ours app/out/link");
    f.put("app/a.bin", "theirs");
    f.put("app/out/x", "theirs");
    f.put("app/out/y", "theirs");
    wait_for("what has no local file of its name shows", || {
        f.path("app/out/y").exists()
    });
    wait_for("the others are told", || f.mount().unshown().count == 2);
    assert!(
        f.mount()
            .unshown()
            .objects
            .iter()
            .all(|object| object.why == Why::LocalFile)
    );
    assert_eq!(f.sh("cat app/a.bin app/out/x"), "oursours", "nothing local is lost");
    assert_eq!(f.text("app/a.bin").as_deref(), Some("theirs"), "and nothing in S3");
    f.sh("rm app/a.bin; mv app/out/x app/out/mine");
    wait_for("theirs shows", || {
        let text = |path: &str| fs::read_to_string(f.path(path)).unwrap_or_default();
        text("app/a.bin") == "theirs" && text("app/out/x") == "theirs"
    });
    assert_eq!(f.sh("cat app/out/mine; readlink app/out/link"), "oursours\n");
    wait_for("and is told no longer", || f.mount().unshown().count == 0);
}

#[test]
fn links_and_folders_of_others_outlive_local_ones_of_their_name() {
    let world = World::new();
    world.put("app/workspace.json", "{}");
    let (a, b) = (world.host("a", 1, |_| {}), world.host("b", 2, |_| {}));
    fs::write(a.path("app/workspace.json"), list(&["out/**", "link"])).unwrap();
    fs::create_dir(a.path("app/out")).unwrap();
    symlink("ours", a.path("app/link")).unwrap();
    let index = r#"{"version":1,"entries":{"link":{"kind":"symlink","target":"theirs"},"out":{"kind":"dir"}}}"#;
    world.settle(&a);
    world.put(".berth/index/app.json", index);
    world::wait_for("the other host shows them", || {
        b.path("app/link").is_symlink() && b.path("app/out").is_dir()
    });
    assert_eq!(fs::read_link(a.path("app/link")).unwrap().to_str(), Some("ours"));
    fs::create_dir(a.path("app/kept")).unwrap();
    world::wait_for("the index is written anew, with theirs", || {
        let text = world.text(".berth/index/app.json").unwrap_or_default();
        text.contains("kept") && text.contains("theirs") && text.contains("\"out\"")
    });
    fs::remove_file(a.path("app/link")).unwrap();
    assert_eq!(
        fs::read_link(a.path("app/link")).unwrap().to_str(),
        Some("theirs"),
        "shown when ours is gone"
    );
}

#[test]
fn a_list_never_excludes_itself() {
    let mut f = excluding(&["*.json", "app/**"]);
    set(&f, &["*.json", "app/**", "*.bin"]);
    assert_eq!(
        f.text("app/workspace.json").unwrap(),
        list(&["*.json", "app/**", "*.bin"])
    );
    f.remount();
    assert!(stays_local(&f, "app/a.bin") && stays_local(&f, "app/a.json") && !stays_local(&f, "app/a"));
}

#[test]
fn local_paths_are_told_by_size_and_rule() {
    let f = excluding(&["*.bin", "out/**"]);
    f.sh("cd app; mkdir -p node_modules/x out; head -c 3000 /dev/zero > node_modules/x/i.js; head -c 5000 /dev/zero > out/o; ln -s o out/l; printf 1 > a.bin; mkdir sub; printf 22 > sub/b.bin; mkfifo pipe; printf x > stored");
    let local = f.mount().local_paths("app");
    let named: Vec<_> = local
        .largest
        .iter()
        .map(|path| (path.path.as_str(), path.files, path.bytes))
        .collect();
    assert_eq!(
        named,
        [
            ("out/", 2, 5000),
            ("node_modules/", 1, 3000),
            ("sub/b.bin", 1, 2),
            ("a.bin", 1, 1),
            ("pipe", 1, 0)
        ]
    );
    assert_eq!((local.files, local.bytes, local.paths), (6, 8003, 5));
    let shares: Vec<_> = local
        .rules
        .iter()
        .map(|share| (share.rule.clone(), share.files, share.bytes))
        .collect();
    assert_eq!(
        shares,
        [
            (Rule::Workspace("out/**".into()), 2, 5000),
            (Rule::Host("node_modules/**".into()), 1, 3000),
            (Rule::Workspace("*.bin".into()), 2, 3),
            (Rule::Special, 1, 0),
        ]
    );
    assert_eq!(f.mount().local_paths("nobody"), berth_mount::LocalPaths::default());
    let json = serde_json::to_value(&local).unwrap();
    assert_eq!(json["largest"][0]["from"], "workspace");
    assert_eq!(json["rules"][1]["pattern"], "node_modules/**");
    assert_eq!(serde_json::from_value::<berth_mount::LocalPaths>(json).unwrap(), local);
}
