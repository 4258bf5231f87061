//! Python apps: `uv` installs into `/app/.venv`; the start is what the files name.
//!
//! Installed is, in this order: `uv.lock` with `pyproject.toml`, `requirements.txt`, the `[project]` dependencies of
//! `pyproject.toml`. Without any dependency there is no virtual environment and the image's own python runs the app.
//! How the start is found is in `python_web.rs`.

use std::collections::BTreeSet;

use super::context::Context;
use super::{BASE_PATH, INSTALL_CACHE, Parts, PlanError, Step, env_of, install, python_web};
use crate::FileError;

const VENV: &str = "/app/.venv";
const VENV_PYTHON: &str = "/app/.venv/bin/python";
const PYPROJECT: &str = "pyproject.toml";

/// Requirements files may include each other, but not for ever.
const MAX_INCLUDES: usize = 16;

/// Names of the required packages, normalised (PEP 503), with `NAME[EXTRA]` beside each NAME that has extras.
pub(super) type Packages = BTreeSet<String>;

pub(super) fn parts(context: &Context<'_>, port: u16) -> Result<Parts, PlanError> {
    let mut tool_env = env_of([
        ("UV_PYTHON_DOWNLOADS", "never"),
        // A .python-version of another version must not fail: the image has one python.
        ("UV_PYTHON", "python3"),
        ("UV_LINK_MODE", "hardlink"),
        ("UV_NO_PROGRESS", "1"),
        ("VIRTUAL_ENV", VENV),
        ("UV_PROJECT_ENVIRONMENT", VENV),
    ]);
    tool_env.insert("UV_CACHE_DIR".into(), format!("{INSTALL_CACHE}/uv"));
    let path = format!("{VENV}/bin:{BASE_PATH}");
    tool_env.insert("PATH".into(), path.clone());
    let mut env = env_of([("PYTHONUNBUFFERED", "1"), ("FORWARDED_ALLOW_IPS", "*")]);
    env.insert("PATH".into(), path);

    let wanted = wanted(context)?;
    let steps: Vec<Step> = wanted.step.into_iter().collect();
    let venv = Step::new("uv venv", &["uv", "venv", "--quiet", VENV]);
    let first = if wanted.makes_venv { Vec::new() } else { vec![venv] };
    let install = install(&context.file, &tool_env, first, steps);
    if !install.is_empty() {
        env.insert("VIRTUAL_ENV".into(), VENV.into());
    }
    let start = match context.command() {
        Some(step) => step,
        None => python_web::start(context, &wanted.packages, port)?,
    };
    Ok(Parts {
        install,
        start,
        env,
        static_root: None,
    })
}

/// What is to be installed.
#[derive(Default)]
struct Wanted {
    step: Option<Step>,
    /// The step makes the virtual environment itself.
    makes_venv: bool,
    packages: Packages,
}

fn wanted(context: &Context<'_>) -> Result<Wanted, PlanError> {
    let project = read_pyproject(context)?;
    let own_install = context.file.install.is_some();
    let declared = project.as_ref().map(|(table, _)| declared(table)).unwrap_or_default();
    let mut required = Packages::new();
    let mut left = MAX_INCLUDES;
    requirements(context, "requirements.txt", &mut required, &mut left)?;
    let packages: Packages = declared.iter().chain(&required).cloned().collect();
    let found = |step: Step| Wanted {
        step: Some(step),
        makes_venv: false,
        packages: packages.clone(),
    };
    if project.is_some() && context.has("uv.lock") && !own_install {
        return Ok(Wanted {
            makes_venv: true,
            ..found(Step::plain(&["uv", "sync", "--frozen", "--no-dev"]))
        });
    }
    let pip = |what: &str, rest: &[&str]| {
        let argv = [&["uv", "pip", "install", "--python", VENV_PYTHON][..], rest].concat();
        found(Step::new(&format!("uv pip install {what}"), &argv))
    };
    if !required.is_empty() {
        return Ok(pip("-r requirements.txt", &["-r", "requirements.txt"]));
    }
    if let Some((table, text)) = &project {
        let project = table.get("project");
        if is_dynamic(project) {
            return Ok(pip(".", &["."]));
        }
        if !declared.is_empty() && project.is_some_and(|p| p.get("dependencies").is_some()) {
            return Ok(pip("-r pyproject.toml", &["-r", PYPROJECT]));
        }
        if !declared.is_empty() && !own_install {
            return Err(poetry(text));
        }
    }
    Ok(Wanted {
        packages,
        ..Wanted::default()
    })
}

fn is_dynamic(project: Option<&toml::Value>) -> bool {
    let dynamic = project.and_then(|p| p.get("dynamic")).and_then(toml::Value::as_array);
    dynamic.is_some_and(|names| names.iter().any(|n| n.as_str() == Some("dependencies")))
}

/// Dependencies in Poetry's own table only: uv cannot read them without building the app as a package.
fn poetry(text: &str) -> PlanError {
    let line = text
        .lines()
        .position(|l| l.trim().starts_with("[tool.poetry.dependencies"))
        .map_or(1, |l| l + 1);
    PlanError::BadPyproject(FileError {
        path: PYPROJECT.into(),
        line,
        column: 1,
        message: "these dependencies are in Poetry's own form; list them under [project] as dependencies = [\"flask>=3\"], or \
                  write a requirements.txt (`poetry export -o requirements.txt`)"
            .into(),
    })
}

fn read_pyproject(context: &Context<'_>) -> Result<Option<(toml::Table, String)>, PlanError> {
    let Some(bytes) = context.read(PYPROJECT)? else {
        return Ok(None);
    };
    let broken = |at: usize, message: String| {
        let before = String::from_utf8_lossy(&bytes[..at.min(bytes.len())]);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        PlanError::BadPyproject(FileError {
            path: PYPROJECT.into(),
            line,
            column,
            message,
        })
    };
    let text = std::str::from_utf8(&bytes)
        .map_err(|e| broken(e.valid_up_to(), "this byte is not UTF-8; save the file as UTF-8".into()))?;
    let table = toml::from_str::<toml::Table>(text).map_err(|e| {
        let message = e.message().lines().next().unwrap_or("is no TOML").to_owned();
        broken(e.span().map_or(0, |s| s.start), message)
    })?;
    Ok(Some((table, text.to_owned())))
}

/// The packages that `pyproject.toml` declares, in the standard's or in Poetry's form.
fn declared(table: &toml::Table) -> Packages {
    let mut packages = Packages::new();
    let list = table
        .get("project")
        .and_then(|p| p.get("dependencies"))
        .and_then(toml::Value::as_array);
    for item in list.into_iter().flatten().filter_map(toml::Value::as_str) {
        add(&mut packages, item);
    }
    let poetry = table
        .get("tool")
        .and_then(|t| t.get("poetry"))
        .and_then(|p| p.get("dependencies"));
    for (name, value) in poetry.and_then(toml::Value::as_table).into_iter().flatten() {
        if name != "python" {
            let extras = value
                .get("extras")
                .and_then(toml::Value::as_array)
                .into_iter()
                .flatten();
            let extras: Vec<&str> = extras.filter_map(toml::Value::as_str).collect();
            add(&mut packages, &format!("{name}[{}]", extras.join(",")));
        }
    }
    packages
}

/// Collects the packages of a requirements file and of those it includes.
fn requirements(context: &Context<'_>, path: &str, into: &mut Packages, left: &mut usize) -> Result<(), PlanError> {
    if *left == 0 {
        return Ok(());
    }
    *left -= 1;
    // Only searched, so a file that is not among the fetched ones is no error: the install itself will read it.
    let text = if path == "requirements.txt" {
        context.text(path)?
    } else {
        context.text(path).unwrap_or_default()
    };
    for line in text.unwrap_or_default().lines() {
        let line = line.split(" #").next().unwrap_or("").trim();
        let included = ["-r", "--requirement"]
            .into_iter()
            .find_map(|flag| line.strip_prefix(flag));
        if let Some(name) = included.map(|rest| rest.trim_start_matches(['=', ' ', '\t'])) {
            // "an include" is something to install, whatever is in it.
            into.insert(format!("-r {name}"));
            let folder = path.rfind('/').map_or("", |end| &path[..=end]);
            requirements(
                context,
                &format!("{folder}{}", name.trim_start_matches("./")),
                into,
                left,
            )?;
        } else if line.starts_with("-e") || line.starts_with("--editable") {
            into.insert(line.to_owned());
        } else if !line.is_empty() && !line.starts_with(['-', '#']) {
            add(into, line);
        }
    }
    Ok(())
}

/// Adds the package that a requirement names: `Flask_Cors[async]>=3 ; python_version > "3"` is `flask-cors`.
fn add(packages: &mut Packages, requirement: &str) {
    let end = requirement
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        .unwrap_or(requirement.len());
    let name = requirement[..end].to_ascii_lowercase().replace(['_', '.'], "-");
    let rest = requirement[end..].trim_start();
    if let Some((extras, _)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        for extra in extras.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            packages.insert(format!("{name}[{}]", extra.to_ascii_lowercase()));
        }
    }
    packages.insert(name);
}
