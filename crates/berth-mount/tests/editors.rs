//! Editors that people use, run as people run them: on a terminal, or by the program that VS Code saves with.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fixture;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use fixture::{Fixture, Node, need, wait_for};

/// Keys of a terminal.
const ENTER: &str = "\r";
const ESCAPE: &str = "\x1b";
const CTRL_O: &str = "\x0f";
const CTRL_X: &str = "\x18";

/// Waits until S3 has `text` at `key`.
#[track_caller]
fn s3_has(f: &Fixture, key: &str, text: &str) {
    wait_for("S3 has what was saved", || f.text(key).as_deref() == Some(text));
}

/// Keys that were stored, in order, since the feed was asked for.
fn stored(feed: &mut tokio::sync::broadcast::Receiver<berth_store::Change>) -> Vec<String> {
    std::iter::from_fn(|| feed.try_recv().ok())
        .map(|change| change.key().to_owned())
        .filter(|key| !key.starts_with(".berth/"))
        .collect()
}

#[test]
fn nano_saves_new_and_old_files_while_it_stays_open() {
    need("nano", "nano");
    let f = Fixture::with(|_| {}, |put| put("app/old file.txt", b"first\n"));
    let mut nano = f.terminal("nano --ignorercfiles 'app/n\u{e4}u.txt'");
    nano.shows("New File");
    nano.types("typed");
    nano.shows("typed");
    nano.types(CTRL_O);
    nano.shows("File Name to Write");
    nano.types(ENTER);
    nano.shows("Wrote 1 line");
    s3_has(&f, "app/n\u{e4}u.txt", "typed\n");
    nano.types(" more");
    nano.shows("more");
    nano.types(CTRL_O);
    nano.shows("File Name to Write");
    nano.types(ENTER);
    nano.shows("Wrote 1 line");
    nano.types(CTRL_X);
    nano.ends();
    assert_eq!(f.text("app/n\u{e4}u.txt").as_deref(), Some("typed more\n"));

    // With a lock file and a backup, which both stay on this host.
    let mut nano = f.terminal("nano --ignorercfiles --locking --backup 'app/old file.txt'");
    nano.shows("first");
    assert!(f.path("app/.old file.txt.swp").exists(), "nano makes a lock file");
    nano.types("the ");
    nano.shows("the ");
    nano.types(CTRL_X);
    nano.shows("Save modified buffer");
    nano.types("y");
    nano.shows("File Name to Write");
    nano.types(ENTER);
    nano.ends();
    assert_eq!(f.sh("cat 'app/old file.txt~'"), "first\n");
    assert_eq!(f.text("app/old file.txt").as_deref(), Some("the first\n"));
    assert_eq!(f.keys(), ["app/n\u{e4}u.txt", "app/old file.txt"]);
}

#[test]
fn vim_on_a_terminal_saves_in_each_way_of_keeping_a_backup() {
    need("vi", "vim-tiny");
    for (way, backup) in [("yes", "nobackup"), ("no", "nobackup"), ("auto", "backup")] {
        let f = Fixture::with(
            |_| {},
            |put| {
                put("app/run.sh", b"one\n");
                put("app/other.sh", b"");
            },
        );
        fs::set_permissions(f.path("app/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        let number = fs::metadata(f.path("app/run.sh")).unwrap().ino();
        let mut feed = f.store.changes();
        let mut vi = f.terminal(
            // Files below /tmp, as this one, are skipped unless told otherwise.
            &format!("vi -u NONE -N -c 'set writebackup backupskip= backupcopy={way} {backup}' app/run.sh"),
        );
        vi.shows("\"app/run.sh\"");
        assert!(f.path("app/.run.sh.swp").exists(), "vi makes a swap file");
        let mut text = String::from("one");
        for word in ["two", "three"] {
            vi.types(&format!("A {word}{ESCAPE}:w{ENTER}"));
            vi.shows("written");
            text = format!("{text} {word}");
            s3_has(&f, "app/run.sh", &format!("{text}\n"));
            assert_eq!(f.sh("cat app/run.sh"), format!("{text}\n"), "{way}");
        }
        vi.types(&format!(":q{ENTER}"));
        vi.ends();
        let after = fs::metadata(f.path("app/run.sh")).unwrap();
        assert_eq!(after.mode() & 0o777, 0o755, "{way}");
        if way == "yes" {
            assert_eq!(after.ino(), number, "written in place");
        }
        assert_eq!(f.path("app/run.sh~").exists(), backup == "backup");
        assert_eq!(f.keys(), ["app/other.sh", "app/run.sh"], "no swap or backup file in S3");
        let stored = stored(&mut feed);
        assert!(stored.iter().all(|key| key == "app/run.sh"), "{way}: {stored:?}");
    }
}

#[test]
fn what_a_killed_vim_left_is_recovered_from_its_swap_file() {
    need("vi", "vim-tiny");
    let f = Fixture::with(|_| {}, |put| put("app/a.txt", b"saved\n"));
    let mut vi = f.terminal("vi -u NONE -N app/a.txt");
    vi.shows("\"app/a.txt\"");
    vi.types(&format!("A and typed{ESCAPE}:preserve{ENTER}"));
    vi.shows("File preserved");
    vi.kill();
    assert_eq!(f.text("app/a.txt").as_deref(), Some("saved\n"));
    assert!(f.path("app/.a.txt.swp").exists(), "the swap file outlives vi");
    f.sh("vi -es -u NONE -N -r app/a.txt -c wq </dev/null");
    assert_eq!(f.text("app/a.txt").as_deref(), Some("saved and typed\n"));
}

#[test]
fn sed_in_place_over_many_files_leaves_only_them() {
    need("sed", "sed");
    let f = Fixture::with(
        |_| {},
        |put| {
            for n in 0..100 {
                put(&format!("app/{n}.conf"), b"port = 80\n");
            }
        },
    );
    f.sh("chmod 600 app/7.conf && ln -s 8.conf app/link");
    let before = f.keys();
    let mut feed = f.store.changes();
    f.sh("sed -i s/80/8080/ app/*.conf && sed -i --follow-symlinks s/port/PORT/ app/link");
    let wanted: Vec<String> = (0..100).map(|n| format!("app/{n}.conf")).collect();
    for key in &wanted {
        let word = if key == "app/8.conf" { "PORT" } else { "port" };
        assert_eq!(f.text(key), Some(format!("{word} = 8080\n")), "{key}");
    }
    assert_eq!(f.keys(), before);
    let stored = stored(&mut feed);
    assert!(stored.iter().all(|key| wanted.contains(key)), "{stored:?}");
    assert_eq!(f.sh("stat -c %a app/7.conf; readlink app/link"), "600\n8.conf\n");
    f.sh("sed -i.bak 's/8080/9090/' app/9.conf && test \"$(cat app/9.conf.bak)\" = 'port = 8080'");
    assert_eq!(f.text("app/9.conf").as_deref(), Some("port = 9090\n"));
    assert_eq!(f.text("app/9.conf.bak").as_deref(), Some("port = 8080\n"));
}

/// How VS Code's file service saves: `open` with `w`, write, `fdatasync`, `close`; and, where it is asked to be atomic, the
/// same to NAME.vsctmp, renamed over NAME.
const VS_CODE: &str = r#"
const fs = require('fs');
const { promisify } = require('util');
const [open, write, sync, close] = ['open', 'writeFile', 'fdatasync', 'close'].map(name => promisify(fs[name]));

async function save(path, text) {
  const file = await open(path, 'w', 0o666);
  try { await write(file, text); await sync(file); } finally { await close(file); }
}
async function saveAtomic(path, text) {
  await save(path + '.vsctmp', text);
  await fs.promises.rename(path + '.vsctmp', path);
}
const same = (path, text) => {
  if (fs.readFileSync(path, 'utf8') !== text) throw new Error(`${path} is another`);
};
(async () => {
  const big = 'const line = "ünïcode";\n'.repeat(100000);
  await save('app/old.js', 'shorter'); same('app/old.js', 'shorter');
  await save('app/new.js', big); same('app/new.js', big);
  await fs.promises.writeFile('app/new.js', 'cut', { flag: 'w' }); same('app/new.js', 'cut');
  await saveAtomic('app/atomic.js', 'first'); same('app/atomic.js', 'first');
  await saveAtomic('app/atomic.js', big); same('app/atomic.js', big);
  for (let n = 0; n <= 30; n++) { await save('app/often.js', `save ${n}`); same('app/often.js', `save ${n}`); }
  for (let n = 0; n <= 30; n++) { await saveAtomic('app/often-atomic.js', `save ${n}`); }
  // "Save all": many at the same time.
  await Promise.all([...Array(50).keys()].map(n => (n % 2 ? save : saveAtomic)(`app/all/${n}.js`, `file ${n}`)));
  if (fs.readdirSync('app/all').length !== 50) throw new Error('not 50 files');
  // Who reads sees the whole old text or the whole new one while atomic saves go on.
  let saving = true;
  const reading = (async () => {
    let reads = 0;
    while (saving || reads < 20) {
      const seen = await fs.promises.readFile('app/atomic.js', 'utf8');
      if (seen !== big && seen !== 'small') throw new Error(`${seen.length} characters`);
      reads++;
    }
  })();
  for (let n = 0; n < 40; n++) { await saveAtomic('app/atomic.js', n % 2 ? 'small' : big); }
  saving = false;
  await reading;
})().catch(error => { console.error(error); process.exit(1); });
"#;

#[test]
fn node_saves_as_vs_code_does() {
    let f = Fixture::with(
        |_| {},
        |put| {
            put("app/old.js", b"a much longer text than the new one");
            put("app/all/0.js", b"old");
        },
    );
    let node = Node::of(&f);
    let mut feed = f.store.changes();
    fs::set_permissions(f.path("app/old.js"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(f.out("save.js"), VS_CODE).unwrap();
    node.sh(&f, r#"node "$OUT/save.js""#);
    s3_has(&f, "app/old.js", "shorter");
    s3_has(&f, "app/new.js", "cut");
    s3_has(&f, "app/atomic.js", "small");
    s3_has(&f, "app/often.js", "save 30");
    s3_has(&f, "app/often-atomic.js", "save 30");
    for n in 0..50 {
        assert_eq!(f.text(&format!("app/all/{n}.js")), Some(format!("file {n}")));
    }
    assert_eq!(fs::metadata(f.path("app/old.js")).unwrap().mode() & 0o777, 0o755);
    f.s3_equals_the_mount("app");
    assert_eq!(f.keys().len(), 55);
    let temporary: Vec<String> = stored(&mut feed)
        .into_iter()
        .filter(|key| key.ends_with(".vsctmp"))
        .collect();
    assert!(temporary.is_empty(), "temporary files were sent: {temporary:?}");
}
