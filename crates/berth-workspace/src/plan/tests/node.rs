//! Plans of node apps.

use super::*;

#[test]
fn node_installs_by_the_lock_file() {
    const QUIET: &str = "--no-audit --no-fund --loglevel=error";
    let v1 = "# yarn lockfile v1\n";
    let cases: &[(&str, &str, String)] = &[
        ("package-lock.json", "{}", format!("npm ci --omit=dev {QUIET}")),
        ("npm-shrinkwrap.json", "{}", format!("npm ci --omit=dev {QUIET}")),
        (
            "pnpm-lock.yaml",
            "",
            "pnpm install --prod --frozen-lockfile --store-dir=/app/.berth/cache/pnpm".into(),
        ),
        (
            "yarn.lock",
            v1,
            "yarn install --production --frozen-lockfile --non-interactive".into(),
        ),
        ("bun.lock", "", "bun install --production --frozen-lockfile".into()),
        ("bun.lockb", "", "bun install --production --frozen-lockfile".into()),
        ("README.md", "", format!("npm install --omit=dev {QUIET}")),
        (
            "yarn.lock",
            "__metadata:\n  version: 8\n",
            "npm exec --yes --package=@yarnpkg/cli-dist@4.12 -- yarn install --immutable".into(),
        ),
        (
            "yarn.lock",
            "__metadata:\n  version: 6\n",
            "npm exec --yes --package=@yarnpkg/cli-dist@3 -- yarn install --immutable".into(),
        ),
    ];
    for (lock, text, install) in cases {
        let plan = ok(&[("package.json", EXPRESS), ("index.js", ""), (lock, text)]);
        assert_eq!(installs(&plan), [install.as_str()], "{lock}");
        assert_eq!(plan.install[0].env["NODE_ENV"], "production");
    }
    for (lock, version) in [
        ("version: 4", "2"),
        ("version: 5", "3.1"),
        ("version: 8\n  checksum: 10c0/ab", "4.12"),
        ("version: 8\n  checksum: ab", "4.0"),
        ("version: 9", "4.14"),
        ("version: 10", "4"),
        ("version: x", "4"),
    ] {
        let plan = ok(&[
            ("package.json", EXPRESS),
            ("yarn.lock", &format!("__metadata:\n  {lock}\n")),
        ]);
        assert_eq!(
            installs(&plan)[0].split(' ').nth(3),
            Some(&*format!("--package=@yarnpkg/cli-dist@{version}")),
            "{lock}"
        );
    }
    let release = ".yarn/releases/yarn-4.1.0.cjs";
    let plan = ok(&[("package.json", EXPRESS), ("yarn.lock", "__metadata:\n"), (release, "")]);
    assert_eq!(
        installs(&plan),
        ["node /app/.yarn/releases/yarn-4.1.0.cjs install --immutable"]
    );
    let exact = EXPRESS.replace("{\"name\"", "{\"packageManager\":\"yarn@4.5.1+sha512.ab\",\"name\"");
    let plan = ok(&[("package.json", &exact), ("yarn.lock", "__metadata:\n")]);
    assert!(
        installs(&plan)[0].contains("@yarnpkg/cli-dist@4.5.1 "),
        "{:?}",
        installs(&plan)
    );
}

#[test]
fn node_in_development_keeps_its_dev_dependencies() {
    let package = r#"{"scripts":{"dev":"vite"},"devDependencies":{"vite":"5"}}"#;
    let json = r#"{"command":"npm run dev","env":{"NODE_ENV":"development"}}"#;
    let plan = ok(&[
        ("package.json", package),
        ("package-lock.json", ""),
        ("workspace.json", json),
    ]);
    assert_eq!(installs(&plan), ["npm ci --no-audit --no-fund --loglevel=error"]);
    assert_eq!(
        (plan.install[0].env["NODE_ENV"].as_str(), plan.env["NODE_ENV"].as_str()),
        ("development", "development")
    );
    assert_eq!(plan.start.argv, ["sh", "-c", "vite"]);
    assert_eq!(plan.start.env["npm_lifecycle_event"], "dev");
}

#[test]
fn node_without_dependencies_installs_nothing() {
    for package in [
        "{}",
        r#"{"dependencies":{}}"#,
        r#"{"devDependencies":{"jest":"1"}}"#,
        r#"{"scripts":{"postinstall":" "}}"#,
    ] {
        let plan = ok(&[("package.json", package), ("server.js", "")]);
        assert!(plan.install.is_empty(), "{package}: {:?}", plan.install);
    }
    for package in [
        r#"{"optionalDependencies":{"a":"1"}}"#,
        r#"{"scripts":{"postinstall":"x"}}"#,
        r#"{"workspaces":["a"]}"#,
    ] {
        let plan = ok(&[("package.json", package), ("server.js", "")]);
        assert_eq!(installs(&plan).len(), 1, "{package}");
    }
}

#[test]
fn node_starts_the_script_as_npm_would() {
    let plan = ok(&[("package.json", EXPRESS)]);
    assert_eq!(plan.start.argv, ["sh", "-c", "node index.js"]);
    assert_eq!(plan.start.what, "npm start: node index.js");
    for (key, value) in [
        ("npm_lifecycle_event", "start"),
        ("npm_package_name", "shop"),
        ("npm_package_version", "1.2.3"),
        ("npm_package_json", "/app/package.json"),
        ("INIT_CWD", "/app"),
    ] {
        assert_eq!(plan.start.env[key], value);
    }
    assert!(plan.env["PATH"].starts_with("/app/node_modules/.bin:/usr/local/sbin:"));
    // An explicit `npm start` is the same.
    let same = ok(&[
        ("package.json", EXPRESS),
        ("workspace.json", r#"{"command":"npm  start"}"#),
    ]);
    assert_eq!(same.start, plan.start);
    // Anything more is left to the shell.
    let line = "npm run start -- --verbose";
    let other = ok(&[
        ("package.json", EXPRESS),
        ("workspace.json", &format!(r#"{{"command":"{line}"}}"#)),
    ]);
    assert_eq!(other.start.argv, ["sh", "-c", line]);
}

#[test]
fn scripts_before_and_after_the_start_run_in_order() {
    let run = |scripts: &str| {
        let plan = ok(&[("package.json", &format!(r#"{{"scripts":{scripts}}}"#))]);
        let output = std::process::Command::new(&plan.start.argv[0])
            .args(&plan.start.argv[1..])
            .envs(&plan.start.env)
            .output()
            .expect("sh");
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    let say = |word: &str| format!(r#""echo {word} $npm_lifecycle_event 'q\" #'""#);
    let all = run(&format!(
        r#"{{"prestart":{},"start":{},"poststart":{}}}"#,
        say("a"),
        say("b"),
        say("c")
    ));
    assert_eq!(
        all,
        ("a prestart q\" #\nb start q\" #\nc poststart q\" #\n".into(), Some(0))
    );
    let pre = run(&format!(r#"{{"prestart":{},"start":{}}}"#, say("a"), say("b")));
    assert_eq!(pre.0, "a prestart q\" #\nb start q\" #\n");
    let post = run(&format!(r#"{{"start":{},"poststart":{}}}"#, say("b"), say("c")));
    assert_eq!(post.0, "b start q\" #\nc poststart q\" #\n");
    let failed = run(r#"{"prestart":"exit 3","start":"echo never"}"#);
    assert_eq!(failed, (String::new(), Some(3)));
}

#[test]
fn node_starts_main_or_a_usual_file() {
    let cases: &[(&str, &[&str], &str)] = &[
        (
            r#"{"main":"lib/run.js"}"#,
            &["lib/run.js", "server.js"],
            "node lib/run.js",
        ),
        (r#"{"main":"./lib"}"#, &["lib/index.js"], "node lib/index.js"),
        (r#"{"main":"."}"#, &["index.js"], "node index.js"),
        (r#"{"main":"run"}"#, &["run.mjs"], "node run.mjs"),
        ("{}", &["app.js", "index.js", "server.js"], "node server.js"),
        ("{}", &["app.js", "index.js"], "node index.js"),
        ("{}", &["app.js"], "node app.js"),
        ("{}", &["Procfile", "app.js"], "sh -c node x.js"),
    ];
    for (package, files, expected) in cases {
        let mut all = vec![("package.json", *package)];
        all.extend(files.iter().map(|f| (*f, "web: node x.js")));
        assert_eq!(start(&ok(&all)), *expected, "{package} {files:?}");
    }
}
