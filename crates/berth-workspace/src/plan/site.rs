//! Static sites: nginx serves a folder of the read-only workspace; nothing is copied or installed.
//!
//! The folder is `root` of `workspace.json`, else the workspace itself if it has an `index.html`, else `public` if that has
//! one, else the workspace itself. The image's `berth-static` takes the folder as its argument and listens on `PORT`.

use super::context::Context;
use super::{BASE_PATH, Parts, PlanError, Step, env_of, install};

pub(super) fn parts(context: &Context<'_>) -> Result<Parts, PlanError> {
    let root = match &context.file.root {
        Some(root) => {
            let inside = format!("{root}/");
            if !root.is_empty() && !context.paths().any(|p| p.starts_with(&inside)) {
                let message = format!(
                    "`root` is \"{root}\", but nothing is stored in that folder (dist and build are never stored: they are \
                     made anew where the app runs)"
                );
                return Err(PlanError::BadWorkspaceFile(context.file.complain("root", message)));
            }
            root.clone()
        }
        None if !context.has("index.html") && context.has("public/index.html") => "public".to_owned(),
        None => String::new(),
    };
    let folder = if root.is_empty() {
        "/workspace".to_owned()
    } else {
        format!("/workspace/{root}")
    };
    let start = context
        .command()
        .unwrap_or_else(|| Step::new(&format!("nginx serves {folder}"), &["berth-static", &folder]));
    let env = env_of([("PATH", BASE_PATH)]);
    Ok(Parts {
        install: install(&context.file, &env, Vec::new(), Vec::new()),
        start,
        env,
        static_root: Some(root),
    })
}
