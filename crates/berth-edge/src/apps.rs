//! What the edge asks of the rest of Berth: which app a request is for, and a claim on that app while it is served.
//!
//! The edge knows nothing of sandboxes. For each request it asks [`Apps::route`] for the app, then [`Apps::acquire`] for a
//! [`Lease`]; the lease names an [`Upstream`], which makes the sockets. The three are traits so that the edge can be tested
//! against plain TCP servers, and so that it can be built without the host.
//!
//! ```text
//!   request ── route ──▶ app ── acquire (held until the app is ready) ──▶ Lease ── upstream() ──▶ Upstream ── socket()
//!                                                                          │ dropped when the answer has ended or the tunnel closed
//! ```

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_workspace::AppName;

/// How a request was matched to its app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// By the first segment of the path (`DOMAIN/NAME/...`): the prefix is taken off, and put back on redirects and cookies.
    Prefix,
    /// By the host `NAME.DOMAIN`.
    Host,
    /// The workspace `www`, which is the site's root.
    Root,
    /// By a host name that the app claimed in its `workspace.json`.
    CustomHost,
}

/// The app a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The app.
    pub app: AppName,
    /// How it was found.
    pub via: Via,
}

/// The apps behind the edge.
#[async_trait]
pub trait Apps: Send + Sync + 'static {
    /// The app for a request with this `Host` (as the client sent it, perhaps with a port, perhaps empty) and this path
    /// (with or without its query). Called for every request: must not block.
    fn route(&self, host: &str, path: &str) -> Option<Route>;

    /// Waits until the app can answer, starting it if need be, and claims it for one request.
    ///
    /// Cancel-safe: the future is dropped when the client has left, and nothing may be claimed then. It is polled on the
    /// edge's own runtime; what has to outlive it must be spawned elsewhere.
    ///
    /// # Errors
    /// A [`Refusal`], which becomes the answer to the client.
    async fn acquire(&self, app: &AppName) -> Result<Box<dyn Lease>, Refusal>;
}

/// One request's claim on a running app. While any exists the app counts as busy; dropping it starts the idle clock.
pub trait Lease: Send + Sync {
    /// Where the app is at this moment. Asked again for each attempt to connect, so that an app restarted in between is found.
    fn upstream(&self) -> Arc<dyn Upstream>;
}

/// Where one sandbox of an app listens.
#[async_trait]
pub trait Upstream: Send + Sync {
    /// A number no other sandbox has or will have: connections kept open are only used again under the same one.
    fn generation(&self) -> u64;

    /// The address the app listens on, inside its network namespace.
    fn addr(&self) -> SocketAddr;

    /// An unconnected, nonblocking TCP socket inside the app's network namespace, of the same family as [`Self::addr`].
    ///
    /// # Errors
    /// Those of socket(2) and of entering the namespace.
    async fn socket(&self) -> io::Result<OwnedFd>;
}

/// Why an app cannot be had. The texts are shown to anybody: they must not name paths of the host or lines of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such app (any more): 404.
    #[error("there is no such app")]
    NoSuchApp,
    /// The app does not start: 503.
    #[error("the app does not start: {public}")]
    Failed {
        /// What may be told to strangers.
        public: String,
        /// When trying again can help.
        retry_after: Option<Duration>,
    },
    /// Too many requests wait for the app: 503.
    #[error("too many requests wait for the app")]
    TooMany {
        /// When trying again can help.
        retry_after: Option<Duration>,
    },
    /// The app was not ready in time: 504.
    #[error("the app was not ready within {} s", waited.as_secs())]
    StartTimeout {
        /// How long the request was held.
        waited: Duration,
    },
    /// The host is going down: 503.
    #[error("the host is shutting down")]
    ShuttingDown,
}
