//! After a daemon that was killed: what still runs, and getting rid of it.
//!
//! Every sandbox has a folder in `run_dir/sandboxes` from before its first process to after its last cgroup, so what is not found there or
//! among the instance's cgroups is not there. A keeper that answers stops its sandbox properly; one that does not is killed with its
//! cgroup.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::{self, Cgroup};
use crate::sandbox::{connect, read_spec};
use crate::{Sandbox, SandboxError, SandboxId, keeper};

/// What apps get to end by themselves.
const GRACE: Duration = Duration::from_secs(2);
/// How long the processes of a dead keeper's sandbox may take to vanish.
const REMOVE: Duration = Duration::from_secs(5);

/// Sandboxes whose keeper answers: what a new daemon can [`Sandbox::adopt`]. Sorted.
pub async fn running(run_dir: &Path) -> Vec<SandboxId> {
    let mut found: Vec<SandboxId> = folders(run_dir)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|dir| {
            SandboxId::parse(dir.file_name()?.to_str()?)
                .ok()
                .filter(|id| connect(&dir, id.as_str()).is_ok())
        })
        .collect();
    found.sort();
    found
}

/// Stops and removes every sandbox found under `run_dir` and every cgroup of `instance`. Returns what was done, a line each.
///
/// # Errors
/// [`SandboxError::BadFolder`] when the run folder is there and cannot be read.
pub async fn clean_leftovers(run_dir: &Path, instance: &str) -> Result<Vec<String>, SandboxError> {
    let mut done = Vec::new();
    let dirs = folders(run_dir).map_err(|source| SandboxError::BadFolder {
        path: run_dir.to_owned(),
        source,
    })?;
    let each = dirs.into_iter().map(|dir| remove(run_dir.to_owned(), dir));
    done.extend(futures::future::join_all(each).await);
    for id in cgroup::all_of(instance) {
        let group = Cgroup::new(instance, &id);
        let left = tokio::task::spawn_blocking(move || group.remove(REMOVE))
            .await
            .unwrap_or_default();
        done.push(if left.is_empty() {
            format!("removed the cgroup of sandbox {id}")
        } else {
            format!("could not remove {}: a process in it does not end", left[0].display())
        });
    }
    cgroup::remove_parent(instance);
    Ok(done)
}

fn folders(run_dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    match fs::read_dir(run_dir.join("sandboxes")) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn remove(run_dir: PathBuf, dir: PathBuf) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Ok(id) = SandboxId::parse(&name)
        && let Ok((sandbox, _events)) = Sandbox::adopt(&run_dir, &id, None).await
        && let Ok(exit) = sandbox.stop(GRACE).await
    {
        return format!("stopped sandbox {id}: {exit}");
    }
    let path = dir.clone();
    let removed = tokio::task::spawn_blocking(move || match read_spec(&path) {
        Ok(spec) => {
            keeper::remove(&spec);
            !path.exists()
        }
        // Born and killed before it had written its spec: its cgroup is found by name, if it has one.
        Err(_) => fs::remove_dir_all(&path).is_ok(),
    });
    match removed.await {
        Ok(true) => format!("removed what was left of sandbox {name}"),
        _ => format!("could not remove {}: a process of it does not end", dir.display()),
    }
}
