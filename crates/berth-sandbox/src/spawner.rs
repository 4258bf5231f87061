//! The process all keepers are forked from.
use crate::error::SpawnError;

/// A handle on the spawner process. Drop it to end the spawner (not the keepers).
pub struct Spawner {}
impl Spawner {
    /// Forks the spawner. Call it first thing in `main`.
    ///
    /// # Errors
    /// [`SpawnError::Threads`] when threads exist, [`SpawnError::Fork`] when the kernel refuses.
    pub fn fork_before_threads() -> Result<Spawner, SpawnError> {
        unimplemented!()
    }
}
