//! Names that make trouble on the way to S3: long, with blanks, in other scripts, and of characters that requests encode. What
//! S3 has is read by rclone, which shares no code with Berth.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{collections::BTreeSet, fs};

use fixture::{Fixture, need, wait_for};

/// Each is the name of a file, of a folder, and of a workspace.
fn names() -> Vec<String> {
    let written = [
        "a b",
        " leading",
        "trailing ",
        "a+b",
        "a++b c",
        "100%",
        "%41",
        "%2F",
        "%",
        "a&b=c",
        "why?",
        "#1",
        "a;b,c",
        "a:b@c",
        "$HOME",
        "(a)[b]{c}",
        "a|b^c`d",
        "'single' \"double\"",
        "<a>&amp;",
        "back\\slash",
        "!*",
        "=",
        "-rf",
        "~tilde",
        "...",
        "\u{fc}mlaut",
        "u\u{308}mlaut",
        "\u{65e5}\u{672c}\u{8a9e}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
        "\u{1f980}\u{200d}\u{1f52c}",
        "a\u{a0}b\u{2028}c",
    ];
    let mut names: Vec<String> = written.map(str::to_owned).into();
    names.push("n".repeat(255));
    names.push("\u{65e5}".repeat(85));
    names.push("+ ".repeat(127) + "%");
    names
}

/// The bucket's keys as rclone lists them, without Berth's own.
fn listed(f: &Fixture) -> BTreeSet<String> {
    f.settle();
    let json = f
        .bucket()
        .rclone(&["lsjson", "-R", "--files-only", "--s3-encoding", "None", "b:"]);
    let objects: Vec<serde_json::Value> = serde_json::from_slice(&json).unwrap();
    let paths = objects.iter().map(|object| object["Path"].as_str().unwrap().to_owned());
    paths.filter(|path| !path.starts_with(".berth/")).collect()
}

#[test]
fn names_of_files_are_the_keys_that_other_clients_see() {
    need("rclone", "rclone");
    let mut f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    for name in names() {
        fs::write(f.path("app").join(&name), &name).unwrap();
    }
    let wanted: BTreeSet<String> = names().iter().map(|name| format!("app/{name}")).collect();
    assert_eq!(listed(&f), wanted);
    for name in names() {
        let key = format!("b:app/{name}");
        let text = f.bucket().rclone(&["cat", "--s3-encoding", "None", &key]);
        assert_eq!(String::from_utf8_lossy(&text), name);
    }
    f.remount();
    for name in names() {
        let path = f.path("app").join(&name);
        assert_eq!(fs::read_to_string(&path).unwrap(), name);
        fs::write(&path, "changed").unwrap();
    }
    for key in &wanted {
        assert_eq!(f.text(key).as_deref(), Some("changed"), "{key:?}");
    }
    for name in names() {
        fs::remove_file(f.path("app").join(&name)).unwrap();
    }
    assert_eq!(listed(&f), BTreeSet::new());
}

#[test]
fn such_names_can_be_renamed_one_to_another() {
    need("rclone", "rclone");
    let f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    // Two that differ in any byte: each gets the name of the next, through requests that name both.
    let names = names();
    for name in &names {
        fs::write(f.path("app").join(name), name).unwrap();
    }
    f.settle();
    let moved = |name: &str| format!("{}.moved", name.chars().take(80).collect::<String>());
    for name in &names {
        fs::rename(f.path("app").join(name), f.path("app").join(moved(name))).unwrap();
    }
    f.settle();
    for (name, next) in names.iter().zip(names.iter().cycle().skip(1)) {
        fs::rename(f.path("app").join(moved(name)), f.path("app").join(next)).unwrap();
    }
    let wanted: BTreeSet<String> = names.iter().map(|name| format!("app/{name}")).collect();
    assert_eq!(listed(&f), wanted);
    for (name, next) in names.iter().zip(names.iter().cycle().skip(1)) {
        assert_eq!(f.text(&format!("app/{next}")).as_ref(), Some(name), "{next:?}");
    }
}

#[test]
fn folders_and_workspaces_may_have_such_names() {
    need("rclone", "rclone");
    let mut f = Fixture::new();
    let workspaces: Vec<String> = names().into_iter().filter(|name| !name.starts_with('.')).collect();
    for name in &workspaces {
        fs::create_dir_all(f.path(name).join(name)).unwrap();
        fs::create_dir(f.path(name).join("empty")).unwrap();
        fs::write(f.path(name).join(name).join("file"), name).unwrap();
    }
    let wanted: BTreeSet<String> = workspaces.iter().map(|name| format!("{name}/{name}/file")).collect();
    assert_eq!(listed(&f), wanted);
    f.remount();
    for name in &workspaces {
        assert_eq!(&fs::read_to_string(f.path(name).join(name).join("file")).unwrap(), name);
        assert!(f.path(name).join("empty").is_dir(), "{name:?}: its index names it");
        fs::rename(f.path(name).join(name), f.path(name).join("plain")).unwrap();
    }
    let wanted: BTreeSet<String> = workspaces.iter().map(|name| format!("{name}/plain/file")).collect();
    assert_eq!(listed(&f), wanted);
}

#[test]
fn what_other_clients_store_under_such_names_appears() {
    need("rclone", "rclone");
    let f = Fixture::with(|_| {}, |put| put("app/first", b"x"));
    let source = f.out("source");
    fs::create_dir(&source).unwrap();
    // rclone reads the folder with the system's names, and none of these holds a slash.
    for name in names() {
        fs::write(source.join(&name), &name).unwrap();
    }
    let from = source.to_str().unwrap();
    let _ = f.bucket().rclone(&[
        "copy",
        "--s3-encoding",
        "None",
        "--local-encoding",
        "None",
        "--no-check-dest",
        // Two of them differ only in how a letter is composed.
        "--no-unicode-normalization",
        from,
        "b:app",
    ]);
    for name in names() {
        wait_for(&format!("{name:?} appears"), || {
            fs::read_to_string(f.path("app").join(&name)).is_ok_and(|text| text == name)
        });
    }
    assert_eq!(fs::read_dir(f.path("app")).unwrap().count(), names().len() + 1);
}
