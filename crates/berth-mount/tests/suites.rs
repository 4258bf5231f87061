//! Suites that others wrote for file systems, on the mount.
//!
//! `pjdfstest` asks some 400 questions about what POSIX promises; `fsx` reads, writes, maps and cuts one file at random and
//! knows what must be in it. `BERTH_SUITES=full` (`cargo xtask suites --full`) makes `fsx` as long as it is before a release.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use berth_harness::tool;
use fixture::Fixture;

/// What `pjdfstest` asks that objects cannot do: the beginning of cases' names, and why they fail.
const CANNOT: &[(&str, &str)] = &[
    ("link::", HARD_LINK),
    ("rename::preserve_metadata::", HARD_LINK),
    ("rename::to_multiply_linked::", HARD_LINK),
    ("unlink::unchanged_ctime_failed::", HARD_LINK),
    ("unlink::update_ctime_success::", HARD_LINK),
    ("chmod::enametoolong_path", LONG_PATH),
    ("chown::enametoolong_path", LONG_PATH),
    ("chown::lchown::enametoolong_path", LONG_PATH),
    ("mkdir::enametoolong_path", LONG_PATH),
    ("mkfifo::enametoolong_path", LONG_PATH),
    ("mknod::enametoolong_path", LONG_PATH),
    ("mknod::privileged::enametoolong_path", LONG_PATH),
    ("open::enametoolong_path", LONG_PATH),
    ("rename::enametoolong_path", LONG_PATH),
    ("rmdir::enametoolong_path", LONG_PATH),
    ("symlink::enametoolong_path", LONG_PATH),
    ("truncate::enametoolong_path", LONG_PATH),
    ("unlink::enametoolong_path", LONG_PATH),
];
const HARD_LINK: &str = "it makes a hard link, and an object has one key";
const LONG_PATH: &str = "it makes a path of 4,095 bytes, and a key has at most 1,024";

/// What `pjdfstest` itself cannot ask on Linux.
const SKIPPED: &[(&str, &str)] = &[("link::link_count_max", "the kernel does not say what LINK_MAX is")];

/// What a case said.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Ok,
    Failed(String),
    Skipped(String),
}

fn make_public(path: &Path) {
    // The cases become other users; a test's own folder is private.
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// Runs the cases whose name contains `only` in `folder`, with `other` as another file system.
fn pjdfstest(folder: &Path, other: &Path, notes: &Path, only: Option<&str>) -> BTreeMap<String, Verdict> {
    // Cases that remount read-only want the file system for themselves.
    let remount = only.is_some();
    let config = notes.join("pjdfstest.toml");
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nutimensat = {{}}\nutime_now = {{}}\nrename_ctime = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {remount}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n"
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new("timeout");
    command.arg("300").arg(tool("pjdfstest")).arg("-c").arg(&config);
    command.arg("-p").arg(folder).arg("-s").arg(other).args(only);
    // mount(8) gives `fuse.berth` to a helper that takes "berth" for a program to start; a remount needs no helper.
    let programs = notes.join("programs");
    fs::create_dir_all(&programs).unwrap();
    fs::write(programs.join("mount"), "#!/bin/sh\nexec /bin/mount -i \"$@\"\n").unwrap();
    fs::set_permissions(programs.join("mount"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    let done = command.output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        text.contains("Summary: "),
        "pjdfstest did not come to its end ({}):\n{text}\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    verdicts(&text)
}

/// Reads `NAME   ok`, `NAME   FAILED` and `NAME   skipped`; what is said about a case follows, indented.
fn verdicts(text: &str) -> BTreeMap<String, Verdict> {
    let mut all: BTreeMap<String, Verdict> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some(more) = line.strip_prefix('\t') {
            if let Some(Verdict::Failed(why) | Verdict::Skipped(why)) = all.get_mut(&last) {
                why.push_str(more);
                why.push(' ');
            }
        } else if let [name, verdict @ ("ok" | "FAILED" | "skipped")] = words[..]
            && name.contains("::")
        {
            last = name.to_owned();
            let verdict = match verdict {
                "ok" => Verdict::Ok,
                "FAILED" => Verdict::Failed(String::new()),
                _ => Verdict::Skipped(String::new()),
            };
            all.insert(last.clone(), verdict);
        }
    }
    all
}

/// A tmpfs for comparison; unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap();
        let flags = nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOSUID;
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), flags, Some("mode=777")).unwrap();
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Both runs: everything, and what needs the file system for itself.
fn all_cases(folder: &Path, other: &Path, notes: &Path) -> BTreeMap<String, Verdict> {
    let mut all = pjdfstest(folder, other, notes, None);
    all.extend(pjdfstest(folder, other, notes, Some("erofs")));
    all
}

#[test]
fn pjdfstest_finds_nothing_but_what_objects_cannot_do() {
    let f = Fixture::new();
    let notes = f.root().parent().unwrap().to_owned();
    make_public(&notes);
    let (tmpfs, other) = (Tmpfs::at(notes.join("tmpfs")), Tmpfs::at(notes.join("other")));
    fs::create_dir(f.path("app")).unwrap();
    make_public(&f.path("app"));
    let ours = all_cases(&f.path("app"), &other.0, &notes);
    let theirs = all_cases(&tmpfs.0, &other.0, &notes);
    assert!(ours.len() > 390, "{} cases", ours.len());
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());

    let listed = |list: &[(&str, &str)], name: &str| list.iter().any(|(start, _)| name.starts_with(start));
    // Of the cases about link(2), those that want it refused pass.
    let refused = |name: &str| name.starts_with("link::") && (name.contains("::e") || name.contains("ctime_fails"));
    let mut wrong = Vec::new();
    for (name, verdict) in &ours {
        let right = match verdict {
            Verdict::Ok => refused(name) || !listed(CANNOT, name),
            Verdict::Failed(_) => listed(CANNOT, name),
            Verdict::Skipped(_) => listed(SKIPPED, name),
        };
        if !right {
            wrong.push(format!("{name}: {verdict:?}; tmpfs: {:?}", theirs[name]));
        }
    }
    let count = |of: &BTreeMap<String, Verdict>, is: fn(&Verdict) -> bool| of.values().filter(|v| is(v)).count();
    for (what, of) in [("mount", &ours), ("tmpfs", &theirs)] {
        eprintln!(
            "pjdfstest, {what}: {} ok, {} failed, {} skipped",
            count(of, |v| *v == Verdict::Ok),
            count(of, |v| matches!(v, Verdict::Failed(_))),
            count(of, |v| matches!(v, Verdict::Skipped(_))),
        );
    }
    assert!(wrong.is_empty(), "{} unexpected:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn fsx_reads_what_it_wrote() {
    let full = std::env::var("BERTH_SUITES").is_ok_and(|size| size == "full");
    let operations = if full { "1000000" } else { "10000" };
    let mut f = Fixture::new();
    fs::create_dir(f.path("app")).unwrap();
    let notes = f.root().parent().unwrap().to_owned();
    let config = notes.join("fsx.toml");
    // Holes cannot be punched (EOPNOTSUPP); all else that fsx knows is asked for.
    fs::write(
        &config,
        "[weights]\nclose_open = 1\ninvalidate = 1\nmapread = 10\nmapwrite = 10\nread = 10\nwrite = 10\ntruncate = 10\n\
         fsync = 1\nfdatasync = 1\nposix_fallocate = 1\nsendfile = 1\nposix_fadvise = 1\ncopy_file_range = 1\n",
    )
    .unwrap();
    for seed in 1..=10 {
        let mut command = Command::new("timeout");
        command.arg(if full { "3600" } else { "60" }).arg(tool("fsx"));
        command
            .args(["-N", operations, "-S", &seed.to_string(), "-f"])
            .arg(&config);
        command.arg("-P").arg(&notes).arg(f.path(&format!("app/fsx-{seed}")));
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        let end: Vec<&str> = said.lines().rev().take(30).collect();
        assert!(
            done.status.success(),
            "seed {seed} ({}):\n{}",
            done.status,
            end.join("\n")
        );
        assert!(said.contains("A-OK"), "seed {seed}:\n{}", end.join("\n"));
    }
    // What each run left is in S3 too.
    let left = |f: &Fixture| -> Vec<(String, Vec<u8>)> {
        (1..=10)
            .map(|seed| format!("app/fsx-{seed}"))
            .map(|path| (path.clone(), fs::read(f.path(&path)).unwrap()))
            .collect()
    };
    let before = left(&f);
    f.remount();
    for ((path, now), (_, then)) in left(&f).iter().zip(&before) {
        assert!(now == then, "{path} is another after a restart");
    }
}
