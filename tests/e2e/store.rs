//! What people are told about their S3 server: what is wrong with it, what it holds that cannot be shown, and what is not there yet.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod s3;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use berth_harness::{Daemon, wait_for};
use berth_store::{Precondition, Store};
use s3::store_config;

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Stores objects as another program would.
fn put(daemon: &Daemon, keys: &[&str]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Store::connect(store_config(daemon), None).await.unwrap();
        for key in keys {
            store.put(key, "odd".into(), Precondition::None).await.unwrap();
        }
    });
}

/// The check of this name as `berth doctor --json` gives it, found and way out in one text.
fn check(doctor: &str, name: &str) -> (String, String) {
    let checks: serde_json::Value = serde_json::from_str(doctor).unwrap_or_else(|error| panic!("{error}: {doctor}"));
    let check = checks.as_array().unwrap().iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name} in {doctor}"));
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    (text("status"), format!("{} {}", text("found"), text("mend")))
}

fn metrics(run_dir: &Path) -> String {
    let mut socket = UnixStream::connect(run_dir.join("berth.sock")).unwrap();
    write!(
        socket,
        "GET /metrics HTTP/1.1\r\nhost: berth\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn objects_that_cannot_be_shown_are_named_everywhere_and_the_rest_is_usable() {
    let daemon = Daemon::start(BERTH);
    put(
        &daemon,
        &["site/a//b", "site/both", "site/both/below", "site/index.html"],
    );
    let doctor = wait_for("both are told", Duration::from_secs(20), || {
        let doctor = daemon.berth(&["doctor", "--json"]).stdout;
        check(&doctor, "objects").1.starts_with("2 not shown").then_some(doctor)
    });
    let (status, text) = check(&doctor, "objects");
    assert_eq!(status, "warn");
    assert!(
        text.contains("site/a//b") && text.contains("site/both (other objects make a folder"),
        "{text}"
    );
    for name in [
        "S3",
        "clock",
        "S3 writes",
        "S3 listing",
        "S3 changes",
        "saves",
        "journal",
    ] {
        assert_eq!(check(&doctor, name).0, "ok", "{name}: {}", check(&doctor, name).1);
    }
    let shown = daemon.berth(&["status"]).stdout;
    assert!(
        shown.contains("2 objects of the bucket") && shown.contains("site/a//b"),
        "{shown}"
    );
    let answer = metrics(daemon.run_dir());
    for line in ["berth_unshown_count 2", "berth_pending_count 0", "berth_s3_up 1"] {
        assert!(answer.lines().any(|told| told == line), "{line} is missing in {answer}");
    }
    let log = daemon.log();
    assert_eq!(log.matches("site/a//b").count(), 1, "said once: {log}");
    let below = daemon.workspaces().join("site/both/below");
    assert_eq!(std::fs::read_to_string(below).unwrap(), "odd");
    let ps: serde_json::Value = serde_json::from_str(&daemon.berth(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(ps["pending"]["count"], 0);
}

#[test]
fn what_is_wrong_with_the_s3_server_is_told_with_the_way_out() {
    let daemon = Daemon::start(BERTH);
    let right = store_config(&daemon);
    let plain = right.endpoint.clone().unwrap();
    let page = web_page();
    let doctor = |endpoint: &str, bucket: &str, secret: &str| {
        let file = daemon.disk().join("other.toml");
        let text = format!(
            "[paths]\nstate = \"{0}/other\"\nrun = \"{0}/other-run\"\n[s3]\nendpoint = \"{endpoint}\"\nbucket = \"{bucket}\"\n\
             access_key = \"{1}\"\nsecret_key = \"{secret}\"\n",
            daemon.disk().display(),
            right.access_key
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(BERTH);
        command.arg("--config").arg(&file).args(["doctor", "--json"]);
        let done = command.output().unwrap();
        assert_eq!(done.status.code(), Some(1));
        check(&String::from_utf8_lossy(&done.stdout), "S3")
    };
    let unused = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (endpoint, bucket, secret, words) in [
        (
            plain.as_str(),
            "workspaces",
            "wrong",
            ["does not accept the key", "secret_key"],
        ),
        (
            &plain,
            "no-such-bucket",
            &right.secret_key,
            ["no-such-bucket", "[s3] bucket"],
        ),
        (
            &plain.replace("http:", "https:"),
            "workspaces",
            "x",
            ["does not speak TLS", "http://"],
        ),
        (&unused, "workspaces", "x", ["nothing answers", "endpoint"]),
        (&page, "workspaces", "x", ["is no S3 server", "port"]),
    ] {
        let (status, text) = doctor(endpoint, bucket, secret);
        assert_eq!(status, "fail", "{endpoint}: {text}");
        for word in words {
            assert!(text.contains(word), "{endpoint}: {word:?} is missing in {text}");
        }
    }
    assert!(!daemon.rclone(&["lsd", "b:"]).contains("no-such-bucket"));
}

/// A web server; its address.
fn web_page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let page = "<html>hello</html>";
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
        }
    });
    format!("http://{address}")
}
