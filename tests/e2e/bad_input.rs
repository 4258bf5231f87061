//! Mistakes people make: each gets a clear message and the right status or exit code, and the others go on serving.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::TcpListener, os::unix::process::CommandExt, process::Command, time::Duration};

use berth_harness::{Daemon, Options, samples, wait_for};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// The error that `berth inspect` shows for the app, once there is one.
fn error_of(daemon: &Daemon, app: &str) -> String {
    wait_for(&format!("{app}'s error"), Duration::from_secs(30), || {
        daemon.inspect(app)?["error"]["detail"].as_str().map(str::to_owned)
    })
}

#[test]
fn mistakes_in_manifests_are_named_with_their_place_and_others_go_on() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "fine", "fine");
    let node = |name: &str, workspace: &str| {
        samples::node(&daemon, name, name);
        daemon.save(&format!("{name}/workspace.json"), workspace);
    };
    node("broken", "{\n  \"port\": 3000,,\n}\n");
    node("far-port", "{\n  \"port\": 70000\n}\n");
    node("no-type", "{\n  \"type\": \"ruby\"\n}\n");
    daemon.save(
        "bad-package/package.json",
        "{\n  \"name\": \"x\"\n  \"version\": \"1\"\n}\n",
    );
    for (app, words) in [
        ("broken", vec!["workspace.json", "line 2"]),
        ("far-port", vec!["70000", "65535", "line 2"]),
        ("no-type", vec!["ruby", "node", "python"]),
        ("bad-package", vec!["package.json", "line 3"]),
    ] {
        let error = error_of(&daemon, app);
        for word in words {
            assert!(error.contains(word), "{app}: {word:?} is missing in {error:?}");
        }
        let answer = daemon.get(&format!("/{app}/"));
        assert_eq!(answer.status, 503, "{app}: {}", answer.text);
        assert!(
            !answer.text.contains(daemon.disk().to_str().unwrap()),
            "{}",
            answer.text
        );
    }
    assert_eq!(daemon.get("/fine/").text, "fine");
    let ps = daemon.berth(&["ps"]).stdout;
    assert!(ps.contains("70000"), "{ps}");
}

#[test]
fn apps_that_do_not_start_say_why() {
    let daemon = Daemon::with(
        BERTH,
        Options {
            lines: vec![("apps", "ready_timeout = \"3s\"".into())],
            ..Options::default()
        },
    );
    samples::node(&daemon, "fine", "fine");
    samples::node_program(&daemon, "exits", "console.error('I give up'); process.exit(7);");
    samples::node_program(&daemon, "silent", "setInterval(() => {}, 1000);");
    daemon.save("unknown/index.js", "");
    daemon.save(
        "unknown/package.json",
        r#"{"name": "unknown", "version": "1.0.0", "main": "index.js", "dependencies": {"berth-no-such-package-4711": "1.0.0"}}"#,
    );
    for (app, status, words) in [
        ("exits", 503, vec!["7", "I give up"]),
        ("silent", 503, vec!["port"]),
        ("unknown", 503, vec!["berth-no-such-package-4711"]),
    ] {
        let answer = daemon.get(&format!("/{app}/"));
        assert_eq!(answer.status, status, "{app}: {}", answer.text);
        assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
        assert!(
            !answer.text.contains("I give up"),
            "a stranger reads the log: {}",
            answer.text
        );
        let error = error_of(&daemon, app);
        for word in words {
            assert!(error.contains(word), "{app}: {word:?} is missing in {error:?}");
        }
    }
    assert_eq!(daemon.get("/fine/").text, "fine");
}

#[test]
fn a_folder_whose_name_is_no_dns_label_is_shown_with_the_reason() {
    let daemon = Daemon::start(BERTH);
    samples::node(&daemon, "fine", "fine");
    daemon.save("My_App/index.html", "<p>hi</p>");
    let ps = wait_for("the folder to be listed", Duration::from_secs(10), || {
        let ps = daemon.berth(&["ps"]).stdout;
        ps.contains("My_App").then_some(ps)
    });
    let row = ps.lines().find(|line| line.starts_with("My_App")).unwrap();
    assert!(row.contains("invalid") && row.contains("my-app"), "{row}");
    assert_eq!(daemon.http().get(&daemon.url("/My_App/")).status, 404);
    assert_eq!(daemon.get("/fine/").text, "fine");
}

#[test]
fn unknown_apps_are_404_with_a_page_for_people_and_json_for_programs() {
    let daemon = Daemon::start(BERTH);
    let client = daemon.http().client();
    let page = daemon
        .http()
        .send(client.get(daemon.url("/nobody/")).header("accept", "text/html"))
        .unwrap();
    assert_eq!(page.status, 404);
    assert!(
        page.header("content-type").unwrap().starts_with("text/html"),
        "{:?}",
        page.headers
    );
    let problem = daemon
        .http()
        .send(client.get(daemon.url("/nobody/")).header("accept", "application/json"))
        .unwrap();
    assert_eq!(problem.status, 404);
    assert_eq!(problem.header("content-type").unwrap(), "application/problem+json");
    let value: serde_json::Value = serde_json::from_str(&problem.text).unwrap();
    assert_eq!(value["status"], 404);
    for arguments in [
        vec!["inspect", "nobody"],
        vec!["logs", "nobody"],
        vec!["stop", "nobody"],
        vec!["exec", "nobody", "--", "ls"],
    ] {
        let done = daemon.berth(&arguments);
        assert_eq!(done.code, 3, "{arguments:?}: {}", done.stderr);
        assert!(done.stderr.contains("nobody"), "{}", done.stderr);
    }
}

/// A daemon that must not come up; gives its exit code and what it said.
fn refused(mut daemon: Daemon) -> (i32, String) {
    daemon.spawn();
    let code = daemon.exit_code().expect("an exit code");
    assert!(daemon.leftovers().is_empty(), "{:?}", daemon.leftovers());
    (code, daemon.log())
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut daemon = Daemon::prepared(BERTH, Options::default());
    daemon.set_env("BERTH_EDGE_LISTEN", &format!("127.0.0.1:{port}"));
    let (code, said) = refused(daemon);
    assert_eq!(code, 1);
    assert!(
        said.contains(&format!("port {port} is taken")) && said.contains("[edge] listen"),
        "{said}"
    );
}

#[test]
fn a_wrong_s3_key_is_named() {
    let server = Daemon::start(BERTH);
    let mut daemon = Daemon::prepared(BERTH, Options::default());
    daemon.set_env("AWS_ENDPOINT_URL", &format!("http://127.0.0.1:{}", server.s3_port()));
    daemon.set_env("AWS_ACCESS_KEY_ID", "AKIAWRONG");
    daemon.set_env("AWS_SECRET_ACCESS_KEY", "wrong");
    let (code, said) = refused(daemon);
    assert_eq!(code, 1);
    assert!(said.contains("key"), "{said}");
}

#[test]
fn no_s3_server_is_named_with_its_address() {
    let mut daemon = Daemon::prepared(BERTH, Options::default());
    daemon.set_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    daemon.set_env("AWS_ACCESS_KEY_ID", "a");
    daemon.set_env("AWS_SECRET_ACCESS_KEY", "b");
    let (code, said) = refused(daemon);
    assert_eq!(code, 1);
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

#[test]
fn without_fuse_the_daemon_says_what_is_missing() {
    // A mount namespace of its own in which /dev/fuse does not exist.
    let daemon = Daemon::prepared(BERTH, Options::default());
    let script = format!(
        "mount --make-rprivate / && mount -t tmpfs none /mnt && mknod /mnt/null c 1 3 && mkdir /mnt/pts && \
         mount -t tmpfs none /dev && for d in null zero urandom random full tty; do :; done && \
         mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && mkdir /dev/shm && exec {BERTH} --config {} serve",
        daemon.config().display()
    );
    let done = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("/dev/fuse"), "{said}");
}

#[test]
fn who_is_not_root_is_told_so() {
    let daemon = Daemon::prepared(BERTH, Options::default());
    // The binary is in a build folder that others may not enter: a copy where they may.
    let copy = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .prefix("berth-")
        .tempfile_in("/var/tmp")
        .unwrap();
    std::fs::copy(BERTH, copy.path()).unwrap();
    let path = copy.into_temp_path();
    let done = Command::new(&path)
        .arg("serve")
        .uid(65534)
        .gid(65534)
        .env_remove("BERTH_CONFIG")
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("root"), "{said}");
    drop(daemon);
}

#[test]
fn a_mistake_in_the_configuration_is_named_with_its_line() {
    let daemon = Daemon::prepared(
        BERTH,
        Options {
            config: "[limits]\nmemory = \"lots\"\n".into(),
            ..Options::default()
        },
    );
    let done = daemon.berth(&["config", "check"]);
    assert_eq!(done.code, 2);
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let line = text.lines().position(|line| line.contains("lots")).unwrap() + 1;
    assert!(done.stderr.contains(&format!("line {line}")), "{}", done.stderr);
}

#[test]
fn without_a_daemon_the_command_line_says_so() {
    let daemon = Daemon::prepared(BERTH, Options::default());
    let done = daemon.berth(&["ps"]);
    assert_eq!(done.code, 4);
    assert!(done.stderr.contains("berth serve"), "{}", done.stderr);
}
