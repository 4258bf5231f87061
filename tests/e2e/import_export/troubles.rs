//! What goes wrong: runs that are killed, files that differ, requests that fail, keys and servers that are not right.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use berth_harness::{
    fault_proxy::{Fault, Reach, Rule},
    wait,
};
use nix::sys::signal::Signal;

use crate::world::{BERTH, World, assert_same_trees, ended, interrupted, listing_count};

#[test]
fn an_interrupted_import_leaves_whole_objects_and_the_next_run_sends_the_rest() {
    let world = World::new();
    world.tree();
    world.proxy.set([Rule {
        method: Some("PUT"),
        ..Rule::always(Fault::Slow(Duration::from_millis(20)))
    }]);
    for (signal, code) in [(Signal::SIGKILL, 137), (Signal::SIGINT, 130)] {
        let before = world.objects().len();
        let done = interrupted(&world, &["import", "--jobs", "4", "shop"], signal, || {
            world.objects().len() > before + 50
        });
        assert_eq!(done.code, code, "{}{}", done.stdout, done.stderr);
        if signal == Signal::SIGINT {
            assert!(done.stderr.contains("Run the same command again"), "{}", done.stderr);
            assert!(done.stdout.contains("so far"), "{}", done.stdout);
        }
        for (key, size) in world.objects() {
            assert_eq!(fs::metadata(world.dir.path().join(&key)).unwrap().len(), size, "{key}");
        }
    }
    let before = world.objects().len();
    assert!((100..1011).contains(&before), "{before}");
    world.proxy.heal();
    world.proxy.forget();
    world.done(&["import", "shop"]);
    assert_eq!(world.puts(), 1011 - before + 1);
    world.done(&["export", "shop", "out"]);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
}

#[test]
fn an_interrupted_export_leaves_whole_files_and_the_next_run_fetches_the_rest() {
    let world = World::new();
    world.tree();
    world.done(&["import", "shop"]);
    world.proxy.set([Rule {
        method: Some("GET"),
        path: Some("/workspaces/shop/".into()),
        ..Rule::always(Fault::Slow(Duration::from_millis(20)))
    }]);
    let files = || listing_count(&world.path("out/shop"));
    for (signal, code) in [(Signal::SIGKILL, 137), (Signal::SIGINT, 130)] {
        let before = files();
        let arguments = ["export", "--jobs", "4", "shop", "out"];
        let done = interrupted(&world, &arguments, signal, || files() > before + 50);
        assert_eq!(done.code, code, "{}{}", done.stdout, done.stderr);
        assert_eq!(
            world.path("out/shop/.berth-export.partial").exists(),
            signal == Signal::SIGKILL
        );
    }
    let before = files();
    world.proxy.heal();
    world.proxy.forget();
    world.done(&["export", "shop", "out"]);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
    assert_eq!(world.proxy.count("GET", "/workspaces/shop/"), 1011 - before);
}

#[test]
fn other_content_is_named_and_overwritten_only_by_force() {
    let world = World::new();
    world.write("same", "same");
    world.write("mine", "mine");
    world.write("new", "new");
    world.put("shop/same", "same");
    world.put("shop/mine", "other");
    let refused = world.berth(&["import", "shop"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stdout.contains("not overwritten: mine") && !refused.stdout.contains("overwritten: same"));
    assert!(refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!((world.body("shop/mine"), world.objects().len()), (b"other".to_vec(), 2));
    world.done(&["import", "--force", "shop"]);
    assert_eq!(world.body("shop/mine"), b"mine");
    fs::create_dir_all(world.path("out/shop")).unwrap();
    fs::write(world.path("out/shop/foreign"), "x").unwrap();
    let refused = world.berth(&["export", "shop", "out"]);
    assert_eq!((refused.code, world.path("out/shop/mine").exists()), (1, false));
    assert!(refused.stdout.contains("foreign"), "{}", refused.stdout);
    world.done(&["export", "--force", "shop", "out"]);
    assert_eq!(fs::read_to_string(world.path("out/shop/foreign")).unwrap(), "x");
    assert_eq!(fs::read_to_string(world.path("out/shop/mine")).unwrap(), "mine");
}

#[test]
fn what_somebody_else_stores_meanwhile_is_not_overwritten() {
    let world = World::new();
    world.write("a", "ours");
    world.proxy.set([Rule {
        method: Some("PUT"),
        path: Some("/shop/a".into()),
        ..Rule::always(Fault::Hang)
    }]);
    let child = world.command(&["import", "shop"]).spawn().unwrap();
    wait("the file to be on its way", Duration::from_secs(30), || {
        world.proxy.count("PUT", "/shop/a") > 0
    });
    world.put("shop/a", "theirs");
    world.proxy.heal();
    let done = ended(child);
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    assert!(
        done.stdout.contains("failed: a: was changed by somebody else"),
        "{}",
        done.stdout
    );
    assert_eq!(world.body("shop/a"), b"theirs");
}

#[test]
fn one_in_five_requests_may_fail_and_all_ends_right() {
    let world = World::new();
    for number in 0..300 {
        world.write(&format!("{number}"), format!("file {number}"));
    }
    let large: Vec<u8> = (0..30_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    world.write("large", &large);
    let faults = [
        Fault::Status(503),
        Fault::CutBefore,
        Fault::CutDuring,
        Fault::CutAfter,
        Fault::Truncated,
    ];
    world.proxy.set(faults.map(|fault| Rule::sometimes(4, fault)));
    let done = world.done(&["import", "shop"]);
    assert!(done.stdout.contains("Checksums agree: 301 files."), "{}", done.stdout);
    assert_eq!((world.objects().len(), world.body("shop/large") == large), (301, true));
    world.done(&["export", "shop", "out"]);
    world.proxy.heal();
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
    assert!(world.proxy.seen().iter().filter(|seen| seen.fault.is_some()).count() > 50);
}

#[test]
fn a_wrong_key_a_dead_server_and_a_missing_workspace_each_have_their_code() {
    let world = World::new();
    world.write("a", "one");
    for arguments in [
        ["import", "shop"].as_slice(),
        &["import", "--dry-run", "shop"],
        &["export", "shop", "out"],
    ] {
        world.configure("wrong");
        let done = world.berth(arguments);
        assert_eq!(done.code, 2, "{}", done.stderr);
        assert!(
            done.stderr.contains("check access_key and secret_key"),
            "{}",
            done.stderr
        );
        world.configure("secret");
        world.proxy.reach(Reach::Refused);
        let begun = Instant::now();
        let done = world.berth(arguments);
        world.proxy.heal();
        assert_eq!(done.code, 1, "{}", done.stderr);
        assert!(
            done.stderr.contains("nothing answers at http://127.0.0.1:"),
            "{}",
            done.stderr
        );
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "nobody waits for a server that is not there"
        );
    }
    let done = world.berth(&["export", "nothing", "out"]);
    assert_eq!(
        (done.code, done.stderr.contains("no workspace nothing")),
        (3, true),
        "{}",
        done.stderr
    );
    assert_eq!(world.berth(&["import", "missing-folder"]).code, 2);
    assert_eq!(world.berth(&["export", "out"]).code, 2);
}

#[test]
fn without_the_daemon_its_embedded_server_is_asked_for() {
    let world = World::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let state = world.path("state");
    let config = format!(
        "[paths]\nstate = \"{}\"\n[s3]\nlisten = \"127.0.0.1:{port}\"\n",
        state.display()
    );
    fs::write(world.path("berth.toml"), config).unwrap();
    let check = || {
        for arguments in [["import", "shop"].as_slice(), &["export", "shop", "out"]] {
            let done = world.berth(arguments);
            assert_eq!(done.code, 4, "{}", done.stderr);
            assert!(done.stderr.contains("berth serve"), "{}", done.stderr);
        }
    };
    check();
    berth_store::load_or_create_credentials(state.join("s3-credentials")).unwrap();
    check();
}

#[test]
fn what_may_not_be_read_is_told_and_the_rest_is_moved() {
    let world = World::new();
    world.write("open", "x");
    world.write("closed", "x");
    world.write("locked/x", "x");
    fs::set_permissions(world.path("shop/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(world.path("shop/locked"), fs::Permissions::from_mode(0o700)).unwrap();
    nix::unistd::mkfifo(&world.path("shop/pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let import = world.command(&["import", "--json", "shop"]);
    // Root may read everything: another user imports.
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(BERTH)
        .args(import.get_args());
    command
        .current_dir(world.dir.path())
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let done = ended(command.spawn().expect("setpriv is missing: apt-get install util-linux"));
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let left = &json["workspaces"][0]["left_out"];
    let unreadable: Vec<_> = left["unreadable"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failed| failed["path"].as_str())
        .collect();
    assert!(
        unreadable.contains(&Some("closed")) && unreadable.contains(&Some("locked")),
        "{left}"
    );
    assert!(
        left["unreadable"][0]["why"]
            .as_str()
            .unwrap()
            .contains("Permission denied"),
        "{left}"
    );
    assert_eq!(left["special"], serde_json::json!(["pipe"]));
    assert_eq!(world.objects().into_keys().collect::<Vec<_>>(), ["shop/open"]);
}
