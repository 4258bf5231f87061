//! The mount on the S3 servers of three makes: the embedded one, Garage, and SeaweedFS.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs::{self, OpenOptions},
    io::Write,
};

use berth_harness::Make;
use fixture::{Fixture, wait_for};

fn saves_come_back_after_a_restart(make: Option<Make>) {
    let mut f = Fixture::on(make, |_| {}, |_| {});
    fs::create_dir_all(f.path("app/src/empty")).unwrap();
    let large: Vec<u8> = (0..20_u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(f.path("app/large"), &large).unwrap();
    let names = [
        "plain",
        "a b",
        "a+b%2F&c=?#",
        "\u{fc}\u{4e16}\u{1f980}",
        "(x)!*'~@:;,$[]{}^`|",
    ];
    for name in names {
        fs::write(f.path(&format!("app/src/{name}")), name).unwrap();
        wait_for("the save is in S3", || {
            f.text(&format!("app/src/{name}")).as_deref() == Some(name)
        });
    }
    f.sh("chmod 755 app/src/plain && ln -s src/plain app/link && sed -i s/plain/changed/ app/src/plain");
    f.remount();
    assert!(fs::read(f.path("app/large")).unwrap() == large, "a file sent in parts");
    for name in &names[1..] {
        assert_eq!(fs::read_to_string(f.path(&format!("app/src/{name}"))).unwrap(), *name);
    }
    assert_eq!(
        f.sh("cat app/link; stat -c %a app/src/plain; ls app/src/empty"),
        "changed755\n"
    );
}

fn renames_move_objects(make: Option<Make>) {
    let mut f = Fixture::on(make, |_| {}, |put| put("app/dir/a", b"a"));
    fs::write(f.path("app/dir/b"), "b").unwrap();
    fs::rename(f.path("app/dir/a"), f.path("app/dir/b")).unwrap();
    fs::rename(f.path("app/dir"), f.path("app/moved")).unwrap();
    f.unmount();
    let keys: Vec<String> = f.keys().into_iter().filter(|key| !key.ends_with('/')).collect();
    assert_eq!(keys, ["app/moved/b"]);
    assert_eq!(f.text("app/moved/b").as_deref(), Some("a"));
}

fn changes_made_elsewhere_are_shown(make: Option<Make>) {
    let f = Fixture::on(make, |_| {}, |put| put("app/a", b"old"));
    assert_eq!(fs::read_to_string(f.path("app/a")).unwrap(), "old");
    f.put("app/a", "new content");
    f.put("app/b/c", "c");
    wait_for("the new content shows", || {
        fs::read_to_string(f.path("app/a")).is_ok_and(|text| text == "new content")
    });
    wait_for("the new file shows", || f.path("app/b/c").exists());
    f.delete("app/b/c");
    wait_for("the removed file goes", || !f.path("app/b/c").exists());
}

fn both_versions_are_kept_when_both_sides_wrote(make: Option<Make>) {
    let f = Fixture::on(make, |_| {}, |put| put("app/a", b"base"));
    let mut file = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(f.path("app/a"))
        .unwrap();
    file.write_all(b"ours").unwrap();
    f.put("app/a", "theirs");
    drop(file);
    let ours = || f.keys().into_iter().find(|key| key.starts_with("app/a.conflict-"));
    wait_for("ours has a name of its own", || ours().is_some());
    assert_eq!(f.text("app/a").as_deref(), Some("theirs"));
    assert_eq!(f.text(&ours().unwrap()).as_deref(), Some("ours"));
}

macro_rules! on_each_server {
    ($($promise:ident),*) => {
        mod embedded { $(#[test] fn $promise() { super::$promise(None); })* }
        mod garage { $(#[test] fn $promise() { super::$promise(Some(super::Make::Garage)); })* }
        mod seaweedfs { $(#[test] fn $promise() { super::$promise(Some(super::Make::SeaweedFs)); })* }
    };
}
on_each_server!(
    saves_come_back_after_a_restart,
    renames_move_objects,
    changes_made_elsewhere_are_shown,
    both_versions_are_kept_when_both_sides_wrote
);

#[test]
fn what_a_server_can_do_is_found_out() {
    let of = |make| Fixture::on(make, |_| {}, |_| {}).store.abilities().conditional_put;
    assert!(of(None));
    // Berth asks (HEAD) before it writes there.
    assert!(!of(Some(Make::Garage)));
    assert!(of(Some(Make::SeaweedFs)));
}
