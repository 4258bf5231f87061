//! `berth import` and `berth export` through the real binary, against an embedded S3 server behind a proxy that can fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_harness::{
    Daemon, Output,
    fault_proxy::{Fault, FaultProxy, Reach, Rule},
    wait,
};
use berth_store::{Access, EmbeddedConfig, EmbeddedServer, Precondition, Store, StoreConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");
/// Names that are excluded by default, as `find` and `diff` take them.
const EXCLUDED: [&str; 4] = ["node_modules", ".env*", "*.log", ".git"];

/// A server, the proxy before it, a folder `shop`, and a configuration that leads there.
struct World {
    dir: tempfile::TempDir,
    proxy: FaultProxy,
    store: Store,
    runtime: tokio::runtime::Runtime,
    _server: EmbeddedServer,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("berth-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let config = EmbeddedConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().join("s3"),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            bucket: "workspaces".into(),
        };
        let server = runtime.block_on(EmbeddedServer::start(config)).unwrap();
        let store = StoreConfig {
            endpoint: Some(format!("http://{}", server.local_addr())),
            region: String::new(),
            bucket: "workspaces".into(),
            access_key: "KEY".into(),
            secret_key: "secret".into(),
            session_token: None,
            path_style: true,
            poll_interval: Duration::from_secs(15),
        };
        let store = runtime.block_on(Store::open(store, Access::Write)).unwrap();
        let proxy = FaultProxy::start(server.local_addr(), 7).unwrap();
        let world = Self {
            dir,
            proxy,
            store,
            runtime,
            _server: server,
        };
        world.configure("secret");
        fs::create_dir(world.path("shop")).unwrap();
        world
    }

    fn configure(&self, secret: &str) {
        let text = format!(
            "[s3]\nendpoint = \"{}\"\naccess_key = \"KEY\"\nsecret_key = \"{secret}\"\n",
            self.proxy.endpoint()
        );
        fs::write(self.path("berth.toml"), text).unwrap();
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path("shop").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Nothing of the environment but PATH: keys in it would win over the file.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BERTH);
        command
            .current_dir(self.dir.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.arg("--config").arg(self.path("berth.toml")).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn berth(&self, arguments: &[&str]) -> Output {
        ended(self.command(arguments).spawn().unwrap())
    }

    #[track_caller]
    fn done(&self, arguments: &[&str]) -> Output {
        let done = self.berth(arguments);
        assert_eq!(done.code, 0, "{arguments:?}\n{}{}", done.stdout, done.stderr);
        done
    }

    fn json(&self, arguments: &[&str]) -> (i32, serde_json::Value) {
        let done = self.berth(arguments);
        let value =
            serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", done.stdout, done.stderr));
        (done.code, value)
    }

    /// Size by key, of all but the index.
    fn objects(&self) -> BTreeMap<String, u64> {
        let listed = self.runtime.block_on(self.store.list("")).unwrap();
        let files = listed.into_iter().filter(|object| !object.key.starts_with(".berth/"));
        files.map(|object| (object.key, object.size)).collect()
    }

    fn put(&self, key: &str, body: &'static str) {
        self.runtime
            .block_on(self.store.put(key, body.into(), Precondition::None))
            .unwrap();
    }

    fn body(&self, key: &str) -> Vec<u8> {
        self.runtime.block_on(self.store.get(key)).unwrap().1.to_vec()
    }

    fn puts(&self) -> usize {
        self.proxy.count("PUT", "/workspaces/shop/") + self.proxy.count("PUT", "/index/")
    }

    /// A tree of a thousand small files, and everything a person may have beside them.
    fn tree(&self) {
        for number in 0..1000 {
            self.write(&format!("src/{}/{number}.js", number % 20), format!("file {number}"));
        }
        for odd in [
            "ä ö ü.txt",
            "a+b %41&=?#.txt",
            "日本/語.md",
            "new\nline",
            "'\"quotes\"'",
            "back\\slash",
            "trailing ",
        ] {
            self.write(&format!("odd/{odd}"), odd);
        }
        self.write(&format!("odd/{}", "n".repeat(255)), "long");
        self.write("empty-file", "");
        self.write("node_modules/left/pad.js", "excluded");
        self.write("src/deep/node_modules/x.js", "excluded");
        self.write(".env", "SECRET=1");
        self.write("debug.log", "excluded");
        self.write(".git/HEAD", "excluded");
        self.write("run.sh", "#!/bin/sh");
        let shop = self.path("shop");
        fs::set_permissions(shop.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(shop.join("empty-file"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir_all(shop.join("empty/deep")).unwrap();
        fs::set_permissions(shop.join("empty"), fs::Permissions::from_mode(0o750)).unwrap();
        symlink("run.sh", shop.join("link")).unwrap();
        symlink("../../nowhere", shop.join("odd/dangling")).unwrap();
        fs::hard_link(shop.join("run.sh"), shop.join("hard")).unwrap();
    }
}

fn ended(child: Child) -> Output {
    let done = child.wait_with_output().unwrap();
    let signal = || std::os::unix::process::ExitStatusExt::signal(&done.status).unwrap_or(0);
    Output {
        code: done.status.code().unwrap_or_else(|| 128 + signal()),
        stdout: String::from_utf8_lossy(&done.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&done.stderr).into_owned(),
    }
}

fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Kind, bits, time and target of everything that is not excluded.
fn listing(folder: &Path) -> String {
    let names = EXCLUDED.map(|name| format!("-name '{name}'")).join(" -o ");
    let script = format!(r"find . -mindepth 1 \( {names} \) -prune -o -printf '%P %y %m %T@ %l\0' | sort -z");
    let done = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(
        done.status.success() && !done.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8_lossy(&done.stdout).replace('\0', "\n")
}

#[track_caller]
fn assert_same_trees(ours: &Path, theirs: &Path) {
    let excluded = EXCLUDED.iter().flat_map(|name| ["-x", name]);
    let done = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args(excluded)
        .arg(ours)
        .arg(theirs)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    let (ours, theirs) = (listing(ours), listing(theirs));
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

#[test]
fn a_thousand_files_go_in_without_the_excluded_ones_and_come_back_the_same() {
    let world = World::new();
    world.tree();
    let done = world.done(&["import", "shop"]);
    assert!(done.stdout.contains("Checksums agree: 1011 files."), "{}", done.stdout);
    assert!(
        done.stdout.contains("left out: node_modules/**: 2 files"),
        "{}",
        done.stdout
    );
    assert!(done.stdout.contains("left out: .env*: 1 file"), "{}", done.stdout);
    assert!(done.stdout.contains("hard links: 2 files"), "{}", done.stdout);
    assert_eq!(done.stderr, "", "no progress bar where there is no terminal");
    let objects = world.objects();
    assert_eq!(objects.len(), 1011);
    assert_eq!(objects["shop/odd/a+b %41&=?#.txt"], 15);
    assert!(objects.contains_key("shop/odd/new\nline") && !objects.keys().any(|key| key.contains("node_modules")));
    assert_eq!(world.body("shop/src/7/7.js"), b"file 7");
    assert_eq!(world.puts(), 1012);
    world.proxy.forget();
    let again = world.done(&["import", "shop"]);
    assert!(
        again.stdout.contains("0 files moved") && again.stdout.contains("1011 there already"),
        "{}",
        again.stdout
    );
    assert_eq!(world.puts(), 0, "what is there with the same content is not sent again");
    world.done(&["export", "shop", "out"]);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
    world.proxy.forget();
    let again = world.done(&["export", "--all", "out"]);
    assert!(again.stdout.contains("0 files moved"), "{}", again.stdout);
    assert_eq!(world.proxy.count("GET", "/workspaces/shop/"), 0);
    assert_same_trees(&world.path("shop"), &world.path("out/shop"));
}

/// Begins, ends it by `signal` when `half` holds, and gives how it ended.
fn interrupted(world: &World, arguments: &[&str], signal: Signal, half: impl Fn() -> bool) -> Output {
    let child = world.command(arguments).spawn().unwrap();
    wait("half of the files to be moved", Duration::from_secs(60), half);
    send_signal(&child, signal);
    ended(child)
}

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

/// Files at their place.
fn listing_count(folder: &Path) -> usize {
    let mut count = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for child in fs::read_dir(folder).into_iter().flatten().flatten() {
            match child.file_type() {
                Ok(kind) if kind.is_dir() && child.file_name() != ".berth-export.partial" => open.push(child.path()),
                Ok(kind) => count += usize::from(kind.is_file()),
                Err(_) => {}
            }
        }
    }
    count
}

#[test]
fn a_dry_run_tells_what_would_be_done_and_changes_nothing() {
    let world = World::new();
    world.write("a", "one");
    world.write("b.log", "excluded");
    let (code, json) = world.json(&["import", "--dry-run", "--json", "shop"]);
    assert_eq!(
        (code, &json["dry_run"], &json["workspaces"][0]["moved"]["files"]),
        (0, &true.into(), &1.into())
    );
    assert_eq!(json["workspaces"][0]["left_out"]["excluded"]["*.log"]["bytes"], 8);
    assert_eq!(world.objects().len(), 0);
    let changes = ["PUT", "POST", "DELETE"].map(|method| world.proxy.count(method, ""));
    assert_eq!(changes, [0, 0, 0], "not even a probe of the server");
    world.done(&["import", "shop"]);
    let told = world.done(&["export", "--dry-run", "shop", "out"]).stdout;
    assert!(
        told.contains("1 file to move") && told.contains("nothing was written"),
        "{told}"
    );
    assert!(!world.path("out").exists());
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

#[test]
fn more_can_be_excluded_and_one_folder_renamed() {
    let world = World::new();
    world.write("keep.js", "x");
    world.write("docs/out/page.html", "x");
    world.write("big.bin", "x");
    world.done(&[
        "import",
        "--name",
        "other",
        "--exclude",
        "docs/out/**",
        "--exclude",
        "*.bin",
        "shop",
    ]);
    assert_eq!(world.objects().into_keys().collect::<Vec<_>>(), ["other/keep.js"]);
    world.write("workspace.json", r#"{"exclude": ["docs/**"]}"#);
    world.done(&["import", "shop"]);
    let own: Vec<_> = world
        .objects()
        .into_keys()
        .filter(|key| key.starts_with("shop/"))
        .collect();
    assert_eq!(own, ["shop/big.bin", "shop/keep.js", "shop/workspace.json"]);
    world.write("workspace.json", r#"{"exclude": ["/x"]}"#);
    let wrong = world.berth(&["import", "shop"]);
    assert_eq!(
        (wrong.code, wrong.stderr.contains("line 1, column 14")),
        (1, true),
        "{}",
        wrong.stderr
    );
    let wrong = world.berth(&["import", "--exclude", "!x", "shop"]);
    assert_eq!(
        (wrong.code, wrong.stderr.contains("negated")),
        (2, true),
        "{}",
        wrong.stderr
    );
}

#[test]
fn a_terminal_sees_how_far_it_is() {
    let world = World::new();
    for number in 0..200 {
        world.write(&format!("{number}"), "x");
    }
    world.proxy.set([Rule {
        method: Some("PUT"),
        ..Rule::always(Fault::Slow(Duration::from_millis(30)))
    }]);
    let import = world.command(&["import", "--jobs", "8", "shop"]);
    let line: Vec<_> = import
        .get_args()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    // `script` of bsdutils gives the command line a terminal of its own.
    let done = Command::new("script")
        .args([
            "-qec",
            &format!("stty cols 100; {BERTH} {}", line.join(" ")),
            "/dev/null",
        ])
        .current_dir(world.dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("script is missing: apt-get install bsdutils");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        done.status.success() && said.contains("/200 files") && said.contains("Checksums agree"),
        "{said}"
    );
}

#[test]
fn a_running_daemon_shows_what_was_imported_and_keeps_what_was_saved() {
    let mut daemon = Daemon::start(BERTH);
    let source = daemon.disk().join("site");
    fs::create_dir_all(source.join("empty")).unwrap();
    fs::write(source.join("index.html"), "imported").unwrap();
    fs::write(source.join("run.sh"), "#!/bin/sh").unwrap();
    fs::set_permissions(source.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("index.html", source.join("link")).unwrap();
    let folder = source.to_str().unwrap();
    let done = daemon.berth(&["import", folder]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    let seen = daemon.workspaces().join("site");
    wait("the mount to show the import whole", Duration::from_secs(10), || {
        fs::read_to_string(seen.join("link")).is_ok_and(|text| text == "imported")
            && fs::metadata(seen.join("run.sh")).is_ok_and(|meta| meta.permissions().mode() & 0o777 == 0o755)
            && seen.join("empty").is_dir()
    });
    assert_eq!(daemon.get("/site/").text, "imported");
    daemon.save("site/index.html", "saved on the mount");
    let refused = daemon.berth(&["import", folder]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stdout.contains("not overwritten: index.html"),
        "{}",
        refused.stdout
    );
    assert_eq!(
        fs::read_to_string(seen.join("index.html")).unwrap(),
        "saved on the mount"
    );
    let itself = daemon.berth(&["import", seen.to_str().unwrap()]);
    assert_eq!(
        (itself.code, itself.stderr.contains("in the bucket already")),
        (2, true),
        "{}",
        itself.stderr
    );
    let out = daemon.disk().join("out");
    let done = daemon.berth(&["export", "--all", out.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert_eq!(
        fs::read_to_string(out.join("site/index.html")).unwrap(),
        "saved on the mount"
    );
    daemon.stop();
    assert_eq!(daemon.berth(&["import", folder]).code, 4);
}
