//! `workspace.json`: what is accepted, and every complaint at its place.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use proptest::prelude::*;

fn ok(text: &str) -> WorkspaceFile {
    WorkspaceFile::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn the_example_of_the_reference_is_read() {
    let text = r#"{
  "type": "node",
  "port": 3000,
  "command": "npm run dev",
  "env": {
    "NODE_ENV": "development"
  }
}"#;
    let file = ok(text);
    assert_eq!((file.kind, file.port), (Some(Kind::Node), Some(3000)));
    assert_eq!(file.command, Some(Command::Shell("npm run dev".into())));
    assert_eq!(file.env["NODE_ENV"], "development");
}

#[test]
fn every_key_is_read() {
    let file = ok(r#"{
        "$schema": "x", "type": "static", "port": 65535, "command": ["a", ""], "install": ["make", "all"],
        "env": {"A": "x", "B": 1.50, "C": false, "_d9": ""}, "hosts": ["A.example.com.", "a.example.com", "localhost"],
        "limits": {"memory": "1.5G", "cpus": 0.5, "pids": 64, "app_size": 1048576, "tmp_size": "64 MiB"},
        "health": "/up?x=1", "idle_freeze": "90s", "idle_stop": "1h 30m", "root": "./a//b/"
    }"#);
    assert_eq!((file.kind, file.port), (Some(Kind::Static), Some(65535)));
    assert_eq!(file.command, Some(Command::Argv(vec!["a".into(), String::new()])));
    assert_eq!(
        file.install,
        Some(Install::Run(Command::Argv(vec!["make".into(), "all".into()])))
    );
    let env: Vec<_> = file.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=x", "B=1.50", "C=false", "_d9="]);
    assert_eq!(file.hosts, ["a.example.com", "localhost"]);
    let limits = LimitsOverride {
        memory: Some(1536 << 20),
        cpus: Some(0.5),
        pids: Some(64),
        app_size: Some(1 << 20),
        tmp_size: Some(64 << 20),
    };
    assert_eq!(file.limits, limits);
    assert_eq!(
        (file.health.as_deref(), file.root.as_deref()),
        (Some("/up?x=1"), Some("a/b"))
    );
    assert_eq!(file.idle_freeze, Some(Duration::from_secs(90)));
    assert_eq!(file.idle_stop, Some(Duration::from_secs(5400)));
    assert_eq!(ok("{}"), WorkspaceFile::default());
    assert_eq!(ok(r#"{"install": false}"#).install, Some(Install::Skip));
    assert_eq!(ok(r#"{"install": true}"#).install, None);
    assert_eq!(ok(r#"{"idle_stop": "never"}"#).idle_stop, Some(Duration::MAX));
    assert_eq!(ok(r#"{"idle_freeze": false}"#).idle_freeze, Some(Duration::MAX));
    assert_eq!(ok(r#"{"root": "/"}"#).root.as_deref(), Some(""));
}

#[test]
fn sizes_count_in_1024s() {
    for (text, bytes) in [
        ("512M", 512 << 20),
        ("512MB", 512 << 20),
        ("512mib", 512 << 20),
        ("2g", 2 << 30),
        ("1T", 1 << 40),
    ] {
        assert_eq!(
            ok(&format!(r#"{{"limits":{{"memory":"{text}"}}}}"#)).limits.memory,
            Some(bytes),
            "{text}"
        );
    }
}

#[test]
fn each_mistake_is_told_at_its_place() {
    let cases: &[(&str, usize, usize, &str)] = &[
        ("", 1, 1, "the file is empty; write {} or remove it"),
        ("[]", 1, 1, "workspace.json is an object"),
        (
            "{\n  \"prot\": 3000\n}",
            2,
            3,
            "unknown key `prot`: did you mean `port`?",
        ),
        ("{\"cmd\": \"x\"}", 1, 2, "did you mean `command`?"),
        ("{\"static\": \"x\"}", 1, 2, "did you mean `root`?"),
        (
            "{\"volumes\": []}",
            1,
            2,
            "unknown key `volumes`: the keys are type, port, command, env",
        ),
        (
            "{\"port\": 1,\n\"port\": 2}",
            2,
            1,
            "`port` stands twice, first in line 1",
        ),
        (
            "{\n  \"type\": \"node\",\n  \"port\": 70000\n}",
            3,
            11,
            "port 70000 is not between 1 and 65535",
        ),
        ("{\"port\": 0}", 1, 10, "port 0 is not between"),
        ("{\"port\": -1}", 1, 10, "port -1 is not between"),
        ("{\"port\": 3000.5}", 1, 10, "port 3000.5 is not between"),
        ("{\"port\": \"3000\"}", 1, 10, "write 3000 without the quotes"),
        ("{\"port\": null}", 1, 10, "a number such as 3000, not null"),
        (
            "{\"type\": \"ruby\"}",
            1,
            10,
            "the types are node, python, go and static",
        ),
        ("{\"type\": \"nodejs\"}", 1, 10, "did you mean \"node\"?"),
        ("{\"type\": \"pyton\"}", 1, 10, "did you mean \"python\"?"),
        ("{\"type\": 1}", 1, 10, "not a number"),
        ("{\"command\": \" \"}", 1, 13, "`command` is empty"),
        ("{\"command\": []}", 1, 13, "names no program"),
        ("{\"command\": [\"a\", 1]}", 1, 19, "not a number"),
        ("{\"command\": \"a\\u0000\"}", 1, 13, "NUL"),
        ("{\"install\": {}}", 1, 13, "or false to install nothing"),
        ("{\"env\": []}", 1, 9, "`env` is an object"),
        ("{\"env\": {\"A B\": \"\"}}", 1, 10, "no name of a variable"),
        (
            "{\"env\": {\"A\": null}}",
            1,
            15,
            "`env.A` is a text, a number, true or false, not null",
        ),
        ("{\"env\": {\"A\": 1, \"A\": 2}}", 1, 18, "`env.A` stands twice"),
        ("{\"env\": {\"PORT\": \"http\"}}", 1, 18, "PORT \"http\" is not between"),
        ("{\"port\": 1, \"env\": {\"PORT\": 2}}", 1, 29, "contradicts `port` 1"),
        ("{\"hosts\": \"a.example\"}", 1, 11, "a list such as"),
        ("{\"hosts\": [\"https://a.example/\"]}", 1, 12, "is a URL"),
        ("{\"hosts\": [\"a.example:80\"]}", 1, 12, "names a port"),
        ("{\"hosts\": [\"*.example\"]}", 1, 12, "wildcards"),
        ("{\"hosts\": [\"bücher.example\"]}", 1, 12, "xn--"),
        ("{\"hosts\": [\"a..b\"]}", 1, 12, "no host name"),
        ("{\"hosts\": [\"10.0.0.1\"]}", 1, 12, "no host name"),
        (
            "{\"limits\": {\"ram\": 1}}",
            1,
            13,
            "unknown key `limits.ram`: did you mean `limits.memory`?",
        ),
        (
            "{\"limits\": {\"memory\": \"lots\"}}",
            1,
            23,
            "write for example \"512M\"",
        ),
        (
            "{\"limits\": {\"memory\": 512}}",
            1,
            23,
            "too small: at least 16.0 MiB; for megabytes write \"512M\"",
        ),
        (
            "{\"limits\": {\"memory\": \"99999999999999999999\"}}",
            1,
            23,
            "is no size",
        ),
        ("{\"limits\": {\"cpus\": 0}}", 1, 21, "between 0.01 and 1024"),
        ("{\"limits\": {\"cpus\": \"1\"}}", 1, 21, "a number such as 0.5"),
        ("{\"limits\": {\"pids\": 1}}", 1, 21, "between 16 and"),
        ("{\"health\": \"up\"}", 1, 12, "begins with /"),
        ("{\"health\": \"/a b\"}", 1, 12, "percent-encoded"),
        ("{\"idle_stop\": 600}", 1, 15, "write \"600s\""),
        ("{\"idle_stop\": \"soon\"}", 1, 15, "is no time"),
        ("{\"idle_stop\": \"1ms\"}", 1, 15, "too short"),
        ("{\"idle_freeze\": \"0s\"}", 1, 17, "`idle_freeze` 0s is too short"),
        ("{\"freeze\": \"2m\"}", 1, 2, "idle_freeze"),
        ("{\"root\": \"../x\"}", 1, 10, "cannot leave"),
        ("{\"root\": \"/srv\"}", 1, 10, "write \"srv\""),
        ("{\"type\": \"go\",\n \"root\": \"x\"}", 2, 10, "static apps only"),
    ];
    for (text, line, column, message) in cases {
        let e = WorkspaceFile::parse(text.as_bytes()).expect_err(text);
        assert_eq!(
            (e.path.as_str(), e.line, e.column),
            ("workspace.json", *line, *column),
            "{text}: {e}"
        );
        assert!(e.message.contains(message), "{text}: {:?} lacks {message:?}", e.message);
        assert!(
            e.to_string()
                .starts_with(&format!("workspace.json line {line}, column {column}: "))
        );
    }
}

#[test]
fn a_list_of_patterns_is_bounded_in_number_and_length() {
    let list = |patterns: &[String]| format!("{{\"exclude\": [{}]}}", patterns.join(", "));
    let many: Vec<String> = (0..65).map(|n| format!("\"{n}.bin\"")).collect();
    assert_eq!(ok(&list(&many[..64])).exclude.len(), 64);
    let told = WorkspaceFile::parse(list(&many).as_bytes()).unwrap_err();
    assert!(told.message.contains("65 patterns, and 64 are the most"), "{told}");
    let long = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    assert_eq!(ok(&list(&[long(255)])).exclude.len(), 1);
    let told = WorkspaceFile::parse(list(&[long(256)]).as_bytes()).unwrap_err();
    assert!(told.message.contains("256 bytes"), "{told}");
    assert_eq!((told.line, told.column), (1, 14));
}

/// A value that may be right or wrong for any key.
fn any_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        "[0-9.]{1,25}[kKmMgGtTiIbBs]{0,3}".prop_map(|s| serde_json::to_string(&s).unwrap()),
        prop::sample::select(vec![
            "null", "true", "false", "\"node\"", "\"10m\"", "\"/\"", "1e999", "-0"
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            prop::collection::vec((prop::sample::select(LIMIT_KEYS.to_vec()), inner), 0..4).prop_map(|m| format!(
                "{{{}}}",
                m.iter()
                    .map(|(k, v)| format!("\"{k}\":{v}"))
                    .collect::<Vec<_>>()
                    .join(",")
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(e) = WorkspaceFile::parse(&bytes) {
            prop_assert!(e.line >= 1 && e.column >= 1 && !e.message.is_empty());
        }
    }

    #[test]
    fn any_value_for_any_key_is_read_or_told_within_the_text(
        members in prop::collection::vec((prop::sample::select(KEYS.to_vec()), any_value()), 0..5),
    ) {
        let lines: Vec<String> = members.iter().map(|(k, v)| format!("  \"{k}\": {v}")).collect();
        let text = format!("{{\n{}\n}}", lines.join(",\n"));
        if let Err(e) = WorkspaceFile::parse(text.as_bytes()) {
            let line = text.split('\n').nth(e.line - 1).expect("the line exists");
            prop_assert!(e.column <= line.chars().count() + 1, "{}: {}", text, e);
        }
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0usize..200, byte in any::<u8>()) {
        let mut text = br#"{"type":"node","port":3000,"command":"npm run dev","env":{"A":"b"},"limits":{"memory":"1G"},"idle_stop":"5m"}"#.to_vec();
        let at = at % text.len();
        text[at] = byte;
        if let Err(e) = WorkspaceFile::parse(&text) {
            prop_assert_eq!(e.line, if byte == b'\n' { e.line } else { 1 });
        }
    }
}
