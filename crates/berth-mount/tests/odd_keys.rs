//! A bucket that other tools have filled with keys that no file system has names for: the rest of it is usable, nothing of
//! it is lost, and each such object is named.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::fs;

use berth_mount::Why;
use fixture::{Fixture, wait_for};

const ODD: [(&str, Why); 6] = [
    ("app/a//b", Why::EmptyName),
    ("app/../up", Why::DotName),
    ("app/./here", Why::DotName),
    ("/app/leading", Why::EmptyName),
    ("app/slashes//", Why::EmptyName),
    ("../outside", Why::DotName),
];

fn seed(put: &dyn Fn(&str, &[u8])) {
    for (key, _) in ODD {
        put(key, b"odd");
    }
    put(&format!("app/{}", "x".repeat(256)), b"long");
    put(&format!("app/{}", "y".repeat(255)), b"fits");
    put(
        &format!("deep/{}", vec!["z".repeat(199); 5].join("/")),
        b"1,004 bytes of key",
    );
    put("app/line\nbreak", b"a name all the same");
    put("app/both", b"an object");
    put("app/both/below", b"below it");
    put("app/with-content/", b"a marker with content");
    put("app/dist/x", b"excluded");
    put("app/plain", b"plain");
}

#[test]
fn what_cannot_be_shown_is_named_with_the_reason_and_the_rest_is_usable() {
    let f = Fixture::with(|_| {}, seed);
    let report = f.mount().unshown();
    let why = |key: &str| {
        report
            .objects
            .iter()
            .find(|object| object.key == key)
            .map(|object| object.why)
    };
    for (key, reason) in ODD {
        assert_eq!(why(key), Some(reason), "{key}");
    }
    assert_eq!(why(&format!("app/{}", "x".repeat(256))), Some(Why::LongName));
    assert_eq!(why("app/both"), Some(Why::NameOfFolder));
    assert_eq!(why("app/dist/x"), Some(Why::Excluded));
    assert_eq!((report.count, report.excluded), (8, 1));

    for (path, text) in [
        ("app/plain", "plain"),
        ("app/both/below", "below it"),
        ("app/line\nbreak", "a name all the same"),
    ] {
        assert_eq!(fs::read_to_string(f.path(path)).unwrap(), text);
    }
    assert_eq!(
        fs::read_to_string(f.path(&format!("app/{}", "y".repeat(255)))).unwrap(),
        "fits"
    );
    let deep = f.path(&format!("deep/{}", vec!["z".repeat(199); 5].join("/")));
    assert_eq!(fs::read_to_string(deep).unwrap(), "1,004 bytes of key");
    assert!(f.path("app/with-content").is_dir());
    let before = f.keys();
    fs::write(f.path("app/plain"), "edited").unwrap();
    fs::write(f.path("app/both/new"), "new").unwrap();
    wait_for("the edits are in S3", || {
        f.text("app/plain").as_deref() == Some("edited") && f.text("app/both/new").as_deref() == Some("new")
    });
    for key in before {
        assert!(f.object(&key).is_some(), "{key:?} was lost");
    }
    assert_eq!(f.text("app/both").as_deref(), Some("an object"));
}

#[test]
fn an_object_shows_again_when_the_folder_of_its_name_is_gone() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/both", b"an object");
            put("app/both/below", b"below it");
        },
    );
    assert_eq!(f.mount().unshown().count, 1);
    f.delete("app/both/below");
    wait_for("the object shows", || {
        fs::read_to_string(f.path("app/both")).is_ok_and(|text| text == "an object")
    });
    wait_for("and is no longer told", || f.mount().unshown().count == 0);
}

#[test]
fn what_comes_and_goes_later_is_told_and_no_longer_told() {
    let f = Fixture::with(|_| {}, |put| put("app/a", b"a"));
    f.put("app/b//c", "odd");
    f.put("app/a/below", "below it");
    wait_for("both are told", || f.mount().unshown().count == 2);
    assert!(f.path("app/a/below").exists());
    f.delete("app/b//c");
    wait_for("one is left", || f.mount().unshown().count == 1);
    assert_eq!(f.text("app/a").as_deref(), Some("a"));
}
