//! The edge's settings and what can go wrong at its start.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Settings of the edge. [`Default`] is what Berth ships with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeConfig {
    /// Addresses to listen on. Port 0 takes a free one ([`crate::Edge::local_addrs`] tells which).
    pub listen: Vec<SocketAddr>,
    /// The site's own host name: apps are `DOMAIN/NAME/` and `NAME.DOMAIN`.
    pub domain: String,
    /// Threads that serve requests; 0 means one a core.
    pub threads: usize,
    /// How long a request is held for an app that is not ready, before 504.
    pub start_timeout: Duration,
    /// When a browser's page request that is still held gets the progress page instead of silence; `None`: never.
    pub progress_after: Option<Duration>,
    /// How long one attempt to connect to a ready app may take.
    pub connect_timeout: Duration,
    /// How long a refused connection is tried again (an app that is just restarting), before 502.
    pub connect_retry: Duration,
    /// How long an app may be silent in the middle of an answer or before it. Tunnels (WebSocket) have no such limit.
    pub app_silence: Duration,
    /// How long a client may be silent in the middle of a request's body.
    pub client_silence: Duration,
    /// How long a client may take for a request's header from its first byte on.
    pub header_timeout: Duration,
    /// Request target longer than this (bytes): 414.
    pub max_target: usize,
    /// All request header names and values together longer than this (bytes): 431.
    pub max_header: usize,
    /// A request body longer than this (bytes): 413. `None`: no limit.
    pub max_body: Option<u64>,
    /// Connections served at the same time; more wait in the kernel's queue.
    pub max_connections: usize,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 8080))],
            domain: "localhost".to_owned(),
            threads: 0,
            start_timeout: Duration::from_secs(120),
            progress_after: Some(Duration::from_secs(2)),
            connect_timeout: Duration::from_secs(5),
            connect_retry: Duration::from_secs(1),
            app_silence: Duration::from_secs(3600),
            client_silence: Duration::from_secs(60),
            header_timeout: Duration::from_secs(20),
            max_target: 16 * 1024,
            max_header: 64 * 1024,
            max_body: None,
            max_connections: 16 * 1024,
        }
    }
}

/// Why the edge did not start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// No address is configured.
    #[error("the edge has no address to listen on; set [edge] listen")]
    NoAddress,
    /// Another program has the port.
    #[error("port {} is taken by another program; stop it or set [edge] listen (wanted {addr})", addr.port())]
    PortTaken {
        /// The address wanted.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The port may not be used by this user.
    #[error("port {} needs more rights; run as root, grant CAP_NET_BIND_SERVICE or set [edge] listen (wanted {addr})", addr.port())]
    PortForbidden {
        /// The address wanted.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {addr}; set [edge] listen to an address of this host")]
    Listen {
        /// The address wanted.
        addr: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The thread that runs the edge, or its runtime, could not be made.
    #[error("cannot start the edge's threads; is the limit of processes (ulimit -u, pids.max) reached?")]
    Threads {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
