//! How a python app is started, found in this order:
//! 1. `web:` of a `Procfile`,
//! 2. Django (`manage.py`): its WSGI or ASGI module through a server of the requirements, else `manage.py runserver`,
//! 3. an app object (`app = FastAPI()`, `app = Flask(__name__)`, ...) through a server of the requirements: uvicorn,
//!    hypercorn, granian or daphne for ASGI; gunicorn, waitress or granian for WSGI,
//! 4. a Flask app that does not run itself: `flask run`,
//! 5. `python3 app.py`, `main.py`, `server.py`, `__main__.py`.
//!
//! The source is searched, not run: only an assignment at the beginning of a line is an app object.

use super::context::Context;
use super::python::Packages;
use super::{PlanError, Step};
use crate::Kind;

/// Where app objects are looked for.
const FILES: [(&str, &str); 7] = [
    ("app.py", "app"),
    ("main.py", "main"),
    ("asgi.py", "asgi"),
    ("wsgi.py", "wsgi"),
    ("server.py", "server"),
    ("app/main.py", "app.main"),
    ("app/__init__.py", "app"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interface {
    Asgi,
    Wsgi,
}

/// An app object in a file.
#[derive(Debug, PartialEq, Eq)]
struct Object {
    name: String,
    /// `None`: made by a function whose result is not known.
    interface: Option<Interface>,
    /// The class or function that makes it.
    maker: String,
    /// The file starts a server by itself when run.
    runs_itself: bool,
}

pub(super) fn start(context: &Context<'_>, packages: &Packages, port: u16) -> Result<Step, PlanError> {
    if let Some(step) = context.procfile()? {
        return Ok(step);
    }
    if context.has("manage.py") {
        return Ok(django(context, packages, port));
    }
    for (file, module) in FILES {
        let Some(object) = context.text(file)?.as_deref().and_then(object) else {
            continue;
        };
        let target = format!("{module}:{}", object.name);
        if let Some(step) = serve(&object, packages, &target, port) {
            return Ok(step);
        }
        if object.runs_itself {
            continue;
        }
        if object.maker == "Flask" {
            let (port, what) = (port.to_string(), format!("flask run ({target})"));
            let argv = [
                "python3", "-m", "flask", "--app", &target, "run", "--host", "0.0.0.0", "--port", &port,
            ];
            return Ok(Step::new(&what, &argv));
        }
        if object.interface == Some(Interface::Asgi) {
            let hint = format!(
                "{file} makes a {} app, but nothing serves it; add `uvicorn` to the requirements",
                object.maker
            );
            return Err(no_start(hint));
        }
    }
    match ["app.py", "main.py", "server.py", "__main__.py"]
        .into_iter()
        .find(|f| context.has(f))
    {
        Some(file) => Ok(Step::plain(&["python3", file])),
        None => Err(no_start(
            "add an app.py or main.py, a Procfile with a line `web: ...`, or a workspace.json with a \"command\""
                .into(),
        )),
    }
}

fn no_start(hint: String) -> PlanError {
    PlanError::NoStart {
        kind: Kind::Python,
        hint,
    }
}

fn django(context: &Context<'_>, packages: &Packages, port: u16) -> Step {
    let module = |file: &str| {
        let found = context.paths().find(|p| {
            p.strip_suffix(file)
                .is_some_and(|d| d.ends_with('/') && d.matches('/').count() == 1)
        });
        found.map(|p| format!("{}:application", p.trim_end_matches(".py").replace('/', ".")))
    };
    let known = |interface, file| {
        let object = Object {
            name: String::new(),
            interface: Some(interface),
            maker: String::new(),
            runs_itself: false,
        };
        module(file).and_then(|target| serve(&object, packages, &target, port))
    };
    known(Interface::Wsgi, "wsgi.py")
        .or_else(|| known(Interface::Asgi, "asgi.py"))
        .unwrap_or_else(|| {
            Step::plain(&[
                "python3",
                "manage.py",
                "runserver",
                "--noreload",
                &format!("0.0.0.0:{port}"),
            ])
        })
}

/// The app object through a server that is among the required packages.
fn serve(object: &Object, packages: &Packages, target: &str, port: u16) -> Option<Step> {
    let has = |name: &str| packages.contains(name);
    let uvicorn = ["uvicorn", "fastapi[standard]", "fastapi[all]"].into_iter().any(has);
    let asgi_only = ["fastapi", "starlette"].into_iter().any(has);
    let interface = match object.interface {
        Some(interface) => interface,
        // It may be a plain object of a script that serves it itself.
        None if object.runs_itself => return None,
        None if uvicorn && (asgi_only || !has("gunicorn")) => Interface::Asgi,
        None => Interface::Wsgi,
    };
    let bind = format!("0.0.0.0:{port}");
    let number = port.to_string();
    let argv: Vec<&str> = match interface {
        Interface::Asgi if uvicorn => vec!["uvicorn", target, "--host", "0.0.0.0", "--port", &number],
        Interface::Wsgi if has("gunicorn") => vec!["gunicorn", "-b", &bind, target],
        Interface::Wsgi if has("waitress") => {
            return Some(Step::plain(&["waitress-serve", &format!("--listen={bind}"), target]));
        }
        _ if has("hypercorn") => vec!["hypercorn", "-b", &bind, target],
        Interface::Asgi if has("daphne") => vec!["daphne", "-b", "0.0.0.0", "-p", &number, target],
        _ if has("granian") => {
            let name = if interface == Interface::Asgi { "asgi" } else { "wsgi" };
            vec![
                "granian",
                "--interface",
                name,
                "--host",
                "0.0.0.0",
                "--port",
                &number,
                target,
            ]
        }
        _ => return None,
    };
    Some(Step::plain(&argv))
}

/// The first object made by a known class, else one called `app` or `application` that is made by some call.
fn object(text: &str) -> Option<Object> {
    // What ends a script that serves: app.run(...), uvicorn.run(...), web.run_app(...), serve(app), server.serve_forever().
    let runs_itself = [".run(", "run_app(", "run_simple(", "serve(", "serve_forever("]
        .iter()
        .any(|call| text.contains(call));
    let found: Vec<Object> = text.lines().filter_map(|line| assignment(line, runs_itself)).collect();
    let known = found.iter().position(|o| o.interface.is_some());
    let usual = || {
        found
            .iter()
            .position(|o| matches!(o.name.as_str(), "app" | "application"))
    };
    let at = known.or_else(usual)?;
    found.into_iter().nth(at)
}

/// `NAME = MAKER(` or `NAME: TYPE = MAKER(` at the beginning of a line.
fn assignment(line: &str, runs_itself: bool) -> Option<Object> {
    let (left, right) = line.split_once('=')?;
    if line.starts_with(char::is_whitespace) || right.starts_with('=') {
        return None;
    }
    let name = left.split(':').next().unwrap_or("").trim();
    let is_name = |n: &str| {
        !n.is_empty() && n.chars().all(|c| c.is_alphanumeric() || c == '_') && !n.starts_with(|c: char| c.is_numeric())
    };
    let (path, _) = right.trim_start().split_once('(')?;
    let maker = path.trim_end().rsplit('.').next().unwrap_or("");
    if !is_name(name) || !is_name(maker) {
        return None;
    }
    let interface = match maker {
        "FastAPI" | "Starlette" | "Quart" | "Litestar" | "BlackSheep" | "get_asgi_application" => Some(Interface::Asgi),
        "Flask" | "Bottle" | "get_wsgi_application" => Some(Interface::Wsgi),
        _ => None,
    };
    Some(Object {
        name: name.to_owned(),
        interface,
        maker: maker.to_owned(),
        runs_itself,
    })
}
