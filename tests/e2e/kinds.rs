//! Every kind of app, with real packages from the registries.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use berth_harness::{Answer, Daemon, samples};

const BERTH: &str = env!("CARGO_BIN_EXE_berth");

#[track_caller]
fn answers(daemon: &Daemon, path: &str, text: &str) -> Answer {
    let answer = daemon.get(path);
    let app = path.split('/').nth(1).unwrap();
    assert_eq!(
        (answer.status, answer.text.trim()),
        (200, text),
        "{}{}",
        daemon.berth(&["logs", app]).stdout,
        daemon.berth(&["inspect", app]).stdout
    );
    answer
}

#[test]
fn python_apps_with_flask_and_fastapi() {
    let daemon = Daemon::start(BERTH);
    daemon.save(
        "flask-app/app.py",
        "from flask import Flask\napp = Flask(__name__)\n@app.get('/')\ndef hello():\n    return 'flask says hello'\nif __name__ == '__main__':\n    app.run()\n",
    );
    daemon.save("flask-app/requirements.txt", "flask\n");
    daemon.save(
        "fast/main.py",
        "from fastapi import FastAPI\napp = FastAPI()\n@app.get('/')\ndef hello():\n    return 'fastapi says hello'\n",
    );
    daemon.save("fast/requirements.txt", "fastapi\nuvicorn\n");
    answers(&daemon, "/flask-app/", "flask says hello");
    answers(&daemon, "/fast/", "\"fastapi says hello\"");
}

#[test]
fn a_go_app_with_a_module_from_the_proxy() {
    let daemon = Daemon::start(BERTH);
    daemon.save(
        "gopher/main.go",
        "package main\n\nimport (\n\t\"fmt\"\n\t\"net/http\"\n\t\"os\"\n\n\t\"github.com/google/uuid\"\n)\n\nfunc main() {\n\thttp.HandleFunc(\"/\", func(w http.ResponseWriter, r *http.Request) {\n\t\tfmt.Fprint(w, \"go says \", len(uuid.NewString()))\n\t})\n\tpanic(http.ListenAndServe(\":\"+os.Getenv(\"PORT\"), nil))\n}\n",
    );
    daemon.save(
        "gopher/go.mod",
        "module gopher\n\ngo 1.24\n\nrequire github.com/google/uuid v1.6.0\n",
    );
    daemon.save(
        "gopher/go.sum",
        "github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\ngithub.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n",
    );
    answers(&daemon, "/gopher/", "go says 36");
}

#[test]
fn static_sites_are_served_from_the_mount_and_show_edits_at_once() {
    let daemon = Daemon::start(BERTH);
    samples::site(&daemon, "plain", "<p>plain</p>");
    daemon.save("public-site/public/index.html", "<p>public</p>");
    daemon.save("public-site/public/style.css", "p { color: red }");
    answers(&daemon, "/plain/", "<p>plain</p>");
    answers(&daemon, "/public-site/", "<p>public</p>");
    let css = answers(&daemon, "/public-site/style.css", "p { color: red }");
    assert!(
        css.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/css")),
        "{:?}",
        css.headers
    );
    daemon.save("plain/index.html", "<p>changed</p>");
    berth_harness::wait("the edit to show", std::time::Duration::from_secs(5), || {
        daemon.get("/plain/").text.trim() == "<p>changed</p>"
    });
}

#[test]
fn a_node_app_with_a_pnpm_lock_file() {
    let daemon = Daemon::start(BERTH);
    daemon.save("pnpm-app/index.js", "const n = require('is-number');\nrequire('http').createServer((q, s) => s.end('pnpm ' + n(5))).listen(process.env.PORT);\n");
    daemon.save(
        "pnpm-app/pnpm-lock.yaml",
        "lockfileVersion: '9.0'\n\nsettings:\n  autoInstallPeers: true\n  excludeLinksFromLockfile: false\n\nimporters:\n\n  .:\n    dependencies:\n      is-number:\n        specifier: 7.0.0\n        version: 7.0.0\n\npackages:\n\n  is-number@7.0.0:\n    resolution: {integrity: sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK9cGvNp6NZWZUBlbGXYxxng==}\n    engines: {node: '>=0.12.0'}\n\nsnapshots:\n\n  is-number@7.0.0: {}\n",
    );
    daemon.save(
        "pnpm-app/package.json",
        r#"{"name": "pnpm-app", "version": "1.0.0", "scripts": {"start": "node index.js"}, "dependencies": {"is-number": "7.0.0"}}"#,
    );
    answers(&daemon, "/pnpm-app/", "pnpm true");
}

#[test]
fn workspace_json_decides_type_port_command_and_environment() {
    let daemon = Daemon::start(BERTH);
    daemon.save("custom/serve.js", "require('http').createServer((q, s) => s.end(process.env.GREETING + ' ' + process.env.NODE_ENV + ' ' + process.env.PORT)).listen(4321);\n");
    daemon.save(
        "custom/workspace.json",
        r#"{ "type": "node", "port": 4321, "command": "node serve.js", "env": { "GREETING": "hi there", "NODE_ENV": "development" } }"#,
    );
    answers(&daemon, "/custom/", "hi there development 4321");
}

#[test]
fn an_app_is_found_wherever_it_listens_and_two_may_use_one_port() {
    let daemon = Daemon::start(BERTH);
    let on =
        |port: &str, text: &str| format!("require('http').createServer((q, s) => s.end('{text}')).listen({port});");
    samples::node_program(&daemon, "odd", &on("5123, '127.0.0.1'", "odd port"));
    samples::node_program(&daemon, "left", &on("3000", "left"));
    samples::node_program(&daemon, "right", &on("3000", "right"));
    answers(&daemon, "/odd/", "odd port");
    answers(&daemon, "/left/", "left");
    answers(&daemon, "/right/", "right");
    answers(&daemon, "/left/", "left");
}
