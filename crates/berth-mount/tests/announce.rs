//! Changes made past the mount, as inotify watchers hear of them, and that nobody else notices how they are announced.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use berth_harness::{Event, Watcher};
use fixture::{Fixture, wait_for};
use nix::sys::inotify::AddWatchFlags as In;

const LIMIT: Duration = Duration::from_secs(10);

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| format!("{error}"))
}

/// Changes `app/marker` past the mount and waits for its event in the folder `app`: what was to be announced before has been.
fn until_marker(f: &Fixture, watcher: &Watcher, number: u32) -> Vec<Event> {
    f.put("app/marker", format!("marker {number}"));
    let mut seen = watcher.until("the marker", LIMIT, |event| {
        event.of == "app" && event.is(In::IN_CLOSE_WRITE, "marker")
    });
    seen.retain(|event| event.name != "marker");
    seen
}

fn masks(seen: &[Event], of: &str, name: &str) -> Vec<In> {
    seen.iter()
        .filter(|event| event.of == of && event.name == name)
        .map(|event| event.mask)
        .collect()
}

#[test]
fn a_watched_folder_tells_of_changed_new_and_removed_names() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"old");
            put("app/marker", b"0");
        },
    );
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    watcher.watch(f.root(), "root");

    f.put("app/a", "new content");
    watcher.until("IN_MODIFY", LIMIT, |event| event.is(In::IN_MODIFY, "a"));
    assert_eq!(
        text(&f.path("app/a")),
        "new content",
        "what the event is about is there"
    );
    assert_eq!(fs::metadata(f.path("app/a")).unwrap().len(), 11);
    watcher.until("IN_CLOSE_WRITE", LIMIT, |event| event.is(In::IN_CLOSE_WRITE, "a"));

    assert!(!f.path("app/b").exists(), "the kernel remembers that there is none");
    f.put("app/b", "b");
    watcher.until("IN_CREATE", LIMIT, |event| event.is(In::IN_CREATE, "b"));
    assert_eq!(text(&f.path("app/b")), "b");
    watcher.until("its IN_CLOSE_WRITE", LIMIT, |event| event.is(In::IN_CLOSE_WRITE, "b"));

    f.put("app/folder/deep", "d");
    watcher.until("a new folder", LIMIT, |event| {
        event.is(In::IN_CREATE | In::IN_ISDIR, "folder")
    });
    assert_eq!(text(&f.path("app/folder/deep")), "d");

    f.delete("app/a");
    watcher.until("IN_DELETE", LIMIT, |event| event.is(In::IN_DELETE, "a"));
    assert!(!f.path("app/a").exists());
    f.delete("app/folder/deep");
    watcher.until("a removed folder", LIMIT, |event| {
        event.is(In::IN_DELETE | In::IN_ISDIR, "folder")
    });
    assert!(!f.path("app/folder").exists());

    f.put("fresh/x", "x");
    watcher.until("a new workspace", LIMIT, |event| {
        event.of == "root" && event.is(In::IN_CREATE | In::IN_ISDIR, "fresh")
    });
    f.delete("fresh/x");
    watcher.until("a removed workspace", LIMIT, |event| {
        event.of == "root" && event.is(In::IN_DELETE | In::IN_ISDIR, "fresh")
    });

    // Nothing of it was a change of ours.
    assert_eq!(f.keys(), ["app/b", "app/marker"]);
    assert_eq!(f.mount().unannounced(), 0);
}

#[test]
fn a_watched_file_tells_of_every_change_wherever_it_is_made() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/a", b"0");
            put("app/marker", b"0");
        },
    );
    let path = f.path("app/a");
    let mut watcher = Watcher::new();
    watcher.watch(&path, "file");
    watcher.watch(&f.path("app"), "app");
    for number in 1..=3 {
        let content = format!("elsewhere {number}");
        f.put("app/a", &content);
        let seen = watcher.until("IN_CLOSE_WRITE of the file", LIMIT, |event| {
            event.of == "file" && event.is(In::IN_CLOSE_WRITE, "")
        });
        assert_eq!(masks(&seen, "file", ""), [In::IN_MODIFY, In::IN_CLOSE_WRITE]);
        assert_eq!(text(&path), content);

        fs::write(&path, format!("here {number}")).unwrap();
        watcher.until("IN_CLOSE_WRITE after a save here", LIMIT, |event| {
            event.of == "file" && event.is(In::IN_CLOSE_WRITE, "")
        });
        assert_eq!(f.text("app/a").unwrap(), format!("here {number}"));
    }
    f.delete("app/a");
    watcher.until("IN_DELETE_SELF", LIMIT, |event| {
        event.of == "file" && event.is(In::IN_DELETE_SELF, "")
    });

    f.put("app/b", "0");
    wait_for("b", || f.path("app/b").exists());
    until_marker(&f, &watcher, 1);
    watcher.watch(&f.path("app/b"), "second");
    f.put("app/b", "1");
    watcher.until("IN_MODIFY of the second", LIMIT, |event| {
        event.of == "second" && event.is(In::IN_MODIFY, "")
    });
    f.sh("echo 2 > app/.b.swp; mv app/.b.swp app/b");
    watcher.until("a rename over it", LIMIT, |event| {
        event.of == "second" && event.is(In::IN_DELETE_SELF, "")
    });
}

#[test]
fn what_is_saved_here_raises_its_own_events_and_no_other() {
    let script = "cd app; echo 1 > a; echo 2 >> a; mkdir d; echo x > d/x; ln -s a l; mv a b; cp b c; chmod 600 c; touch c; \
                  sed -i s/1/3/ c; rm b l; rm -r d; : > e";
    let quiet = Fixture::with(|config| config.announcer = None, |put| put("app/marker", b"0"));
    let f = Fixture::with(|_| {}, |put| put("app/marker", b"0"));
    let mut expected = Watcher::new();
    expected.watch(&quiet.path("app"), "app");
    quiet.sh(script);
    quiet.settle();
    let expected = expected.read();
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    f.sh(script);
    f.settle();
    let seen = until_marker(&f, &watcher, 1);
    // sed's temporary file has a name of its own each time.
    let named = |events: &[Event]| -> Vec<String> {
        let name = |name: &str| {
            if name.starts_with("sed") {
                "sed".to_owned()
            } else {
                name.to_owned()
            }
        };
        events
            .iter()
            .map(|event| format!("{:?} {}", event.mask, name(&event.name)))
            .collect()
    };
    assert_eq!(named(&seen), named(&expected));
    assert_eq!(f.keys(), ["app/c", "app/e", "app/marker"]);
}

#[test]
fn bits_and_links_that_another_host_made_are_announced() {
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    fs::write(f.path("app/run.sh"), "x").unwrap();
    fs::write(f.path("app/marker"), "0").unwrap();
    fs::set_permissions(f.path("app/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    wait_for("the index", || {
        f.text(".berth/index/app.json")
            .is_some_and(|text| text.contains("run.sh"))
    });
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    let index = f.text(".berth/index/app.json").unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let entries = index["entries"].as_object_mut().unwrap();
    entries["run.sh"]["mode"] = "700".into();
    entries.insert(
        "link".into(),
        serde_json::json!({ "kind": "symlink", "target": "run.sh" }),
    );
    f.put(".berth/index/app.json", index.to_string());
    let seen = watcher.until("the new link", LIMIT, |event| event.is(In::IN_CREATE, "link"));
    let more = until_marker(&f, &watcher, 1);
    let all: Vec<Event> = seen.into_iter().chain(more).collect();
    assert_eq!(masks(&all, "app", "run.sh"), [In::IN_ATTRIB]);
    assert_eq!(fs::metadata(f.path("app/run.sh")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_link(f.path("app/link")).unwrap(), Path::new("run.sh"));
}

/// Ends the threads of a scope, also when the test has failed.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Others look at the names that are announced all the time: none flickers, and none can be made twice.
#[test]
fn nobody_sees_a_name_come_or_go_by_being_announced() {
    const NAMES: u32 = 150;
    let f = Fixture::with(|_| {}, |put| put("app/marker", b"0"));
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    let current = parking_lot::RwLock::new(f.path("app/n0"));
    let (removing, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let looks = std::thread::scope(|scope| {
        let look = |exclusive: bool| {
            let (current, removing, over) = (&current, &removing, &over);
            move || {
                let (mut looks, mut last) = (0_u64, (std::path::PathBuf::new(), false, false));
                while !over.load(Ordering::Relaxed) {
                    // The look is done under the lock, so that it is about this name in this phase.
                    let path = current.read();
                    let phase = removing.load(Ordering::Relaxed);
                    let same = last.0 == *path && last.1 == phase;
                    let there = if exclusive && !phase && same && last.2 {
                        let made = fs::File::create_new(&*path);
                        made.is_err_and(|error| error.kind() == std::io::ErrorKind::AlreadyExists)
                    } else {
                        fs::symlink_metadata(&*path).is_ok()
                    };
                    if same {
                        let flickers = if phase { !last.2 && there } else { last.2 && !there };
                        assert!(!flickers, "{} flickers; removing: {phase}", path.display());
                    }
                    last = (path.clone(), phase, there);
                    looks += 1;
                }
                looks
            }
        };
        let lookers = [
            scope.spawn(look(false)),
            scope.spawn(look(true)),
            scope.spawn(look(false)),
        ];
        let _ended = Ended(&over);
        for number in 0..NAMES {
            let name = format!("n{number}");
            {
                let mut current = current.write();
                *current = f.path(&format!("app/{name}"));
                removing.store(false, Ordering::Relaxed);
            }
            f.put(&format!("app/{name}"), "first");
            watcher.until("the new name", LIMIT, |event| event.is(In::IN_CLOSE_WRITE, &name));
            f.put(&format!("app/{name}"), "second");
            watcher.until("its new content", LIMIT, |event| event.is(In::IN_CLOSE_WRITE, &name));
            {
                let _current = current.write();
                removing.store(true, Ordering::Relaxed);
            }
            f.delete(&format!("app/{name}"));
            watcher.until("its end", LIMIT, |event| event.is(In::IN_DELETE, &name));
        }
        over.store(true, Ordering::Relaxed);
        lookers.map(|looker| looker.join().unwrap())
    });
    eprintln!("looks at {NAMES} names: {looks:?}");
    assert!(looks.iter().all(|looks| *looks > u64::from(NAMES)));
    assert_eq!(f.keys(), ["app/marker"]);
}

/// Names that are made, changed and removed on both sides at once: announcements come too late all the time and do no harm.
#[test]
fn an_announcement_that_comes_too_late_changes_nothing() {
    let f = Fixture::with(|_| {}, |put| put("app/marker", b"0"));
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    for round in 0..15 {
        for name in ["x", "y", "z"] {
            let path = f.path(&format!("app/{name}"));
            let key = format!("app/{name}");
            f.put(&key, format!("theirs {round}"));
            f.delete(&key);
            let content = format!("ours {round} {name}");
            fs::write(&path, &content).unwrap();
            assert_eq!(text(&path), content);
            match name {
                "x" => fs::remove_file(&path).unwrap(),
                "y" => fs::rename(&path, f.path("app/moved")).unwrap(),
                _ => {}
            }
        }
        assert_eq!(text(&f.path("app/moved")), format!("ours {round} y"));
        fs::remove_file(f.path("app/moved")).unwrap();
        f.settle();
    }
    until_marker(&f, &watcher, 1);
    wait_for("both sides to agree", || {
        let mut shown: Vec<String> = fs::read_dir(f.path("app"))
            .unwrap()
            .map(|entry| format!("app/{}", entry.unwrap().file_name().into_string().unwrap()))
            .collect();
        shown.sort();
        shown == f.keys()
    });
    for key in f.keys() {
        assert_eq!(f.object(&key).unwrap(), fs::read(f.path(&key)).unwrap(), "{key}");
    }
}

#[test]
fn a_storm_of_changes_elsewhere_leaves_those_who_work_here_in_peace() {
    const CHANGES: usize = 5_000;
    let f = Fixture::with(|_| {}, |put| put("app/marker", b"0"));
    let mut watcher = Watcher::new();
    watcher.watch(&f.path("app"), "app");
    let over = AtomicBool::new(false);
    let mut worst = Duration::ZERO;
    std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            f.block_on(async {
                use futures::StreamExt;
                let put = |n: usize| {
                    let body = format!("{n}").into();
                    let store = &f.store;
                    async move {
                        store
                            .put(&format!("app/f{}", n % 500), body, berth_store::Precondition::None)
                            .await
                    }
                };
                let puts = futures::stream::iter(0..CHANGES).map(put).buffer_unordered(32);
                puts.for_each(|done| async move { drop(done.unwrap()) }).await;
            });
            over.store(true, Ordering::Relaxed);
        });
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            let since = Instant::now();
            let path = f.path(&format!("app/mine{}", number % 10));
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(b"mine").unwrap();
            drop(file);
            assert_eq!(text(&path), "mine");
            fs::remove_file(&path).unwrap();
            worst = worst.max(since.elapsed());
            number += 1;
            drop(watcher.read());
        }
        storm.join().unwrap();
        eprintln!("{number} rounds of create, write, close, read, remove meanwhile; the worst took {worst:?}");
        assert!(number > 10);
    });
    assert!(worst < Duration::from_secs(2), "{worst:?}");
    wait_for("the last content", || {
        (0..500).all(|n| text(&f.path(&format!("app/f{n}"))) == f.text(&format!("app/f{n}")).unwrap())
    });
    until_marker(&f, &watcher, 1);
    eprintln!("not announced: {}", f.mount().unannounced());
}
