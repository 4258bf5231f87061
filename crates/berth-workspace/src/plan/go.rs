//! Go apps: built in the sandbox to `/app/.berth/app`, then that file is run.
//!
//! The main package is the folder with `main.go`, else the only folder below `cmd/` (or the one named like the module or the
//! app), else the root if one of its files says `package main`. `vendor/` is never stored, so modules are always downloaded
//! (`-mod=mod`); what was downloaded and compiled is removed after the build. Without `go.mod` the files of the root are
//! built by name, which works as long as they use the standard library alone.

use super::context::Context;
use super::{BASE_PATH, INSTALL_CACHE, Parts, PlanError, Step, env_of, install};
use crate::Kind;
use crate::file::Command;

const BINARY: &str = "/app/.berth/app";

pub(super) fn parts(context: &Context<'_>) -> Result<Parts, PlanError> {
    let module = context.text("go.mod")?;
    let mut tool_env = env_of([
        ("CGO_ENABLED", "0"),
        ("GOTOOLCHAIN", "local"),
        ("GOTELEMETRY", "off"),
        // The module cache is read-only by default and could then not be removed.
        (
            "GOFLAGS",
            if context.has("go.work") {
                "-modcacherw -buildvcs=false"
            } else {
                "-mod=mod -modcacherw -buildvcs=false"
            },
        ),
    ]);
    tool_env.insert("GOCACHE".into(), format!("{INSTALL_CACHE}/go-build"));
    tool_env.insert("GOMODCACHE".into(), format!("{INSTALL_CACHE}/go-mod"));
    // `go run` builds by itself, at every start.
    let runs_go = context.file.command.as_ref().is_some_and(is_go);
    let mut steps = Vec::new();
    if module.as_deref().is_some_and(|m| requires(m) || context.has("go.sum")) {
        steps.push(Step::plain(&["go", "mod", "download"]));
    }
    if !runs_go && (context.file.install.is_none()) {
        match build(context, module.as_deref()) {
            Ok(step) => steps.push(step),
            // A command of its own needs no binary of ours.
            Err(e) if context.file.command.is_none() => return Err(e),
            Err(_) => {}
        }
    }
    let start = match context.command() {
        Some(step) => step,
        None if context.file.install.is_some() => {
            let hint =
                "workspace.json replaces the build by its own `install`; add \"command\" with the program to run";
            return Err(no_start(hint));
        }
        None => Step::new("the built program", &[BINARY]),
    };
    let mut installed = install(&context.file, &tool_env, Vec::new(), steps);
    let mut env = env_of([("PATH", BASE_PATH)]);
    if runs_go {
        env.extend(tool_env);
        // The downloads are needed again at the start.
        installed.retain(|step| !step.argv.iter().any(|a| a == "rm"));
    }
    Ok(Parts {
        install: installed,
        start,
        env,
        static_root: None,
    })
}

fn no_start(hint: &str) -> PlanError {
    PlanError::NoStart {
        kind: Kind::Go,
        hint: hint.to_owned(),
    }
}

fn is_go(command: &Command) -> bool {
    let program = match command {
        Command::Shell(line) => line.split_whitespace().next(),
        Command::Argv(argv) => argv.first().map(String::as_str),
    };
    program == Some("go")
}

/// Whether `go.mod` requires any module.
fn requires(module: &str) -> bool {
    module.lines().any(|line| {
        line.split("//")
            .next()
            .unwrap_or("")
            .split_whitespace()
            .next()
            .is_some_and(|w| w.trim_end_matches('(') == "require")
    })
}

fn build(context: &Context<'_>, module: Option<&str>) -> Result<Step, PlanError> {
    let root: Vec<&str> = context.paths().filter(|p| !p.contains('/') && is_source(p)).collect();
    if module.is_none() {
        if root.is_empty() {
            return Err(no_start(
                "add a go.mod and a main.go, or a workspace.json with a \"command\"",
            ));
        }
        let mut argv = vec!["go", "build", "-o", BINARY];
        argv.extend(&root);
        return Ok(Step::new(&format!("go build {}", root.join(" ")), &argv));
    }
    let package = main_package(context, module.unwrap_or_default(), &root)?;
    Ok(Step::new(
        &format!("go build {package}"),
        &["go", "build", "-o", BINARY, &package],
    ))
}

fn is_source(path: &str) -> bool {
    path.ends_with(".go") && !path.ends_with("_test.go")
}

fn main_package(context: &Context<'_>, module: &str, root: &[&str]) -> Result<String, PlanError> {
    if root.contains(&"main.go") {
        return Ok(".".into());
    }
    for path in root {
        if context.text(path).is_ok_and(|text| text.is_some_and(|t| says_main(&t))) {
            return Ok(".".into());
        }
    }
    let mut commands: Vec<&str> = context
        .paths()
        .filter(|p| is_source(p))
        .filter_map(|p| p.strip_prefix("cmd/")?.split_once('/'))
        .filter(|(_, rest)| !rest.contains('/'))
        .map(|(name, _)| name)
        .collect();
    commands.dedup();
    let module_line = module.lines().find_map(|line| line.trim().strip_prefix("module "));
    let module_path = module_line
        .and_then(|line| line.split("//").next())
        .unwrap_or("")
        .trim();
    let name = module_path.rsplit('/').next();
    let named = |c: &&&str| Some(**c) == name || **c == context.app.as_str() || **c == "server";
    match (&commands[..], context.paths().any(|p| p == "cmd/main.go")) {
        ([only], false) => Ok(format!("./cmd/{only}")),
        ([], true) => Ok("./cmd".into()),
        ([], false) => Err(no_start("there is no main package; add a main.go with `package main`")),
        (several, _) => match several.iter().find(named) {
            Some(found) => Ok(format!("./cmd/{found}")),
            None => {
                let first = several[0];
                Err(no_start(&format!(
                    "cmd/ holds {} programs; say which one in workspace.json: \"install\": \"go build -o {BINARY} ./cmd/{first}\" \
                     and \"command\": \"{BINARY}\"",
                    several.len()
                )))
            }
        },
    }
}

fn says_main(text: &str) -> bool {
    text.lines()
        .any(|line| line.split("//").next().unwrap_or("").trim() == "package main")
}
