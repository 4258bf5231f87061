//! The door to the sandbox layer: what a driver needs of it, as a trait, and the real thing behind it.
//!
//! The trait exists so that the drivers' behaviour (who waits, who is answered, what is stopped) can be tested in
//! milliseconds with plain sockets; the daemon always uses [`RealSandboxes`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_image::ImageStore;
use berth_sandbox::{
    ExitInfo, Network, Reclaim, Sandbox, SandboxError, SandboxEvent, SandboxSpec, Spawner, Stats, clean_leftovers,
};
use berth_sys::netns::{Netns, SocketFactory};
use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::failure::{FailKind, FailReason};

/// An order for a sandbox: the spec with everything but the places that are only known when it is made.
#[derive(Clone)]
pub(crate) struct Order {
    /// `image_root`, `slot` and `uid_base` are filled in by [`Sandboxes::create`].
    pub(crate) spec: SandboxSpec,
    /// The image's name.
    pub(crate) image: String,
}

/// A sandbox that was made.
pub(crate) struct Made {
    pub(crate) running: Arc<dyn Running>,
    pub(crate) events: mpsc::Receiver<SandboxEvent>,
    /// How long mounting the image and leasing the network took.
    pub(crate) prepared: Duration,
}

/// Makes sandboxes.
pub(crate) trait Sandboxes: Send + Sync + 'static {
    /// Makes one and starts it. Not cancel-safe: once begun it is awaited, and what was made is stopped by its owner.
    fn create(&self, order: Order) -> BoxFuture<'static, Result<Made, FailReason>>;
    /// Removes what is shared by all sandboxes, when none is left.
    fn clear(&self) -> BoxFuture<'_, ()>;
}

/// A sandbox that runs.
pub(crate) trait Running: Send + Sync + 'static {
    /// Listening TCP sockets in its network namespace.
    fn listening(&self) -> io::Result<Vec<SocketAddr>>;
    /// An unconnected TCP socket in its network namespace.
    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<OwnedFd>>;
    /// Ends it and removes all of it.
    fn stop(&self, grace: Duration) -> BoxFuture<'_, Result<ExitInfo, SandboxError>>;
    /// Takes all CPU time from it. Returns within microseconds.
    fn freeze(&self) -> io::Result<()>;
    /// Gives it back. Returns within microseconds.
    fn thaw(&self) -> io::Result<()>;
    /// Hands memory to the kernel for as long as `go_on` says so. Blocks.
    fn reclaim(&self, what: Reclaim, go_on: &dyn Fn() -> bool) -> io::Result<()>;
    /// What it uses.
    fn stats(&self) -> Option<Stats>;
    /// The real sandbox, for exec; a double has none.
    fn sandbox(&self) -> Option<Arc<Sandbox>>;
}

/// Sandboxes of this host.
pub(crate) struct RealSandboxes {
    pub(crate) images: Arc<ImageStore>,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) network: Arc<Network>,
    pub(crate) sockets: SocketFactory,
    pub(crate) run_dir: PathBuf,
    pub(crate) instance: String,
}

impl RealSandboxes {
    async fn make(
        images: Arc<ImageStore>,
        spawner: Arc<Spawner>,
        network: Arc<Network>,
        sockets: SocketFactory,
        order: Order,
    ) -> Result<Made, FailReason> {
        let begun = Instant::now();
        let Order { mut spec, image } = order;
        let name = image.clone();
        // Mounting reads the image's header from the disk the first time.
        let root = tokio::task::spawn_blocking(move || images.mount(&name)).await;
        spec.image_root = match root {
            Ok(Ok(root)) => root,
            Ok(Err(error)) => return Err(FailReason::new(FailKind::Image, berth_workspace::chain(&error))),
            Err(stopped) => return Err(FailReason::new(FailKind::Image, format!("mounting {image}: {stopped}"))),
        };
        let slot = network
            .lease()
            .map_err(|error| FailReason::new(FailKind::Sandbox, berth_workspace::chain(&error)))?;
        // Every slot has ids of its own: the files and processes of two apps never share an owner on the host.
        spec.uid_base = slot.uid_base();
        spec.slot = Some(slot.spec());
        let prepared = begun.elapsed();
        let (sandbox, events) = Sandbox::create(&spawner, spec, slot)
            .await
            .map_err(|error| FailReason::new(FailKind::Sandbox, berth_workspace::chain(&error)))?;
        let netns = sandbox.netns();
        let running = Arc::new(RealSandbox {
            sandbox: Arc::new(sandbox),
            netns,
            sockets,
        });
        Ok(Made {
            running,
            events,
            prepared,
        })
    }
}

impl Sandboxes for RealSandboxes {
    fn create(&self, order: Order) -> BoxFuture<'static, Result<Made, FailReason>> {
        Box::pin(Self::make(
            Arc::clone(&self.images),
            Arc::clone(&self.spawner),
            Arc::clone(&self.network),
            self.sockets.clone(),
            order,
        ))
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            match clean_leftovers(&self.run_dir, &self.instance).await {
                Ok(done) => done.iter().for_each(|line| tracing::warn!("left at the end: {line}")),
                Err(error) => tracing::warn!(
                    "clearing {}: {}",
                    self.run_dir.display(),
                    berth_workspace::chain(&error)
                ),
            }
        })
    }
}

struct RealSandbox {
    sandbox: Arc<Sandbox>,
    netns: Netns,
    sockets: SocketFactory,
}

impl Running for RealSandbox {
    fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        self.sandbox.listening()
    }

    fn socket(&self, v6: bool) -> BoxFuture<'_, io::Result<OwnedFd>> {
        Box::pin(self.sockets.tcp(&self.netns, v6))
    }

    fn stop(&self, grace: Duration) -> BoxFuture<'_, Result<ExitInfo, SandboxError>> {
        Box::pin(self.sandbox.stop(grace))
    }

    fn freeze(&self) -> io::Result<()> {
        self.sandbox.freeze()
    }

    fn thaw(&self) -> io::Result<()> {
        self.sandbox.thaw()
    }

    fn reclaim(&self, what: Reclaim, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        self.sandbox.reclaim(what, go_on)
    }

    fn stats(&self) -> Option<Stats> {
        Some(self.sandbox.stats())
    }

    fn sandbox(&self) -> Option<Arc<Sandbox>> {
        Some(Arc::clone(&self.sandbox))
    }
}
