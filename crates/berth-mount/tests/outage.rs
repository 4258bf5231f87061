//! Saving while S3 does not answer, and what is left when the process that acknowledged dies.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod world;

use std::{fs, os::unix::fs::PermissionsExt};

use berth_harness::fault_proxy::{Fault, Reach, Rule};
use world::{World, wait_for};

#[test]
fn saves_go_on_while_s3_is_down_and_arrive_when_it_is_back() {
    let world = World::new();
    let host = world.host("a", 1, |_| {});
    fs::create_dir(host.path("app")).unwrap();
    world.settle(&host);
    host.proxy.reach(Reach::Refused);
    for n in 0..50 {
        fs::write(host.path(&format!("app/{n}")), format!("content {n}")).unwrap();
    }
    fs::rename(host.path("app/7"), host.path("app/seven")).unwrap();
    fs::remove_file(host.path("app/8")).unwrap();
    fs::create_dir_all(host.path("app/empty/deep")).unwrap();
    let pending = host.mount().pending();
    assert!(pending.count >= 49 && pending.oldest.is_some(), "{pending:?}");
    assert_eq!(fs::read_to_string(host.path("app/seven")).unwrap(), "content 7");
    host.proxy.reach(Reach::Up);
    world.settle(&host);
    assert_eq!(world.text("app/49").as_deref(), Some("content 49"));
    assert_eq!(world.text("app/seven").as_deref(), Some("content 7"));
    assert_eq!((world.text("app/7"), world.text("app/8")), (None, None));
    assert_eq!(world.objects().len(), 49);
    assert!(world.text(".berth/index/app.json").unwrap().contains("empty/deep"));
}

#[test]
fn what_was_acknowledged_survives_a_process_that_dies_while_s3_is_down() {
    let world = World::new();
    world.put("app/old", "old");
    world.put("app/gone", "gone");
    world.put("app/moved/x", "x");
    let mut host = world.host("a", 1, |_| {});
    host.proxy.reach(Reach::Refused);
    fs::write(host.path("app/new"), "new").unwrap();
    fs::write(host.path("app/old"), "changed").unwrap();
    fs::remove_file(host.path("app/gone")).unwrap();
    fs::rename(host.path("app/moved"), host.path("app/there")).unwrap();
    fs::create_dir_all(host.path("app/empty/deep")).unwrap();
    std::os::unix::fs::symlink("new", host.path("app/link")).unwrap();
    fs::set_permissions(host.path("app/new"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(host.path("app/big"), vec![b'b'; 9 << 20]).unwrap();
    world.kill(&mut host);
    host.proxy.reach(Reach::Up);
    world.start(&mut host);
    let shown = |path: &str| fs::read_to_string(host.path(path)).unwrap();
    assert_eq!(
        (shown("app/new"), shown("app/old"), shown("app/there/x")),
        ("new".into(), "changed".into(), "x".into())
    );
    assert!(!host.path("app/gone").exists() && !host.path("app/moved").exists());
    assert!(host.path("app/empty/deep").is_dir());
    assert_eq!(shown("app/link"), "new");
    assert_eq!(
        fs::metadata(host.path("app/new")).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert_eq!(shown("app/big").len(), 9 << 20);
    world.settle(&host);
    let objects = world.objects();
    let keys: Vec<&str> = objects.keys().map(String::as_str).collect();
    assert_eq!(keys, ["app/big", "app/new", "app/old", "app/there/x"]);
    assert_eq!(objects["app/old"], "changed");
    let index = world.text(".berth/index/app.json").unwrap();
    assert!(
        index.contains("755") && index.contains("link") && index.contains("empty/deep"),
        "{index}"
    );
}

#[test]
fn an_answer_that_was_lost_is_no_conflict_even_for_the_next_process() {
    let world = World::new();
    world.put("app/a", "before");
    let mut host = world.host("a", 1, |_| {});
    host.proxy.set([Rule {
        method: Some("PUT"),
        ..Rule::always(Fault::CutAfter)
    }]);
    fs::write(host.path("app/a"), "one").unwrap();
    wait_for("S3 took it", || world.text("app/a").as_deref() == Some("one"));
    fs::write(host.path("app/a"), "two").unwrap();
    world.kill(&mut host);
    host.proxy.heal();
    world.start(&mut host);
    assert_eq!(fs::read_to_string(host.path("app/a")).unwrap(), "two");
    world.settle(&host);
    let objects = world.objects();
    assert_eq!(
        objects.into_iter().collect::<Vec<_>>(),
        [("app/a".to_owned(), "two".to_owned())]
    );
}

#[test]
fn what_changed_on_both_sides_of_an_outage_is_kept_twice() {
    let world = World::new();
    world.put("app/a", "before");
    world.put("app/same", "before");
    let host = world.host("a", 1, |_| {});
    host.proxy.reach(Reach::Refused);
    fs::write(host.path("app/a"), "ours").unwrap();
    fs::write(host.path("app/same"), "both").unwrap();
    world.put("app/a", "theirs");
    world.put("app/same", "both");
    host.proxy.reach(Reach::Up);
    world.settle(&host);
    let objects = world.objects();
    assert_eq!(objects["app/a"], "theirs");
    let aside: Vec<_> = objects.iter().filter(|(key, _)| key.contains(".conflict-")).collect();
    assert_eq!(aside.len(), 1, "{objects:?}");
    assert!(aside[0].0.starts_with("app/a.conflict-") && aside[0].1 == "ours");
    wait_for("the mount shows theirs", || {
        fs::read_to_string(host.path("app/a")).unwrap() == "theirs"
    });
    assert_eq!(fs::read_to_string(host.path(aside[0].0)).unwrap(), "ours");
}

#[test]
fn a_file_removed_here_and_changed_elsewhere_comes_back() {
    let world = World::new();
    world.put("app/a", "before");
    let host = world.host("a", 1, |_| {});
    host.proxy.reach(Reach::Refused);
    fs::remove_file(host.path("app/a")).unwrap();
    world.put("app/a", "theirs");
    host.proxy.reach(Reach::Up);
    world.settle(&host);
    assert_eq!(world.text("app/a").as_deref(), Some("theirs"));
    wait_for("it is shown again", || {
        fs::read_to_string(host.path("app/a")).is_ok_and(|text| text == "theirs")
    });
}

#[test]
fn a_save_through_a_descriptor_outlives_a_removal_elsewhere() {
    use std::io::Write;
    let world = World::new();
    world.put("app/sub/a", "before");
    world.put("app/b", "stays");
    let host = world.host("a", 1, |_| {});
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(host.path("app/sub/a"))
        .unwrap();
    world.block_on(world.store.delete("app/sub/a")).unwrap();
    wait_for("the removal is seen", || !host.path("app/sub/a").exists());
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    drop(file);
    world.settle(&host);
    assert_eq!(world.text("app/sub/a").as_deref(), Some("before and after"));
    assert_eq!(fs::read_to_string(host.path("app/sub/a")).unwrap(), "before and after");
}

#[test]
fn a_save_can_be_made_to_wait_for_s3() {
    let world = World::new();
    let host = world.host("a", 1, |config| {
        config.sync_of.insert("careful".into(), berth_mount::Sync::Remote);
    });
    fs::create_dir(host.path("careful")).unwrap();
    host.proxy.set([Rule {
        path: Some("careful/a".into()),
        times: Some(2),
        ..Rule::always(Fault::Status(503))
    }]);
    fs::write(host.path("careful/a"), "there").unwrap();
    fs::File::open(host.path("careful/a")).unwrap().sync_all().unwrap();
    assert_eq!(world.text("careful/a").as_deref(), Some("there"));
}

#[test]
fn a_hundred_saves_by_temporary_file_and_rename_are_a_few_requests() {
    let world = World::new();
    let host = world.host("a", 1, |_| {});
    fs::create_dir(host.path("app")).unwrap();
    for n in 0..10 {
        fs::write(host.path(&format!("app/a{n}.js")), "first").unwrap();
    }
    world.settle(&host);
    std::thread::sleep(std::time::Duration::from_millis(500));
    host.proxy.forget();
    for n in 0..100 {
        let (temporary, name) = (
            host.path(&format!("app/.a.js.tmp{n}")),
            host.path(&format!("app/a{}.js", n % 10)),
        );
        let file = fs::File::create(&temporary).unwrap();
        std::io::Write::write_all(&mut &file, format!("save {n}").as_bytes()).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs::rename(&temporary, &name).unwrap();
    }
    world.settle(&host);
    for n in 0..10 {
        assert_eq!(world.text(&format!("app/a{n}.js")), Some(format!("save {}", 90 + n)));
    }
    let seen = host.proxy.seen();
    assert!(
        seen.iter().all(|one| !one.path.contains(".tmp")),
        "no request names a temporary file"
    );
    let puts = seen.iter().filter(|one| one.method == "PUT").count();
    assert!(
        (10..=60).contains(&puts),
        "{puts} PUTs for a hundred saves of ten files"
    );
}

#[test]
fn a_full_journal_says_so_and_loses_nothing() {
    let world = World::new();
    let host = world.host("a", 1, |config| config.journal_max = 48 << 20);
    fs::create_dir(host.path("app")).unwrap();
    world.settle(&host);
    host.proxy.reach(Reach::Refused);
    let mut kept = Vec::new();
    let full = (0..200).find_map(|n| {
        let body = format!("{n}").repeat(400_000);
        match fs::write(host.path(&format!("app/{n}")), &body)
            .and_then(|()| close_told(&host.path(&format!("app/{n}"))))
        {
            Ok(()) => {
                kept.push((n, body));
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(full.unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert!(kept.len() > 3, "{} saves fitted", kept.len());
    host.proxy.reach(Reach::Up);
    world.settle(&host);
    for (n, body) in kept {
        assert!(world.text(&format!("app/{n}")).unwrap() == body, "save {n}");
    }
    fs::write(host.path("app/after"), "room again").unwrap();
}

/// `fs::write` does not hear what `close` says; an fsync does.
fn close_told(path: &std::path::Path) -> std::io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[test]
fn a_shells_redirect_never_sends_the_file_empty() {
    let world = World::new();
    world.put("app/a", "before");
    let host = world.host("a", 1, |_| {});
    for n in 0..20 {
        let path = host.path("app/a").display().to_string();
        let script = format!("echo {n} > '{path}'; printf %s new > '{path}-{n}'");
        let status = std::process::Command::new("sh").args(["-c", &script]).status().unwrap();
        assert!(status.success());
    }
    // Who wants an empty file gets one.
    fs::write(host.path("app/empty"), "").unwrap();
    fs::write(host.path("app/a-0"), "").unwrap();
    world.settle(&host);
    assert_eq!(
        (world.text("app/a").as_deref(), world.text("app/empty").as_deref()),
        (Some("19\n"), Some(""))
    );
    assert_eq!(
        (world.text("app/a-0").as_deref(), world.text("app/a-1").as_deref()),
        (Some(""), Some("new"))
    );
    let mut empty = host.proxy.seen();
    empty.retain(|seen| seen.method == "PUT" && seen.length == 0 && seen.path.contains("/app/"));
    assert_eq!(empty.len(), 2, "{empty:?}");
}

#[test]
fn a_child_that_starts_a_program_does_not_save_what_its_parent_is_writing() {
    use std::io::Write;
    let world = World::new();
    world.put("app/a", "before");
    let host = world.host("a", 1, |_| {});
    let mut file = fs::File::create(host.path("app/a")).unwrap();
    file.write_all(b"half").unwrap();
    // Its descriptor of the file is closed when the program begins.
    for _ in 0..3 {
        assert!(std::process::Command::new("true").status().unwrap().success());
    }
    assert_eq!(
        (host.mount().pending().count, host.proxy.count("PUT", "/app/a")),
        (1, 0)
    );
    file.write_all(b" and half").unwrap();
    drop(file);
    world.settle(&host);
    assert_eq!(world.text("app/a").as_deref(), Some("half and half"));
    assert_eq!(host.proxy.count("PUT", "/app/a"), 1);
    // The last one to close it saves, whoever has written.
    let script = "exec 3> \"$1\"; (sleep 0.2; exec 3>&-) & printf whole >&3; exec 3>&-; wait";
    let path = host.path("app/b");
    let mut command = std::process::Command::new("sh");
    let status = command.args(["-c", script, "sh"]).arg(&path).status().unwrap();
    assert!(status.success());
    world.settle(&host);
    assert_eq!(world.text("app/b").as_deref(), Some("whole"));
}
