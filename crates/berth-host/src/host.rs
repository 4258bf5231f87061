//! The door to the host.

use std::path::PathBuf;
use std::sync::Arc;

use berth_image::ImageStore;
use berth_sandbox::{Network, Sandbox, Spawner};
use berth_store::Store;
use berth_sys::netns::SocketFactory;
use berth_workspace::AppName;
use tokio::sync::{broadcast, watch};

use crate::config::HostConfig;
use crate::failure::{AcquireError, ControlError, HostError, RunError};
use crate::gate::Lease;
use crate::routes::RouteTable;
use crate::run::{RunRequest, RunSession};
use crate::snapshot::{AppSnapshot, HostEvent, InvalidWorkspace};

/// What a host is made of.
pub struct HostParts {
    /// The bucket.
    pub store: Store,
    /// The images of this host.
    pub images: ImageStore,
    /// Forks keepers; made first thing in `main`.
    pub spawner: Arc<Spawner>,
    /// The sandboxes' network.
    pub network: Arc<Network>,
    /// Where the bucket is mounted (`/workspaces`).
    pub mountpoint: PathBuf,
    /// Makes sockets inside sandboxes.
    pub sockets: SocketFactory,
}

/// All apps of this host. Clones are the same host.
#[derive(Clone)]
pub struct Host {}

#[allow(clippy::unimplemented, unused_variables)]
impl Host {
    /// Cleans what an earlier daemon left, lists the bucket and starts to watch it. Apps start when requests come.
    pub async fn start(config: HostConfig, parts: HostParts) -> Result<Self, HostError> {
        unimplemented!()
    }
    /// Every workspace with a valid name, by name.
    pub fn apps(&self) -> Vec<AppSnapshot> {
        unimplemented!()
    }
    /// One of them.
    pub fn app(&self, name: &AppName) -> Option<AppSnapshot> {
        unimplemented!()
    }
    /// Folders whose name no app can have.
    pub fn invalid(&self) -> Vec<InvalidWorkspace> {
        unimplemented!()
    }
    /// A lease on the app, which is started first if need be. Cancel-safe: dropping the future gives up the place.
    pub async fn acquire(&self, name: &AppName) -> Result<Lease, AcquireError> {
        unimplemented!()
    }
    /// Stops the app; the next request starts it again. Returns when nothing of it runs.
    pub async fn stop(&self, name: &AppName) -> Result<(), ControlError> {
        unimplemented!()
    }
    /// Starts the app anew beside the running one and swaps; starts it if it is down. Returns when it is ready or failed.
    pub async fn restart(&self, name: &AppName) -> Result<(), ControlError> {
        unimplemented!()
    }
    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        unimplemented!()
    }
    /// The last 1000 events, oldest first.
    pub fn recent_events(&self) -> Vec<HostEvent> {
        unimplemented!()
    }
    /// The sandbox that serves, for exec and statistics.
    pub fn sandbox(&self, name: &AppName) -> Option<Arc<Sandbox>> {
        unimplemented!()
    }
    /// Where the app's log is kept (`berth_sandbox::logs` reads it).
    pub fn log_dir(&self, name: &AppName) -> PathBuf {
        unimplemented!()
    }
    /// Runs a command in a sandbox of its own.
    pub async fn run(&self, request: RunRequest) -> Result<RunSession, RunError> {
        unimplemented!()
    }
    /// The routes, and a signal whenever they change.
    pub fn routes(&self) -> watch::Receiver<Arc<RouteTable>> {
        unimplemented!()
    }
    /// Stops every sandbox, all at once, and returns when nothing is left.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
