//! `berth import` and `berth export` through the real binary, against an embedded S3 server behind a proxy that can fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod troubles;
mod world;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::{Command, Stdio},
    time::Duration,
};

use berth_harness::{
    Daemon,
    fault_proxy::{Fault, Rule},
    wait,
};
use world::{BERTH, World, assert_same_trees};

#[test]
fn a_thousand_files_go_in_without_the_excluded_ones_and_come_back_the_same() {
    let world = World::new();
    world.tree();
    let done = world.done(&["import", "shop"]);
    assert!(done.stdout.contains("Checksums agree: 1011 files."), "{}", done.stdout);
    assert!(
        done.stdout.contains("left out: node_modules/**: 2 files"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("left out: .env*: 1 file"), "{}", done.stdout);
    assert!(done.stdout.contains("hard links: 2 files"), "{}", done.stdout);
    assert_eq!(done.stderr, "", "no progress bar where there is no terminal");
    let objects = world.objects();
    assert_eq!(objects.len(), 1011);
    assert_eq!(objects["shop/odd/a+b %41&=?#.txt"], 15);
    assert!(objects.contains_key("shop/odd/new\nline") && !objects.keys().any(|key| key.contains("node_modules")));
    assert_eq!(world.body("shop/src/7/7.js"), b"file 7");
    assert_eq!(world.puts(), 1012);
    world.proxy.forget();
    let again = world.done(&["import", "shop"]);
    assert!(
        again.stdout.contains("0 files moved") && again.stdout.contains("1011 there already"),
        "{}",
        again.stdout
    );
    assert_eq!(world.puts(), 0, "what is there with the same content is not sent again");
    world.done(&["export", "shop", "out"]);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
    world.proxy.forget();
    let again = world.done(&["export", "--all", "out"]);
    assert!(again.stdout.contains("0 files moved"), "{}", again.stdout);
    assert_eq!(world.proxy.count("GET", "/workspaces/shop/"), 0);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_changes_nothing() {
    let world = World::new();
    world.write("a", "one");
    world.write("b.log", "excluded");
    let (code, json) = world.json(&["import", "--dry-run", "--json", "shop"]);
    assert_eq!(
        (code, &json["dry_run"], &json["workspaces"][0]["moved"]["files"]),
        (0, &true.into(), &1.into())
    );
    assert_eq!(json["workspaces"][0]["left_out"]["excluded"]["*.log"]["bytes"], 8);
    assert_eq!(world.objects().len(), 0);
    let changes = ["PUT", "POST", "DELETE"].map(|method| world.proxy.count(method, ""));
    assert_eq!(changes, [0, 0, 0], "not even a probe of the server");
    world.done(&["import", "shop"]);
    let told = world.done(&["export", "--dry-run", "shop", "out"]).stdout;
    assert!(
        told.contains("1 file to move") && told.contains("nothing was written"),
        "{told}"
    );
    assert!(!world.path("out").exists());
}

#[test]
fn more_can_be_excluded_and_one_folder_renamed() {
    let world = World::new();
    world.write("keep.js", "x");
    world.write("docs/out/page.html", "x");
    world.write("big.bin", "x");
    world.done(&[
        "import",
        "--name",
        "other",
        "--exclude",
        "docs/out/**",
        "--exclude",
        "*.bin",
        "shop",
    ]);
    assert_eq!(world.objects().into_keys().collect::<Vec<_>>(), ["other/keep.js"]);
    world.write("workspace.json", r#"{"exclude": ["docs/**"]}"#);
    world.done(&["import", "shop"]);
    let own: Vec<_> = world
        .objects()
        .into_keys()
        .filter(|key| key.starts_with("shop/"))
        .collect();
    assert_eq!(own, ["shop/big.bin", "shop/keep.js", "shop/workspace.json"]);
    world.write("workspace.json", r#"{"exclude": ["/x"]}"#);
    let wrong = world.berth(&["import", "shop"]);
    assert_eq!(
        (wrong.code, wrong.stderr.contains("line 1, column 14")),
        (1, true),
        "{}",
        wrong.stderr
    );
    let wrong = world.berth(&["import", "--exclude", "!x", "shop"]);
    assert_eq!(
        (wrong.code, wrong.stderr.contains("negated")),
        (2, true),
        "{}",
        wrong.stderr
    );
}

#[test]
fn a_terminal_sees_how_far_it_is() {
    let world = World::new();
    for number in 0..200 {
        world.write(&format!("{number}"), "x");
    }
    world.proxy.set([Rule {
        method: Some("PUT"),
        ..Rule::always(Fault::Slow(Duration::from_millis(30)))
    }]);
    let import = world.command(&["import", "--jobs", "8", "shop"]);
    let line: Vec<_> = import
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    // `script` of bsdutils gives the command line a terminal of its own.
    let done = Command::new("script")
        .args([
            "-qec",
            &format!("stty cols 100; {BERTH} {}", line.join(" ")),
            "/dev/null",
        ])
        .current_dir(world.dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("script is missing: apt-get install bsdutils");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("/200 files") && said.contains("Checksums agree"),
        "{said}"
    );
}

#[test]
fn a_running_daemon_shows_what_was_imported_and_keeps_what_was_saved() {
    let mut daemon = Daemon::start(BERTH);
    let source = daemon.disk().join("site");
    fs::create_dir_all(source.join("empty")).unwrap();
    fs::write(source.join("index.html"), "imported").unwrap();
    fs::write(source.join("run.sh"), "#!/bin/sh").unwrap();
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("index.html", source.join("link")).unwrap();
    let folder = source.to_str().unwrap();
    let done = daemon.berth(&["import", folder]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let seen = daemon.workspaces().join("site");
    wait("the mount to show the import whole", Duration::from_secs(10), || {
        fs::read_to_string(seen.join("link")).is_ok_and(|text| text == "imported")
            && fs::metadata(seen.join("run.sh")).is_ok_and(|meta| meta.permissions().mode() & 0o777 == 0o755)
            && seen.join("empty").is_dir()
    });
    assert_eq!(daemon.get("/site/").text, "imported");
    daemon.save("site/index.html", "saved on the mount");
    let refused = daemon.berth(&["import", folder]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stdout.contains("not overwritten: index.html"),
        "{}",
        refused.stdout
    );
    assert_eq!(
        fs::read_to_string(seen.join("index.html")).unwrap(),
        "saved on the mount"
    );
    let itself = daemon.berth(&["import", seen.to_str().unwrap()]);
    assert_eq!(
        (itself.code, itself.stderr.contains("in the bucket already")),
        (2, true),
        "{}",
        itself.stderr
    );
    let out = daemon.disk().join("out");
    let done = daemon.berth(&["export", "--all", out.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert_eq!(
        fs::read_to_string(out.join("site/index.html")).unwrap(),
        "saved on the mount"
    );
    daemon.stop();
    assert_eq!(daemon.berth(&["import", folder]).code, 4);
}
