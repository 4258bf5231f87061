//! The embedded S3 server.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::sync::broadcast;

use crate::Change;

/// Where the embedded server listens and keeps its data.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// The address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder of the database and the blobs.
    pub data_dir: PathBuf,
    /// The public half of the one key pair.
    pub access_key: String,
    /// The secret half of the one key pair.
    pub secret_key: String,
    /// The bucket that is made when it is missing and whose changes are fed.
    pub bucket: String,
}

/// Why the embedded server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {}

/// A running embedded server.
pub struct EmbeddedServer {
    _p: (),
}

#[allow(missing_docs, clippy::unused_async, clippy::unimplemented)]
impl EmbeddedServer {
    pub async fn start(_cfg: EmbeddedConfig) -> Result<Self, EmbeddedError> {
        unimplemented!()
    }
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }
    pub fn feed(&self) -> broadcast::Receiver<Change> {
        unimplemented!()
    }
    pub async fn shutdown(self) {
        unimplemented!()
    }
}
