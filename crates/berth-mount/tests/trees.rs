//! Whole source trees of real projects: cloned, checked out, unpacked, copied, installed; and folders of ten thousand files.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use fixture::{Fixture, Node, differing, folder, need, sources};

/// Together a little over a thousand files.
const CRATES: [&str; 6] = ["tokio", "futures-util", "tokio-util", "hyper", "rustls", "h2"];

/// Copies the sources of real crates to `$OUT/sources`, one folder each.
fn real_sources(f: &Fixture) -> usize {
    let top = f.out("sources");
    fs::create_dir(&top).unwrap();
    for (name, source) in CRATES.iter().zip(sources(&CRATES)) {
        let source = source.display();
        f.sh(&format!(
            "cp -r '{source}' \"$OUT/sources/{name}\" && chmod -R u+w \"$OUT/sources/{name}\""
        ));
    }
    let files = folder(&top).len();
    assert!(files >= 1000, "{files} files are no large tree");
    files
}

/// Says how long something took: the figures are looked at, not enforced.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let since = Instant::now();
    let result = work();
    eprintln!("{what}: {:.2} s", since.elapsed().as_secs_f64());
    result
}

/// A repository with branches at `$OUT/repository`: `main` has all the sources, `other` moves, removes, changes and adds.
const REPOSITORY: &str = r#"
    export GIT_AUTHOR_DATE='2024-01-01T00:00:00Z' GIT_COMMITTER_DATE='2024-01-01T00:00:00Z'
    cp -r "$OUT/sources" "$OUT/repository" && cd "$OUT/repository"
    git init -q -b main . && git config user.email a@example.com && git config user.name a
    git add -f tokio && git commit -qm 'first crate'
    git add -f . && git commit -qm 'all crates'
    git tag -a v1 -m v1
    git checkout -qb other
    git mv tokio/src tokio/source && git rm -qr h2 && ln -s tokio/source link && mkdir scripts
    printf '#!/bin/sh\necho run\n' > scripts/run.sh && chmod 755 scripts/run.sh
    find futures-util -name '*.rs' -exec sed -i '1i // changed' {} +
    git add -A -f && git commit -qm 'move, remove, change'
    git checkout -q main
"#;

#[test]
fn a_repository_of_a_thousand_files_is_cloned_and_checked_out() {
    need("git", "git");
    let f = Fixture::new();
    real_sources(&f);
    f.sh(REPOSITORY);
    timed("git clone", || f.sh(r#"git clone -q "file://$OUT/repository" app"#));
    let clean = |branch: &str| {
        f.sh(&format!(
            r#"cd app && test "$(git branch --show-current)" = {branch} && test -z "$(git status --porcelain)"
            rm -rf "$OUT/exported" && mkdir "$OUT/exported" && git archive {branch} | tar -xf - -C "$OUT/exported"
            diff -r --no-dereference --exclude=.git "$OUT/exported" ."#
        ));
        timed("S3 compared", || f.s3_equals_the_mount("app"));
    };
    clean("main");
    timed("git checkout", || f.sh("cd app && git checkout -q other"));
    clean("other");
    assert_eq!(f.sh("cd app && scripts/run.sh && readlink link"), "run\ntokio/source\n");
    timed("git checkout, back", || f.sh("cd app && git checkout -q main"));
    clean("main");
    // Work goes on: what git does while one works, all with `.git` on the mount.
    f.sh(
        r#"cd app && git config user.email a@example.com && git config user.name a
        echo '// mine' >> hyper/src/lib.rs && git stash -q && test -z "$(git status --porcelain)" && git stash pop -q
        git commit -qam mine && git merge -q -m merged other && git reset -q --hard HEAD~1 && git gc -q
        git worktree list | wc -l | grep -qx 1 && git fsck --strict --no-dangling && git clean -qxfd"#,
    );
    clean("main");
    assert!(f.keys().iter().all(|key| !key.contains("/.git/")));
    assert!(f.mount().local_usage().files > 10, ".git is on this host");
    timed("rm -r", || f.sh("rm -r app"));
    assert_eq!(f.objects("app").len(), 0);
}

#[test]
fn a_tree_of_a_thousand_files_is_unpacked_and_compared_by_tar() {
    need("tar", "tar");
    let mut f = Fixture::new();
    real_sources(&f);
    f.sh(r#"touch -d '2021-03-04 05:06:07.891011' "$OUT/sources/tokio/Cargo.toml"
        tar --format=posix -C "$OUT" -cf "$OUT/sources.tar" sources && mkdir app"#);
    timed("tar -x", || f.sh(r#"tar -C app -xpf "$OUT/sources.tar""#));
    // tar compares contents, bits, owners and times.
    f.sh(r#"tar -C app --compare -f "$OUT/sources.tar""#);
    f.s3_equals_the_mount("app");
    f.remount();
    f.sh(r#"tar -C app --compare -f "$OUT/sources.tar""#);
    f.sh(
        r#"tar -cf "$OUT/back.tar" app && mkdir "$OUT/back" && tar -C "$OUT/back" -xf "$OUT/back.tar"
        diff -r "$OUT/sources" "$OUT/back/app/sources""#,
    );
}

#[test]
fn rsync_by_checksum_copies_what_differs_both_ways() {
    need("rsync", "rsync");
    let mut f = Fixture::new();
    let files = real_sources(&f);
    timed("rsync --checksum", || f.sh(r#"rsync -rc "$OUT/sources/" app/"#));
    assert_eq!(f.sh(r#"rsync -rci "$OUT/sources/" app/"#), "", "nothing differs");
    f.s3_equals_the_mount("app");
    // Same size, same time: only the checksum tells.
    f.sh(r#"cd "$OUT/sources/tokio" && cp -p Cargo.toml before && sed -i '1s/^./@/' Cargo.toml && touch -r before Cargo.toml
        rm before && touch -r Cargo.toml "$OLDPWD/app/tokio/Cargo.toml""#);
    assert_eq!(
        f.sh(r#"rsync -rt --out-format=%n "$OUT/sources/tokio/" app/tokio/ | grep -x Cargo.toml || true"#),
        ""
    );
    assert_eq!(
        f.sh(r#"rsync -rc --out-format=%n "$OUT/sources/" app/"#),
        "tokio/Cargo.toml\n"
    );
    f.remount();
    assert_eq!(
        f.sh(r#"rsync -rci "$OUT/sources/" app/"#),
        "",
        "nothing differs after a restart"
    );
    f.sh(r#"rsync -rc app/ "$OUT/back/""#);
    let back = folder(&f.out("back"));
    assert_eq!(back.len(), files);
    assert!(differing(&folder(&f.out("sources")), &back).is_empty());
}

/// What the packages are for is no matter: a few levels of dependencies, links in `.bin`, and some hundred files.
const PACKAGE: &str = r#"{
  "name": "app", "version": "1.0.0", "private": true,
  "dependencies": { "express": "4.21.2", "semver": "7.6.3" }
}"#;

#[test]
fn npm_installs_on_the_mount_what_it_installs_elsewhere() {
    let f = Fixture::new();
    let node = Node::of(&f);
    fs::create_dir(f.path("app")).unwrap();
    fs::write(f.path("app/package.json"), PACKAGE).unwrap();
    let npm = "npm --no-audit --no-fund --no-update-notifier --loglevel=error";
    node.sh(&f, &format!("cd app && {npm} install --package-lock-only"));
    node.sh(
        &f,
        &format!("mkdir \"$OUT/plain\" && cp app/*.json \"$OUT/plain\" && cd \"$OUT/plain\" && {npm} ci"),
    );
    timed("npm ci", || {
        node.sh(&f, &format!("cd app && {npm} ci --prefer-offline"))
    });
    let same = "diff -r --no-dereference \"$OUT/plain\" app";
    f.sh(same);
    let installed = folder(&f.path("app/node_modules")).len();
    assert!(installed > 300, "{installed} files are no installation");
    node.sh(
        &f,
        &format!("cd app && {npm} ls --all && node_modules/.bin/semver 1.2.3 && node -e \"require('express')\""),
    );
    timed("npm ci, over an installation", || {
        node.sh(&f, &format!("cd app && {npm} ci --prefer-offline"))
    });
    f.sh(same);
    assert_eq!(f.keys(), ["app/", "app/package-lock.json", "app/package.json"]);
    let usage = f.mount().local_usage();
    assert_eq!(usage.files, installed as u64, "{usage:?}");
    f.sh("rm -r app/node_modules");
    assert_eq!(f.mount().local_usage().files, 0);
}

const MANY: usize = 10_000;
/// Files are made by so many threads, as builds make them.
const MAKERS: usize = 8;

fn make_many(folder: &Path) {
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            scope.spawn(move || {
                for n in (maker..MANY).step_by(MAKERS) {
                    fs::write(folder.join(format!("file-{n}")), format!("content {n}")).unwrap();
                }
            });
        }
    });
}

/// Lists and stats in this process and in others'; all must agree.
fn look_at_many(f: &Fixture, name: &str) {
    let entries: Vec<_> = fs::read_dir(f.path(name)).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len(), MANY);
    let seen: u64 = entries.iter().map(|entry| entry.metadata().unwrap().len()).sum();
    let wanted: u64 = (0..MANY).map(|n| format!("content {n}").len() as u64).sum();
    assert_eq!(seen, wanted);
    let names: HashSet<_> = entries.iter().map(fs::DirEntry::file_name).collect();
    assert_eq!(names.len(), MANY, "no name twice");
    let counts = f.sh(&format!(
        "ls -f {name} | wc -l; find {name} -type f -size -20c | wc -l; ls -l {name} | wc -l"
    ));
    assert_eq!(counts, format!("{}\n{MANY}\n{}\n", MANY + 2, MANY + 1));
    assert_eq!(
        f.sh(&format!("cat {name}/file-{}", MANY - 1)),
        format!("content {}", MANY - 1)
    );
}

#[test]
fn a_folder_of_ten_thousand_files_is_made_listed_and_removed() {
    let mut f = Fixture::new();
    fs::create_dir_all(f.path("app/many")).unwrap();
    timed("10,000 files made", || make_many(&f.path("app/many")));
    timed("looked at", || look_at_many(&f, "app/many"));
    timed("in S3", || f.settle_within(Duration::from_secs(60)));
    assert_eq!(f.objects("app").len(), MANY);
    timed("mounted again", || f.remount());
    timed("looked at again", || look_at_many(&f, "app/many"));
    f.s3_equals_the_mount("app");
    // A listing that others remove from while it is read shows each of the rest once.
    let mut listing = fs::read_dir(f.path("app/many")).unwrap();
    let mut seen: Vec<_> = listing
        .by_ref()
        .take(100)
        .map(|entry| entry.unwrap().file_name())
        .collect();
    f.sh("cd app/many && rm file-[0-4]*");
    seen.extend(listing.map(|entry| entry.unwrap().file_name()));
    let all = seen.len();
    let seen: HashSet<_> = seen.into_iter().map(|name| name.into_string().unwrap()).collect();
    assert_eq!(seen.len(), all, "no name twice");
    let left = (0..MANY).filter(|n| !"01234".contains(&n.to_string()[..1]));
    for name in left.map(|n| format!("file-{n}")) {
        assert!(seen.contains(&name), "{name} was not listed");
    }
    timed("removed", || f.sh("rm -r app/many"));
    assert_eq!(fs::read_dir(f.path("app")).unwrap().count(), 0);
    timed("removed in S3", || f.settle_within(Duration::from_secs(60)));
    assert_eq!(f.objects("app").len(), 0);
}

#[test]
fn a_folder_of_ten_thousand_files_that_stay_here_is_as_quick() {
    let f = Fixture::new();
    fs::create_dir_all(f.path("app/node_modules")).unwrap();
    timed("10,000 local files made", || make_many(&f.path("app/node_modules")));
    timed("looked at", || look_at_many(&f, "app/node_modules"));
    assert_eq!(f.mount().local_usage().files, MANY as u64);
    timed("renamed", || {
        f.sh("mv app/node_modules app/vendor && mv app/vendor app/node_modules")
    });
    timed("removed", || f.sh("rm -r app/node_modules"));
    assert_eq!(f.mount().local_usage().files, 0);
    assert_eq!(f.objects("app").len(), 0);
}
