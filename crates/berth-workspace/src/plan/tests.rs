//! Plans as tables: the files of a workspace on the left, what is run on the right.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::FileMode;

mod node;

type Files<'a> = &'a [(&'a str, &'a str)];

fn plan_of(files: Files<'_>) -> Result<Plan, PlanError> {
    let listed: Vec<SourceFile> = files
        .iter()
        .map(|(path, text)| SourceFile {
            path: (*path).into(),
            mode: FileMode::Regular,
            size: text.len() as u64,
            content: String::new(),
        })
        .collect();
    let read = |path: &str| {
        files
            .iter()
            .find(|(p, _)| *p == path)
            .map(|(_, text)| text.as_bytes().to_vec())
    };
    plan(
        &AppName::parse("shop").unwrap(),
        &Source {
            files: &listed,
            read: &read,
        },
    )
}

fn ok(files: Files<'_>) -> Plan {
    plan_of(files).unwrap_or_else(|e| panic!("{files:?}: {e}"))
}

/// The installation as command lines, without the last step.
fn installs(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> = plan.install.iter().map(|s| s.argv.join(" ")).collect();
    if lines.last().is_some_and(|l| l == "rm -rf /app/.berth/cache") {
        lines.pop();
    }
    lines
}

fn start(plan: &Plan) -> String {
    plan.start.argv.join(" ")
}

const EXPRESS: &str =
    r#"{"name":"shop","version":"1.2.3","scripts":{"start":"node index.js"},"dependencies":{"express":"4"}}"#;

#[test]
fn kinds_are_found_by_their_files_in_the_documented_order() {
    let cases: &[(&[&str], Kind, &str)] = &[
        (
            &["package.json", "public/index.html", "src/App.js"],
            Kind::Node,
            "package.json",
        ),
        (
            &["index.html", "package.json", "requirements.txt"],
            Kind::Node,
            "package.json",
        ),
        (&["requirements.txt", "app.py"], Kind::Python, "requirements.txt"),
        (&["pyproject.toml"], Kind::Python, "pyproject.toml"),
        (&["app.py", "index.html"], Kind::Python, "app.py"),
        (&["main.py", "main.go"], Kind::Python, "main.py"),
        (&["go.mod", "index.html"], Kind::Go, "go.mod"),
        (&["main.go"], Kind::Go, "main.go"),
        (&["index.html", "public/index.html"], Kind::Static, "index.html"),
        (&["public/index.html"], Kind::Static, "public/index.html"),
    ];
    for (files, kind, by) in cases {
        let listed: Vec<SourceFile> = files
            .iter()
            .map(|p| SourceFile {
                path: (*p).into(),
                mode: FileMode::Regular,
                size: 0,
                content: String::new(),
            })
            .collect();
        assert_eq!(detect(&listed), Some(Detected { kind: *kind, by }), "{files:?}");
    }
    assert_eq!(detect(&[]), None);
    for folder in [
        &[("README.md", "")][..],
        &[("src/package.json", "{}"), ("notes.txt", "")],
        &[],
    ] {
        assert_eq!(plan_of(folder), Err(PlanError::NotAnApp));
    }
}

#[test]
fn workspace_json_overrides_what_the_files_say() {
    let json = r#"{"type":"static","port":9000,"hosts":["Shop.example.com"],"env":{"A":1,"B":true},
        "limits":{"memory":"512M"},"health":"/up","idle_freeze":"1m","idle_stop":"10m"}"#;
    let plan = ok(&[
        ("workspace.json", json),
        ("package.json", "not read"),
        ("public/index.html", ""),
    ]);
    assert_eq!(
        (plan.kind, plan.image.as_str(), plan.port),
        (Kind::Static, "nginx", 9000)
    );
    assert_eq!(plan.start.argv, ["berth-static", "/workspace/public"]);
    assert_eq!(plan.hosts, ["shop.example.com"]);
    assert_eq!(
        (plan.limits.memory, plan.health.as_deref()),
        (Some(512 << 20), Some("/up"))
    );
    assert_eq!(plan.idle_freeze, Some(Duration::from_secs(60)));
    assert_eq!(plan.idle_stop, Some(Duration::from_secs(600)));
    assert_eq!(
        (
            plan.env["A"].as_str(),
            plan.env["B"].as_str(),
            plan.env["PORT"].as_str()
        ),
        ("1", "true", "9000")
    );
    assert!(!plan.copy_source);

    let command = r#"{"type":"python","command":["./run","a b"]}"#;
    let plan = ok(&[("workspace.json", command)]);
    assert_eq!(plan.start.argv, ["./run", "a b"]);
    assert!(plan.install.is_empty() && plan.copy_source);
}

#[test]
fn the_port_of_each_kind_and_its_environment() {
    let cases: &[(&str, &str, u16)] = &[
        ("server.js", "node", 3000),
        ("app.py", "python", 8000),
        ("main.go", "go", 8080),
        ("index.html", "static", 8080),
    ];
    for (file, kind, port) in cases {
        let plan = ok(&[("workspace.json", &format!(r#"{{"type":"{kind}"}}"#)), (file, "")]);
        assert_eq!(plan.port, *port, "{kind}");
        assert_eq!(
            (plan.env["PORT"].as_str(), plan.env["HOST"].as_str()),
            (port.to_string().as_str(), "0.0.0.0")
        );
        assert!(plan.env["PATH"].ends_with(BASE_PATH), "{kind}");
    }
    let plan = ok(&[
        ("workspace.json", r#"{"env":{"PORT":"4000","HOST":"::","PATH":"/opt"}}"#),
        ("index.html", ""),
    ]);
    assert_eq!((plan.port, plan.env["PORT"].as_str()), (4000, "4000"));
    assert_eq!((plan.env["HOST"].as_str(), plan.env["PATH"].as_str()), ("::", "/opt"));
}

#[test]
fn python_installs_with_uv() {
    let pip = "uv pip install --python /app/.venv/bin/python";
    let venv = "uv venv --quiet /app/.venv".to_owned();
    let requirements = ("requirements.txt", "# web\nflask>=3  # x\n");
    let project = (
        "pyproject.toml",
        "[project]\nname = \"x\"\ndependencies = [\"flask\"]\n",
    );
    let cases: &[(Files<'_>, Vec<String>)] = &[
        (
            &[requirements],
            vec![venv.clone(), format!("{pip} -r requirements.txt")],
        ),
        (&[project], vec![venv.clone(), format!("{pip} -r pyproject.toml")]),
        (
            &[project, requirements],
            vec![venv.clone(), format!("{pip} -r requirements.txt")],
        ),
        (&[project, ("uv.lock", "")], vec!["uv sync --frozen --no-dev".into()]),
        (
            &[("pyproject.toml", "[project]\ndynamic = [\"dependencies\"]")],
            vec![venv.clone(), format!("{pip} .")],
        ),
        (&[("requirements.txt", "\n# nothing\n")], vec![]),
        (&[("pyproject.toml", "[tool.black]\n")], vec![]),
        (&[], vec![]),
        (
            &[("workspace.json", r#"{"install":"uv pip install x"}"#)],
            vec![venv, "sh -c uv pip install x".into()],
        ),
        (&[requirements, ("workspace.json", r#"{"install":false}"#)], vec![]),
    ];
    for (files, expected) in cases {
        let all = [&[("app.py", "print()")], *files].concat();
        let plan = ok(&all);
        assert_eq!(installs(&plan), *expected, "{files:?}");
        assert!(plan.env["PATH"].starts_with("/app/.venv/bin:"));
        assert_eq!(plan.env["PYTHONUNBUFFERED"], "1");
        assert!(!plan.env.contains_key("PYTHONDONTWRITEBYTECODE"));
        for step in &plan.install {
            assert_eq!(step.env["UV_PYTHON_DOWNLOADS"], "never");
        }
    }
}

#[test]
fn python_starts_what_the_files_name() {
    let fastapi = "from fastapi import FastAPI\n\napi = FastAPI(title='=')\n";
    let flask = "import flask\napp: flask.Flask = flask.Flask(__name__)\n";
    let runs = "app = Flask(__name__)\nif __name__ == '__main__':\n    app.run()\n";
    let django = [("manage.py", ""), ("site1/wsgi.py", ""), ("site1/asgi.py", "")];
    let cases: &[(&str, Files<'_>, &str)] = &[
        ("", &[("app.py", "x"), ("main.py", "x")], "python3 app.py"),
        ("", &[("main.py", "x")], "python3 main.py"),
        (
            "gunicorn",
            &[("Procfile", "worker: x\nweb: gunicorn app:app\n"), ("app.py", "")],
            "sh -c gunicorn app:app",
        ),
        (
            "fastapi\nuvicorn[standard]==0.30",
            &[("main.py", fastapi)],
            "uvicorn main:api --host 0.0.0.0 --port 8000",
        ),
        (
            "FastAPI[standard]",
            &[("app/main.py", fastapi)],
            "uvicorn app.main:api --host 0.0.0.0 --port 8000",
        ),
        ("hypercorn", &[("app.py", fastapi)], "hypercorn -b 0.0.0.0:8000 app:api"),
        (
            "flask\nGunicorn",
            &[("app.py", flask)],
            "gunicorn -b 0.0.0.0:8000 app:app",
        ),
        (
            "flask\nwaitress",
            &[("app.py", flask)],
            "waitress-serve --listen=0.0.0.0:8000 app:app",
        ),
        (
            "flask",
            &[("app.py", flask)],
            "python3 -m flask --app app:app run --host 0.0.0.0 --port 8000",
        ),
        ("flask", &[("app.py", runs)], "python3 app.py"),
        (
            "flask\ngunicorn",
            &[("app.py", runs)],
            "gunicorn -b 0.0.0.0:8000 app:app",
        ),
        (
            "gunicorn",
            &[("wsgi.py", "application = create()\n")],
            "gunicorn -b 0.0.0.0:8000 wsgi:application",
        ),
        (
            "uvicorn",
            &[("app.py", "def f():\n    app = FastAPI()\n")],
            "python3 app.py",
        ),
        (
            "django\ngunicorn",
            &django,
            "gunicorn -b 0.0.0.0:8000 site1.wsgi:application",
        ),
        (
            "django\nuvicorn",
            &django,
            "uvicorn site1.asgi:application --host 0.0.0.0 --port 8000",
        ),
        ("django", &django, "python3 manage.py runserver --noreload 0.0.0.0:8000"),
    ];
    for (requirements, files, expected) in cases {
        let all = [&[("requirements.txt", *requirements)], *files].concat();
        assert_eq!(start(&ok(&all)), *expected, "{requirements} {files:?}");
    }
    let included = [
        ("requirements.txt", "-r deps/web.txt"),
        ("deps/web.txt", "uvicorn\n-r web.txt"),
        ("main.py", fastapi),
    ];
    assert_eq!(start(&ok(&included)), "uvicorn main:api --host 0.0.0.0 --port 8000");
}

#[test]
fn go_is_built_and_run() {
    let module = ("go.mod", "module example.com/x/tool // one\n\ngo 1.22\n");
    let requiring = ("go.mod", "module x\nrequire (\n\ta v1\n)\n");
    let out = "go build -o /app/.berth/app";
    let cases: &[(Files<'_>, Vec<String>)] = &[
        (&[module, ("main.go", "")], vec![format!("{out} .")]),
        (
            &[module, ("go.sum", ""), ("main.go", "")],
            vec!["go mod download".into(), format!("{out} .")],
        ),
        (
            &[requiring, ("main.go", "")],
            vec!["go mod download".into(), format!("{out} .")],
        ),
        (
            &[module, ("lib.go", "package lib"), ("cmd/web/main.go", "")],
            vec![format!("{out} ./cmd/web")],
        ),
        (
            &[module, ("cmd/a/main.go", ""), ("cmd/tool/main.go", "")],
            vec![format!("{out} ./cmd/tool")],
        ),
        (
            &[module, ("cmd/a/main.go", ""), ("cmd/shop/main.go", "")],
            vec![format!("{out} ./cmd/shop")],
        ),
        (
            &[module, ("web.go", "// x\npackage main\n"), ("cmd/a/main.go", "")],
            vec![format!("{out} .")],
        ),
        (
            &[("main.go", ""), ("http.go", ""), ("http_test.go", "")],
            vec![format!("{out} http.go main.go")],
        ),
    ];
    for (files, expected) in cases {
        let plan = ok(files);
        assert_eq!(installs(&plan), *expected, "{files:?}");
        assert_eq!(plan.start.argv, ["/app/.berth/app"]);
        assert_eq!(plan.install.last().unwrap().argv, ["rm", "-rf", "/app/.berth/cache"]);
        let env = &plan.install[0].env;
        assert_eq!(
            (env["CGO_ENABLED"].as_str(), env["GOTOOLCHAIN"].as_str()),
            ("0", "local")
        );
        assert!(env["GOFLAGS"].contains("-mod=mod") && env["GOFLAGS"].contains("-modcacherw"));
    }
    let run = ok(&[
        requiring,
        ("main.go", ""),
        ("workspace.json", r#"{"command":"go run ."}"#),
    ]);
    assert_eq!(
        run.install.iter().map(|s| s.argv.join(" ")).collect::<Vec<_>>(),
        ["go mod download"]
    );
    assert_eq!(run.env["GOMODCACHE"], "/app/.berth/cache/go-mod");
}

#[test]
fn static_sites_are_served_from_the_workspace() {
    let cases: &[(Files<'_>, &str, &str)] = &[
        (&[("index.html", ""), ("public/index.html", "")], "/workspace", ""),
        (&[("public/index.html", "")], "/workspace/public", "public"),
        (
            &[
                ("index.html", ""),
                ("docs/a.html", ""),
                ("workspace.json", r#"{"root":"./docs/"}"#),
            ],
            "/workspace/docs",
            "docs",
        ),
        (
            &[("a.txt", ""), ("workspace.json", r#"{"type":"static"}"#)],
            "/workspace",
            "",
        ),
    ];
    for (files, folder, root) in cases {
        let plan = ok(files);
        assert_eq!(plan.start.argv, ["berth-static", folder], "{files:?}");
        assert_eq!(plan.static_root.as_deref(), Some(*root));
        assert!(!plan.copy_source && plan.install.is_empty());
    }
}

#[test]
fn an_install_of_its_own_replaces_the_usual_one() {
    let json = r#"{"install":"npm ci && npm run build","env":{"NPM_TOKEN":"t","PORT":1234}}"#;
    let plan = ok(&[("package.json", EXPRESS), ("workspace.json", json)]);
    assert_eq!(installs(&plan), ["sh -c npm ci && npm run build"]);
    assert_eq!(plan.install[0].env["NPM_TOKEN"], "t");
    assert!(
        !plan.install[0].env.contains_key("PORT"),
        "an installation must not listen where the app does"
    );
    assert_eq!(plan.port, 1234);
}

#[test]
fn complaints_name_the_place_and_the_way_out() {
    let ws = |text| ("workspace.json", text);
    let poetry = "[tool.poetry]\nname = \"x\"\n[tool.poetry.dependencies]\npython = \"3\"\nflask = \"3\"\n";
    let cases: &[(Files<'_>, &[&str])] = &[
        (
            &[ws("{\n  \"type\": \"node\",\n  \"port\": 70000\n}")],
            &["workspace.json line 3, column 11: port 70000 is not between 1 and 65535"],
        ),
        (
            &[ws("{\"port\": 3000}")],
            &["workspace.json: no file here tells", "\"type\""],
        ),
        (
            &[ws("{\n \"command\": \"npm run dvelop\"}"), ("package.json", EXPRESS)],
            &["line 2, column 13", "no script `dvelop`", "it has start"],
        ),
        (
            &[ws("{\"root\": \"x\"}"), ("package.json", "{}")],
            &["line 1, column 10", "static apps only", "node app"],
        ),
        (
            &[ws("{\"root\": \"dist\"}"), ("index.html", "")],
            &["line 1, column 10", "nothing is stored", "dist"],
        ),
        (
            &[("package.json", "{\n  \"name\": \"x\",\n}")],
            &["package.json line 2, column 14: a comma before `}`"],
        ),
        (
            &[("package.json", "{\"scripts\": {\"start\": 1}}")],
            &["package.json line 1, column 23", "`start` is a text"],
        ),
        (
            &[("package.json", "{\"dependencies\": []}")],
            &["package.json line 1, column 18", "`dependencies` is an object"],
        ),
        (&[("package.json", "[]")], &["package.json line 1, column 1"]),
        (
            &[("package.json", "{}")],
            &["no start found for this node app", "\"scripts\""],
        ),
        (
            &[("package.json", "{\"scripts\":{\"dev\":\"vite\"}}")],
            &["npm run dev", "NODE_ENV"],
        ),
        (
            &[("package.json", "{\"main\":\"dist/index.js\"}")],
            &["dist/index.js", "npm run build"],
        ),
        (
            &[("pyproject.toml", "[project\nname = 1"), ("app.py", "")],
            &["pyproject.toml line 1, column 9"],
        ),
        (
            &[("pyproject.toml", poetry), ("app.py", "")],
            &["pyproject.toml line 3, column 1", "requirements.txt"],
        ),
        (
            &[("requirements.txt", "")],
            &["no start found for this python app", "app.py"],
        ),
        (
            &[("requirements.txt", "fastapi"), ("main.py", "app = FastAPI()")],
            &["main.py makes a FastAPI app", "uvicorn"],
        ),
        (
            &[("go.mod", "module x")],
            &["no start found for this go app", "main.go"],
        ),
        (
            &[("go.mod", "module x"), ("cmd/a/main.go", ""), ("cmd/b/main.go", "")],
            &["2 programs", "./cmd/a"],
        ),
        (
            &[("go.mod", "module x"), ("main.go", ""), ws("{\"install\": false}")],
            &["\"command\""],
        ),
    ];
    for (files, words) in cases {
        let message = plan_of(files).expect_err(&format!("{files:?}")).to_string();
        for word in *words {
            assert!(message.contains(word), "{files:?}: {message:?} lacks {word:?}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_no_verdict_on_the_app() {
    let files = [SourceFile {
        path: "package.json".into(),
        mode: FileMode::Regular,
        size: 2,
        content: "e".into(),
    }];
    let e = plan(
        &AppName::parse("shop").unwrap(),
        &Source {
            files: &files,
            read: &|_| None,
        },
    )
    .unwrap_err();
    assert_eq!(
        e,
        PlanError::Unreadable {
            path: "package.json".into()
        }
    );
    assert_eq!((e.path(), e.position()), (Some("package.json"), None));
}

proptest! {
    #[test]
    fn any_content_gives_a_plan_or_a_complaint(
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 15),
        listed in prop::collection::vec(any::<bool>(), 15),
        line in r#"[\[\]{}"=:,.a-z#\-/ ()\n]{0,60}"#,
    ) {
        let paths = manifest_paths();
        prop_assert_eq!(paths.len(), texts.len());
        let files: Vec<SourceFile> = paths.iter().zip(&listed).filter(|(_, yes)| **yes)
            .map(|(p, _)| SourceFile { path: (*p).into(), mode: FileMode::Regular, size: 1, content: String::new() })
            .collect();
        for structured in [false, true] {
            let read = |path: &str| {
                let at = paths.iter().position(|p| *p == path);
                // Only manifests may be asked for here, and all that is asked for is answered.
                assert!(at.is_some(), "{path} was read");
                at.map(|at| if structured { line.clone().into_bytes() } else { texts[at].clone() })
            };
            let app = AppName::parse("shop").unwrap();
            let once = plan(&app, &Source { files: &files, read: &read });
            if let Err(e) = &once {
                prop_assert!(!e.to_string().is_empty());
            }
            let turned: Vec<SourceFile> = files.iter().rev().cloned().collect();
            prop_assert_eq!(plan(&app, &Source { files: &turned, read: &read }), once);
        }
    }
}
