//! How URLs lead to apps, and what an app learns of the request.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use berth_harness::{Answer, Daemon, samples};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

/// Answers with what it was asked, and can redirect and set a cookie.
const MIRROR: &str = r#"
require('http').createServer((q, s) => {
  if (q.url === '/go') { s.writeHead(302, {location: '/there', 'set-cookie': 'a=b; Path=/'}); return s.end(); }
  s.end(JSON.stringify({url: q.url, headers: q.headers}));
}).listen(process.env.PORT);
"#;

fn with_host(daemon: &Daemon, host: &str, path: &str) -> Answer {
    daemon
        .http()
        .send(daemon.http().client().get(daemon.url(path)).header("host", host))
        .unwrap()
}

#[test]
fn an_app_behind_a_prefix_is_told_of_it_and_its_redirects_and_cookies_are_put_right() {
    let daemon = Daemon::start(BERTH);
    samples::node_program(&daemon, "mirror", MIRROR);
    let answer = daemon.get("/mirror/some/path?q=1");
    let seen: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(seen["url"], "/some/path?q=1");
    assert_eq!(seen["headers"]["x-forwarded-prefix"], "/mirror");
    assert_eq!(seen["headers"]["x-forwarded-proto"], "http");
    assert_eq!(seen["headers"]["x-forwarded-for"], "127.0.0.1");
    assert_eq!(
        seen["headers"]["x-forwarded-host"],
        format!("127.0.0.1:{}", daemon.edge_port())
    );
    assert!(seen["headers"]["x-request-id"].is_string());
    let moved = daemon.http().get(&daemon.url("/mirror/go"));
    assert_eq!(moved.header("location"), Some("/mirror/there"));
    assert_eq!(moved.header("set-cookie"), Some("a=b; Path=/mirror/"));
    let bare = daemon.http().get(&daemon.url("/mirror"));
    assert!([301, 308].contains(&bare.status), "{}", bare.status);
    assert!(
        bare.header("location").unwrap().ends_with("/mirror/"),
        "{:?}",
        bare.headers
    );
}

#[test]
fn names_below_the_domain_custom_hosts_and_www_lead_to_apps() {
    let mut daemon = Daemon::prepared(BERTH, berth_harness::Options::default());
    daemon.set_env("DOMAIN", "example.test");
    daemon.launch();
    samples::node_program(&daemon, "mirror", MIRROR);
    daemon.save("mirror/workspace.json", r#"{"hosts": ["shop.example.net"]}"#);
    samples::site(&daemon, "www", "<p>the root</p>");
    assert_eq!(daemon.get("/mirror/").status, 200);
    for (host, path, url) in [
        ("mirror.example.test", "/x", "/x"),
        ("shop.example.net", "/y", "/y"),
        ("example.test", "/mirror/z", "/z"),
    ] {
        let answer = with_host(&daemon, host, path);
        let seen: serde_json::Value =
            serde_json::from_str(&answer.text).unwrap_or_else(|e| panic!("{host}: {e}: {}", answer.text));
        assert_eq!(seen["url"], url, "{host}");
    }
    let root = with_host(&daemon, "example.test", "/");
    assert_eq!((root.status, root.text.trim()), (200, "<p>the root</p>"));
    assert_eq!(with_host(&daemon, "nobody.example.test", "/").status, 404);
}
