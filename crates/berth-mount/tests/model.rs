//! Random operations on the mount and on a plain folder: both must answer alike and look alike, also after a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
};

use berth_workspace::Excludes;
use fixture::Fixture;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Write { path: String, len: usize, byte: u8 },
    Append { path: String, len: usize },
    Patch { path: String, offset: u64, len: usize },
    Truncate { path: String, len: u64 },
    Mkdir { path: String },
    Remove { path: String },
    Rename { from: String, to: String },
    Symlink { path: String },
    Chmod { path: String, executable: bool },
    Remount,
}

/// Few names, so that operations meet; some are local-only.
fn path() -> impl Strategy<Value = String> {
    let name = || prop_oneof![4 => "[ab]", 1 => Just("dist".to_owned()), 1 => Just("a~".to_owned()), 1 => Just("x.log".to_owned())];
    prop_oneof![
        name().boxed(),
        (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")).boxed(),
        (name(), name(), name())
            .prop_map(|(a, b, c)| format!("{a}/{b}/{c}"))
            .boxed()
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (path(), 0..20_000_usize, any::<u8>()).prop_map(|(path, len, byte)| Op::Write { path, len, byte }),
        2 => (path(), 0..5_000_usize).prop_map(|(path, len)| Op::Append { path, len }),
        2 => (path(), 0..30_000_u64, 1..5_000_usize).prop_map(|(path, offset, len)| Op::Patch { path, offset, len }),
        2 => (path(), 0..30_000_u64).prop_map(|(path, len)| Op::Truncate { path, len }),
        4 => path().prop_map(|path| Op::Mkdir { path }),
        2 => path().prop_map(|path| Op::Remove { path }),
        4 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => path().prop_map(|path| Op::Symlink { path }),
        1 => (path(), any::<bool>()).prop_map(|(path, executable)| Op::Chmod { path, executable }),
        1 => Just(Op::Remount),
    ]
}

/// What the workspace's own list excludes in half of the runs.
const OWN: &str = "b/**";

/// What depends on more than names has tests of its own, and is left out here:
/// - A link stands for a folder, so a new one called `b` would be local, and one that replaces a stored file would not.
/// - S3 keeps a file that was moved to a backup's name for as long as the backup is there, and a restart shows it again.
fn is_told_elsewhere(root: &Path, op: &Op) -> bool {
    let called = |path: &str, name: &str| path.rsplit('/').next() == Some(name);
    match op {
        Op::Symlink { path } => called(path, "b"),
        Op::Rename { from, to } if root.join(from).is_symlink() => called(to, "b"),
        Op::Rename { from, to } => called(to, "a~") && !called(from, "a~") && root.join(from).is_file(),
        _ => false,
    }
}

fn apply(root: &Path, op: &Op) -> Result<(), i32> {
    let at = |path: &str| root.join(path);
    let result: io::Result<()> = match op {
        op if is_told_elsewhere(root, op) => Ok(()),
        Op::Write { path, len, byte } => fs::write(at(path), vec![*byte; *len]),
        Op::Append { path, len } => OpenOptions::new()
            .append(true)
            .open(at(path))
            .and_then(|mut file| file.write_all(&vec![b'+'; *len])),
        Op::Patch { path, offset, len } => OpenOptions::new()
            .write(true)
            .open(at(path))
            .and_then(|file| file.write_all_at(&vec![b'#'; *len], *offset)),
        Op::Truncate { path, len } => nix::unistd::truncate(&at(path), *len as i64).map_err(io::Error::from),
        Op::Mkdir { path } => fs::create_dir(at(path)),
        Op::Remove { path } if at(path).symlink_metadata().is_ok_and(|m| m.is_dir()) => fs::remove_dir(at(path)),
        Op::Remove { path } => fs::remove_file(at(path)),
        Op::Rename { from, to } => fs::rename(at(from), at(to)),
        Op::Symlink { path } => std::os::unix::fs::symlink("target", at(path)),
        Op::Chmod { path, executable } if at(path).symlink_metadata().is_ok_and(|m| m.is_file()) => {
            fs::set_permissions(
                at(path),
                fs::Permissions::from_mode(if *executable { 0o755 } else { 0o644 }),
            )
        }
        Op::Chmod { .. } | Op::Remount => Ok(()),
    };
    result.map_err(|e| e.raw_os_error().unwrap())
}

fn look(root: &Path, below: &str, out: &mut BTreeMap<String, (String, u32, Vec<u8>)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
        let meta = entry.path().symlink_metadata().unwrap();
        let (kind, content) = if meta.is_dir() {
            look(root, &path, out);
            ("dir", Vec::new())
        } else if meta.is_symlink() {
            (
                "link",
                fs::read_link(entry.path())
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes(),
            )
        } else {
            ("file", fs::read(entry.path()).unwrap())
        };
        out.insert(path, (kind.to_owned(), meta.permissions().mode(), content));
    }
}

fn tree(root: &Path) -> BTreeMap<String, (String, u32, Vec<u8>)> {
    let mut out = BTreeMap::new();
    look(root, "app", &mut out);
    out
}

/// What a restart forgets: paths that never go to S3.
fn forget_local(root: &Path, excludes: &Excludes, model: &BTreeMap<String, (String, u32, Vec<u8>)>) {
    for (path, (kind, ..)) in model.iter().rev() {
        let local = match kind.as_str() {
            "dir" => excludes.local_only(&format!("{path}/")),
            "link" => excludes.local_only(&format!("{path}/")) || excludes.local_only(path),
            _ => excludes.local_only(path),
        };
        let at = root.join(path);
        if local && at.symlink_metadata().is_ok() {
            if kind == "dir" {
                fs::remove_dir_all(at).unwrap()
            } else {
                fs::remove_file(at).unwrap()
            }
        }
    }
}

fn run(ops: Vec<Op>, own: bool) {
    let mut f = Fixture::new();
    let model = tempfile::tempdir().unwrap();
    let mut excludes = Excludes::default();
    for root in [model.path(), f.root()] {
        fs::create_dir(root.join("app")).unwrap();
    }
    if own {
        excludes = excludes.with(&[OWN.to_owned()]).unwrap();
        for root in [model.path(), f.root()] {
            fs::write(root.join("app/workspace.json"), format!("{{\"exclude\": [{OWN:?}]}}")).unwrap();
        }
    }
    for (n, op) in ops.iter().enumerate() {
        let (ours, theirs) = (apply(&f.path("app"), op), apply(&model.path().join("app"), op));
        assert_eq!(ours, theirs, "operation {n}: {op:?} of {ops:?}");
        if matches!(op, Op::Remount) {
            forget_local(model.path(), &excludes, &tree(model.path()));
            f.remount();
        }
    }
    assert!(
        tree(f.root()) == tree(model.path()),
        "{ops:?}\n{:?}\n{:?}",
        brief(f.root()),
        brief(model.path())
    );
    // S3 holds the same files, byte for byte, and no other.
    forget_local(model.path(), &excludes, &tree(model.path()));
    f.unmount();
    let expected: BTreeMap<String, Vec<u8>> = tree(model.path())
        .into_iter()
        .filter(|(_, (kind, ..))| kind == "file")
        .map(|(path, (.., content))| (path, content))
        .collect();
    let found: BTreeMap<String, Vec<u8>> = f
        .keys()
        .into_iter()
        .filter(|key| !key.ends_with('/'))
        .map(|key| (key.clone(), f.object(&key).unwrap()))
        .collect();
    assert!(found == expected, "{ops:?}\n{:?}\n{:?}", found.keys(), expected.keys());
}

fn brief(root: &Path) -> Vec<String> {
    tree(root)
        .into_iter()
        .map(|(path, (kind, mode, content))| format!("{path} {kind} {mode:o} {}", content.len()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_operations_behave_as_on_a_disk(ops in prop::collection::vec(op(), 1..60), own in any::<bool>()) {
        run(ops, own);
    }
}
