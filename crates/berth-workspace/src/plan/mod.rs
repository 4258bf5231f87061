//! The plan: from the files of a workspace to what is installed and what is started.
//!
//! First the kind is found: `type` of `workspace.json` wins, then the files tell it, in this order (W2):
//! 1. `package.json` → node (also a React app with a `public/index.html`),
//! 2. `requirements.txt`, `pyproject.toml`, `app.py`, `main.py` → python,
//! 3. `go.mod`, `main.go` → go,
//! 4. `index.html`, `public/index.html` → static.
//!
//! Then the kind's own module says how it is installed and started, and what `workspace.json` says replaces that: `command`
//! the start, `install` the installation, `env` any variable. The plan is made of text alone, so the same files always give
//! the same plan, and a bad file is found before anything runs.
//!
//! Downloads of the install tools go to [`INSTALL_CACHE`], on the same file system as `/app` so that tools can link instead
//! of copy, and a last step removes them: what stays in memory is what the app needs.

mod context;
mod go;
mod node;
mod python;
mod python_web;
mod site;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::file::{self, Command, Install};
use crate::{AppName, FileError, Kind, LimitsOverride, SourceFile, WorkspaceFile};
use context::Context;

/// PATH of every image; kinds put their own folders before it.
const BASE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where install tools keep downloads while they run.
const INSTALL_CACHE: &str = "/app/.berth/cache";

/// Files that make an app, in the order in which they are looked at.
const TELLING: [(&str, Kind); 9] = [
    ("package.json", Kind::Node),
    ("requirements.txt", Kind::Python),
    ("pyproject.toml", Kind::Python),
    ("app.py", Kind::Python),
    ("main.py", Kind::Python),
    ("go.mod", Kind::Go),
    ("main.go", Kind::Go),
    ("index.html", Kind::Static),
    ("public/index.html", Kind::Static),
];

/// The files of a workspace as the store lists them, and a way to read the few small ones that the plan needs.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// All files, paths relative to the workspace, in any order.
    pub files: &'a [SourceFile],
    /// Reads one file by its path; `None` if it cannot be read. Asked only for files of `files`: those of
    /// [`manifest_paths`], `.go` files beside `go.mod`, and files that a requirements file includes with `-r`.
    pub read: &'a dyn Fn(&str) -> Option<Vec<u8>>,
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Program and arguments; the program is looked up on PATH.
    pub argv: Vec<String>,
    /// Environment of this step: for the start on top of the plan's, for an install step complete but for what the image
    /// and the host add.
    pub env: BTreeMap<String, String>,
    /// What it does, for people: `npm ci`.
    pub what: String,
}

/// How an app is installed and started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is.
    pub kind: Kind,
    /// Name of the image it runs in.
    pub image: String,
    /// The port it is told to listen on (`PORT`).
    pub port: u16,
    /// Whether `/workspace` is copied to `/app` first; `false` for static, which is served from `/workspace`.
    pub copy_source: bool,
    /// What is run once in the new sandbox before the start, in this order.
    pub install: Vec<Step>,
    /// The app itself.
    pub start: Step,
    /// Environment of the app: `PORT`, `HOST`, `PATH`, what its kind needs, and `env` of `workspace.json`.
    pub env: BTreeMap<String, String>,
    /// Custom host names.
    pub hosts: Vec<String>,
    /// Limits the app sets for itself.
    pub limits: LimitsOverride,
    /// Path that must answer before the app counts as ready.
    pub health: Option<String>,
    /// Freeze after this long without a request; [`Duration::MAX`] for never.
    pub idle_freeze: Option<Duration>,
    /// Idle time after which it is stopped; [`Duration::MAX`] means never, `None` the host's default.
    pub idle_stop: Option<Duration>,
    /// Static only: the served folder relative to the workspace, `""` for the workspace itself.
    pub static_root: Option<String>,
}

/// What [`detect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// The kind.
    pub kind: Kind,
    /// The file that told it.
    pub by: &'static str,
}

/// Why there is no plan. Its `Display` is complete: file, line, column, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nothing that makes an app, and no `workspace.json`: just a folder, no mistake.
    #[error(
        "just a folder: an app has a package.json, requirements.txt, pyproject.toml, app.py, main.py, go.mod, main.go, \
         index.html or public/index.html, or a workspace.json with a type"
    )]
    NotAnApp,
    /// There is a `workspace.json`, but neither it nor the files tell the kind.
    #[error(
        "workspace.json: no file here tells what kind of app this is; add \"type\": \"node\", \"python\", \"go\" or \"static\""
    )]
    NoKind,
    /// A mistake in `workspace.json`.
    #[error(transparent)]
    BadWorkspaceFile(FileError),
    /// `package.json` cannot be read as JSON, or holds something of the wrong type.
    #[error(transparent)]
    BadPackageJson(FileError),
    /// `pyproject.toml` cannot be read as TOML, or its dependencies cannot be installed.
    #[error(transparent)]
    BadPyproject(FileError),
    /// Nothing tells how the app is started.
    #[error("no start found for this {kind} app: {hint}")]
    NoStart {
        /// Its kind.
        kind: Kind,
        /// What to add.
        hint: String,
    },
    /// A listed file could not be read from the store.
    #[error("{path} could not be read from the store; it is tried again with the next change or request")]
    Unreadable {
        /// The file.
        path: String,
    },
}

impl PlanError {
    /// The file that is at fault, relative to the workspace.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::NotAnApp | Self::NoStart { .. } => None,
            Self::NoKind => Some(file::PATH),
            Self::BadWorkspaceFile(e) | Self::BadPackageJson(e) | Self::BadPyproject(e) => Some(&e.path),
            Self::Unreadable { path } => Some(path),
        }
    }

    /// Line and column, both from 1, where a file is at fault at a known place.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::BadWorkspaceFile(e) | Self::BadPackageJson(e) | Self::BadPyproject(e) => Some((e.line, e.column)),
            _ => None,
        }
    }
}

/// What a kind's module answers.
struct Parts {
    install: Vec<Step>,
    start: Step,
    /// Defaults; `env` of `workspace.json` replaces them one by one.
    env: BTreeMap<String, String>,
    static_root: Option<String>,
}

/// Tells the kind of an app by its files alone (`workspace.json` not looked at); `None` if it is just a folder.
#[must_use]
pub fn detect(files: &[SourceFile]) -> Option<Detected> {
    let here = |path: &str| files.iter().any(|f| f.path == path);
    TELLING
        .into_iter()
        .find(|(path, _)| here(path))
        .map(|(by, kind)| Detected { kind, by })
}

/// The files [`plan()`] may read in any workspace; see [`Source::read`] for the few beyond them.
#[must_use]
pub fn manifest_paths() -> &'static [&'static str] {
    &[
        "workspace.json",
        "package.json",
        "yarn.lock",
        "requirements.txt",
        "pyproject.toml",
        "Procfile",
        "app.py",
        "main.py",
        "asgi.py",
        "wsgi.py",
        "server.py",
        "app/main.py",
        "app/__init__.py",
        "go.mod",
        "main.go",
    ]
}

/// Makes the plan of an app.
///
/// # Errors
/// [`PlanError`]; [`PlanError::NotAnApp`] means a folder that is no app and no mistake either.
pub fn plan(app: &AppName, source: &Source<'_>) -> Result<Plan, PlanError> {
    let context = Context::new(app, source)?;
    let file = &context.file;
    let kind = match (file.kind, detect(source.files)) {
        (Some(kind), _) => kind,
        (None, Some(found)) => found.kind,
        (None, None) if context.has(file::PATH) => return Err(PlanError::NoKind),
        (None, None) => return Err(PlanError::NotAnApp),
    };
    if kind != Kind::Static && file.root.is_some() {
        let message =
            format!("`root` is for static apps only, but this is a {kind} app; add \"type\": \"static\" or remove it");
        return Err(PlanError::BadWorkspaceFile(file.complain("root", message)));
    }
    let port = file.port.unwrap_or_else(|| kind.default_port());
    let parts = match kind {
        Kind::Node => node::parts(&context)?,
        Kind::Python => python::parts(&context, port)?,
        Kind::Go => go::parts(&context)?,
        Kind::Static => site::parts(&context)?,
    };
    let mut env = parts.env;
    env.insert("HOST".into(), "0.0.0.0".into());
    env.entry("PATH".into()).or_insert_with(|| BASE_PATH.into());
    env.extend(file.env.clone());
    env.insert("PORT".into(), port.to_string());
    Ok(Plan {
        kind,
        image: kind.image().to_owned(),
        port,
        copy_source: kind != Kind::Static,
        install: parts.install,
        start: parts.start,
        env,
        hosts: file.hosts.clone(),
        limits: file.limits,
        health: file.health.clone(),
        idle_freeze: file.idle_freeze,
        idle_stop: file.idle_stop,
        static_root: parts.static_root,
    })
}

/// The installation: what `workspace.json` says, else the kind's steps followed by the removal of their caches.
///
/// `first` is done in both cases unless nothing shall be installed: python's virtual environment.
fn install(file: &WorkspaceFile, env: &BTreeMap<String, String>, first: Vec<Step>, own: Vec<Step>) -> Vec<Step> {
    let mut steps = match &file.install {
        Some(Install::Skip) => return Vec::new(),
        Some(Install::Run(command)) => {
            let mut steps = first;
            steps.push(Step::of_command(command));
            steps
        }
        None if own.is_empty() => return Vec::new(),
        None => first.into_iter().chain(own).collect(),
    };
    steps.push(Step::new("remove the downloads", &["rm", "-rf", INSTALL_CACHE]));
    for step in &mut steps {
        // What the person set must reach the tools too (a registry, a token); what the step itself needs wins.
        let mut whole = env.clone();
        whole.extend(
            file.env
                .iter()
                .filter(|(k, _)| *k != "PORT")
                .map(|(k, v)| (k.clone(), v.clone())),
        );
        whole.append(&mut step.env);
        step.env = whole;
    }
    steps
}

impl Step {
    fn new(what: &str, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        Self {
            argv,
            env: BTreeMap::new(),
            what: what.to_owned(),
        }
    }

    /// A program whose description is its command line.
    fn plain(argv: &[&str]) -> Self {
        Self::new(&argv.join(" "), argv)
    }

    fn shell(line: &str) -> Self {
        Self::new(line, &["sh", "-c", line])
    }

    fn of_command(command: &Command) -> Self {
        match command {
            Command::Shell(line) => Self::shell(line),
            Command::Argv(argv) => Self {
                argv: argv.clone(),
                env: BTreeMap::new(),
                what: argv.join(" "),
            },
        }
    }
}

/// Makes an environment of constant pairs.
fn env_of<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests;
