//! After a daemon that was killed.
use crate::{SandboxError, SandboxId};
use std::path::Path;

/// Sandboxes whose keeper answers: what a new daemon can [`crate::Sandbox::adopt`].
pub async fn running(_run_dir: &Path) -> Vec<SandboxId> {
    unimplemented!()
}
/// Stops and removes every sandbox found under `run_dir` and every cgroup of `instance`. Returns what was done, a line each.
///
/// # Errors
/// [`SandboxError::BadFolder`] when the run folder cannot be read.
pub async fn clean_leftovers(_run_dir: &Path, _instance: &str) -> Result<Vec<String>, SandboxError> {
    unimplemented!()
}
