//! The running edge (API outline).
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::apps::Apps;
use crate::config::{EdgeConfig, EdgeError};

/// The running edge.
pub struct Edge {
    addrs: Vec<SocketAddr>,
}

impl Edge {
    /// Binds all addresses, then serves.
    ///
    /// # Errors
    /// [`EdgeError`]; nothing runs then.
    pub fn start(config: EdgeConfig, _apps: Arc<dyn Apps>) -> Result<Self, EdgeError> {
        Ok(Self { addrs: config.listen })
    }

    /// The addresses that are listened on.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Stops accepting, lets running requests end for at most `drain`, cuts what remains. Blocks until then.
    pub fn shutdown(self, _drain: Duration) {}
}
