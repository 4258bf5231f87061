//! Node apps: the package manager is the one whose lock file is there, the start is `npm start` without npm.
//!
//! npm as the parent of the app costs 130 ms of every cold start and tens of megabytes as long as the app runs, so a script
//! of `package.json` is run as npm would run it: `sh -c SCRIPT` in `/app`, `node_modules/.bin` first on PATH, the variables
//! `npm_lifecycle_event`, `npm_package_*` and so on set, `preNAME` before it and `postNAME` after it. The same is done for a
//! `command` of `workspace.json` that is just `npm start` or `npm run NAME`.
//!
//! The image has node 24, npm, pnpm, bun and yarn 1. A `yarn.lock` of a later yarn (it holds `__metadata:`) is installed by
//! the release in `.yarn/releases` if the workspace brings one, else by `@yarnpkg/cli-dist` through npx, with
//! `node_modules` as the linker, because plain `node` cannot load from Plug'n'Play.

use std::collections::BTreeMap;

use super::context::Context;
use super::{BASE_PATH, INSTALL_CACHE, Parts, PlanError, Step, env_of, install};
use crate::file::Command;
use crate::json::{self, Node, Value};
use crate::{FileError, Kind};

const PACKAGE: &str = "package.json";

/// Files that are taken for the app if nothing says otherwise.
const USUAL: [&str; 10] = [
    "server.js",
    "index.js",
    "app.js",
    "server.mjs",
    "index.mjs",
    "app.mjs",
    "server.cjs",
    "index.cjs",
    "server.ts",
    "index.ts",
];

pub(super) fn parts(context: &Context<'_>) -> Result<Parts, PlanError> {
    let package = read_package(context)?;
    let said = context.file.env.get("NODE_ENV").map(String::as_str);
    let dev = said.is_some_and(|e| e != "production");
    let mut env = env_of([("NODE_ENV", "production")]);
    let mut install_env = env.clone();
    install_env.extend(tool_env());
    env.insert("PATH".into(), format!("/app/node_modules/.bin:{BASE_PATH}"));
    let steps = match &package {
        Some(package) if needs_install(package, dev) => vec![install_step(context, package, dev)?],
        _ => Vec::new(),
    };
    Ok(Parts {
        install: install(&context.file, &install_env, Vec::new(), steps),
        start: start(context, package.as_ref())?,
        env,
        static_root: None,
    })
}

/// What the package managers are told: where downloads go, and that nobody is there to be asked or told news.
fn tool_env() -> BTreeMap<String, String> {
    let cache = |name: &str| format!("{INSTALL_CACHE}/{name}");
    let mut env = env_of([
        ("CI", "true"),
        ("npm_config_update_notifier", "false"),
        ("npm_config_audit", "false"),
        ("npm_config_fund", "false"),
        ("npm_config_progress", "false"),
        ("YARN_ENABLE_TELEMETRY", "0"),
        ("YARN_NODE_LINKER", "node-modules"),
        ("YARN_ENABLE_GLOBAL_CACHE", "true"),
    ]);
    env.insert("npm_config_cache".into(), cache("npm"));
    env.insert("YARN_CACHE_FOLDER".into(), cache("yarn"));
    env.insert("YARN_GLOBAL_FOLDER".into(), cache("yarn-global"));
    env.insert("BUN_INSTALL_CACHE_DIR".into(), cache("bun"));
    env
}

fn bad(node: &Node, message: impl Into<String>) -> PlanError {
    let mistake = json::Mistake {
        at: node.at,
        message: message.into(),
    };
    PlanError::BadPackageJson(FileError::new(PACKAGE, mistake))
}

/// Reads `package.json` and checks the types of what is used later.
fn read_package(context: &Context<'_>) -> Result<Option<Node>, PlanError> {
    let Some(bytes) = context.read(PACKAGE)? else {
        return Ok(None);
    };
    let package = json::parse(&bytes).map_err(|mistake| PlanError::BadPackageJson(FileError::new(PACKAGE, mistake)))?;
    if !matches!(package.value, Value::Object(_)) {
        return Err(bad(
            &package,
            format!("is an object {{...}}, not {}", package.value.describe()),
        ));
    }
    for key in [
        "scripts",
        "dependencies",
        "devDependencies",
        "optionalDependencies",
        "peerDependencies",
    ] {
        if let Some(node) = package.get(key)
            && !matches!(node.value, Value::Object(_))
        {
            return Err(bad(
                node,
                format!("`{key}` is an object {{...}}, not {}", node.value.describe()),
            ));
        }
    }
    for script in package.get("scripts").map_or(&[][..], Node::members) {
        if script.value.text().is_none() {
            let message = format!(
                "the script `{}` is a text, not {}",
                json::shorten(&script.key),
                script.value.value.describe()
            );
            return Err(bad(&script.value, message));
        }
    }
    if let Some(main) = package.get("main")
        && main.text().is_none()
    {
        return Err(bad(
            main,
            format!("`main` is a file name, not {}", main.value.describe()),
        ));
    }
    Ok(Some(package))
}

/// Whether there is anything to install: an app without dependencies starts without a package manager.
fn needs_install(package: &Node, dev: bool) -> bool {
    let filled = |key: &str| match package.get(key).map(|n| &n.value) {
        Some(Value::Object(members)) => !members.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        _ => false,
    };
    let hooks = ["preinstall", "install", "postinstall", "prepare"];
    ["dependencies", "optionalDependencies", "peerDependencies", "workspaces"]
        .into_iter()
        .any(filled)
        || (dev && filled("devDependencies"))
        || hooks.into_iter().any(|hook| script(package, hook).is_some())
}

fn install_step(context: &Context<'_>, package: &Node, dev: bool) -> Result<Step, PlanError> {
    let step = |what: &str, prod: &str, rest: &[&str]| {
        let mut argv: Vec<&str> = what.split(' ').collect();
        if !dev {
            argv.push(prod);
        }
        let shown = argv.join(" ");
        argv.extend(rest);
        Step::new(&shown, &argv)
    };
    const QUIET: [&str; 3] = ["--no-audit", "--no-fund", "--loglevel=error"];
    if context.has("package-lock.json") || context.has("npm-shrinkwrap.json") {
        return Ok(step("npm ci", "--omit=dev", &QUIET));
    }
    if context.has("pnpm-lock.yaml") {
        return Ok(step(
            "pnpm install",
            "--prod",
            &["--frozen-lockfile", &format!("--store-dir={INSTALL_CACHE}/pnpm")],
        ));
    }
    if let Some(lock) = context.text("yarn.lock")? {
        return Ok(match lock.lines().any(|line| line.starts_with("__metadata:")) {
            true => yarn_berry(context, package, &lock),
            false => step(
                "yarn install",
                "--production",
                &["--frozen-lockfile", "--non-interactive"],
            ),
        });
    }
    if context.has("bun.lock") || context.has("bun.lockb") {
        return Ok(step("bun install", "--production", &["--frozen-lockfile"]));
    }
    Ok(step("npm install", "--omit=dev", &QUIET))
}

/// `yarn install --immutable` by the yarn that wrote the lock.
fn yarn_berry(context: &Context<'_>, package: &Node, lock: &str) -> Step {
    let release = context
        .paths()
        .filter(|p| p.starts_with(".yarn/releases/yarn-") && p.ends_with("js"))
        .last();
    if let Some(release) = release {
        let path = format!("/app/{release}");
        return Step::new("yarn install --immutable", &["node", &path, "install", "--immutable"]);
    }
    // "yarn@4.5.1+sha512.…" in packageManager is exact; else the format of the lock tells which yarns wrote it.
    let named = package
        .get("packageManager")
        .and_then(Node::text)
        .and_then(|m| m.strip_prefix("yarn@"));
    let version = match named.and_then(|v| v.split('+').next()).filter(|v| !v.is_empty()) {
        Some(version) => version.to_owned(),
        None => yarn_of_lock(lock).to_owned(),
    };
    let tool = format!("@yarnpkg/cli-dist@{version}");
    Step::new(
        "yarn install --immutable",
        &[
            "npm",
            "exec",
            "--yes",
            &format!("--package={tool}"),
            "--",
            "yarn",
            "install",
            "--immutable",
        ],
    )
}

/// The last yarn that writes this format of lock. A later one would have to rewrite the lock, which `--immutable` forbids.
fn yarn_of_lock(lock: &str) -> &'static str {
    let field = |name: &'static str| lock.lines().filter_map(move |line| line.trim().strip_prefix(name));
    let format = field("version:")
        .next()
        .and_then(|f| f.trim().parse().ok())
        .unwrap_or(u32::MAX);
    match format {
        ..=4 => "2",
        5 => "3.1",
        6..=7 => "3",
        // Since 4.1 a checksum begins with its cache key: "10c0/4199…".
        8 if field("checksum:").next().is_some_and(|sum| !sum.contains('/')) => "4.0",
        8 => "4.12",
        9 => "4.14",
        10.. => "4",
    }
}

fn script<'a>(package: &'a Node, name: &str) -> Option<&'a str> {
    package
        .get("scripts")?
        .get(name)?
        .text()
        .filter(|line| !line.trim().is_empty())
}

fn start(context: &Context<'_>, package: Option<&Node>) -> Result<Step, PlanError> {
    if let Some(command) = &context.file.command {
        let Some(name) = npm_script(command) else {
            return Ok(Step::of_command(command));
        };
        let Some(package) = package else {
            return Ok(Step::of_command(command));
        };
        if let Some(line) = script(package, &name) {
            return Ok(run_script(package, &name, line));
        }
        // npm's own default for `npm start` without a script.
        if name == "start" && context.has("server.js") {
            return Ok(Step::plain(&["node", "server.js"]));
        }
        let names: Vec<&str> = package
            .get("scripts")
            .map_or(&[][..], Node::members)
            .iter()
            .map(|m| m.key.as_str())
            .collect();
        let known = if names.is_empty() {
            "it has none".to_owned()
        } else {
            format!("it has {}", names.join(", "))
        };
        let message = format!("package.json has no script `{name}`; {known}");
        return Err(PlanError::BadWorkspaceFile(context.file.complain("command", message)));
    }
    if let Some((package, line)) = package.and_then(|p| script(p, "start").map(|line| (p, line))) {
        return Ok(run_script(package, "start", line));
    }
    if let Some(step) = context.procfile()? {
        return Ok(step);
    }
    if let Some(main) = package
        .and_then(|p| p.get("main"))
        .and_then(Node::text)
        .filter(|m| !m.trim().is_empty())
    {
        return start_main(context, main);
    }
    if let Some(file) = USUAL.into_iter().find(|f| context.has(f)) {
        return Ok(Step::plain(&["node", file]));
    }
    Err(no_start(match package.and_then(|p| script(p, "dev")) {
        Some(_) => {
            "package.json has a script `dev` but no `start`; add \"scripts\": {\"start\": \"node server.js\"}, or a \
                    workspace.json with \"command\": \"npm run dev\" and \"env\": {\"NODE_ENV\": \"development\"}"
        }
        None => {
            "add \"scripts\": {\"start\": \"node server.js\"} or \"main\": \"server.js\" to package.json, or a server.js"
        }
    }))
}

/// `main` as node resolves it, if the file is there.
fn start_main(context: &Context<'_>, main: &str) -> Result<Step, PlanError> {
    let file = main.trim().trim_start_matches("./").trim_end_matches('/');
    let file = if file.is_empty() || file == "." { "index" } else { file };
    let endings = ["", ".js", ".mjs", ".cjs", ".ts", "/index.js"];
    match endings
        .into_iter()
        .map(|e| format!("{file}{e}"))
        .find(|path| context.has(path))
    {
        Some(path) => Ok(Step::plain(&["node", &path])),
        None => Err(no_start(&format!(
            "`main` of package.json is {main}, but there is no such file; if it is made by a build (dist and build are never \
             stored), add to workspace.json \"install\": \"npm install && npm run build\" and \"command\": \"node {file}\""
        ))),
    }
}

fn no_start(hint: &str) -> PlanError {
    PlanError::NoStart {
        kind: Kind::Node,
        hint: hint.to_owned(),
    }
}

/// The script's name if the command is nothing but `npm start` or `npm run NAME`.
fn npm_script(command: &Command) -> Option<String> {
    let words: Vec<&str> = match command {
        Command::Shell(line) => line.split_whitespace().collect(),
        Command::Argv(argv) => argv.iter().map(String::as_str).collect(),
    };
    let name = match words[..] {
        ["npm", "start"] => "start",
        ["npm", "run" | "run-script", name] => name,
        _ => return None,
    };
    let simple = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '-');
    (name.chars().all(simple) && !name.starts_with('-')).then(|| name.to_owned())
}

/// Runs a script as npm would. The scripts are handed over as arguments, so nothing in them needs quoting.
fn run_script(package: &Node, name: &str, line: &str) -> Step {
    let before = script(package, &format!("pre{name}"));
    let after = script(package, &format!("post{name}"));
    let pre_event = format!("npm_lifecycle_event=pre{name} sh -c \"$1\" && ");
    let post_event = format!(" && npm_lifecycle_event=post{name} exec sh -c \"$3\"");
    let argv: Vec<String> = match (before, after) {
        (None, None) => ["sh", "-c", line].map(str::to_owned).to_vec(),
        (before, after) => {
            let glue = format!(
                "{}{}sh -c \"$2\"{}",
                if before.is_some() { &pre_event } else { "" },
                if after.is_none() { "exec " } else { "" },
                if after.is_some() { &post_event } else { "" },
            );
            [
                "sh",
                "-c",
                &glue,
                "npm",
                before.unwrap_or_default(),
                line,
                after.unwrap_or_default(),
            ]
            .map(str::to_owned)
            .to_vec()
        }
    };
    let command = if name == "start" {
        "npm start".to_owned()
    } else {
        format!("npm run {name}")
    };
    Step {
        argv,
        env: script_env(package, name, line),
        what: format!("{command}: {line}"),
    }
}

/// The variables npm gives a script, as far as they do not describe npm itself.
fn script_env(package: &Node, name: &str, line: &str) -> BTreeMap<String, String> {
    let mut env = env_of([
        ("npm_lifecycle_event", name),
        ("npm_lifecycle_script", line),
        ("npm_command", if name == "start" { "start" } else { "run-script" }),
        ("npm_package_json", "/app/package.json"),
        ("INIT_CWD", "/app"),
    ]);
    for key in ["name", "version"] {
        let text = package.get(key).and_then(Node::text).unwrap_or_default();
        env.insert(format!("npm_package_{key}"), text.to_owned());
    }
    for group in ["config", "engines"] {
        for member in package.get(group).map_or(&[][..], Node::members) {
            let value = match &member.value.value {
                Value::String(text) | Value::Number(text) => text.clone(),
                Value::Bool(yes) => yes.to_string(),
                _ => continue,
            };
            let key: String = member
                .key
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
                .collect();
            env.insert(format!("npm_package_{group}_{key}"), value);
        }
    }
    // A NUL cannot be in an environment; JSON can say \u0000.
    env.retain(|_, value| !value.contains('\0'));
    env
}
