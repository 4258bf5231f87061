//! The running edge: its sockets, its thread, its end.
//!
//! ```text
//!   start ── bind all addresses (an error here leaves nothing behind) ── thread "berth-edge" ── runtime ── accept loops
//!   shutdown ── stop accepting, tell pingora ── wait for the connections ── drain is over: cut them ── thread joined
//! ```
//!
//! The runtime lives and dies on the edge's own thread, so that starting and stopping work inside and outside other
//! runtimes (a runtime must not be dropped inside another one).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::apps::Apps;
use crate::config::{EdgeConfig, EdgeError};
use crate::counters::Counters;
use crate::listen;

/// The running edge. Dropping it shuts it down at once.
#[derive(Debug)]
pub struct Edge {
    addrs: Vec<SocketAddr>,
    counters: Arc<Counters>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<()>,
}

impl Edge {
    /// Binds all addresses, then serves them on threads of its own until [`Edge::shutdown`].
    ///
    /// # Errors
    /// [`EdgeError`]; nothing listens and nothing runs then.
    pub fn start(config: EdgeConfig, apps: Arc<dyn Apps>) -> Result<Self, EdgeError> {
        let listeners = bind_all(&config.listen)?;
        let addrs = config
            .listen
            .iter()
            .zip(&listeners)
            .map(|(addr, listener)| listener.local_addr().unwrap_or(*addr));
        let addrs: Vec<SocketAddr> = addrs.collect();
        let threads = match config.threads {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            some => some,
        };
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("berth-edge")
            .enable_all()
            .build()
            .map_err(|source| EdgeError::Threads { source })?;
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&counters);
        let thread = thread::Builder::new()
            .name("berth-edge".to_owned())
            .spawn(move || {
                runtime.block_on(listen::serve(config, threads, listeners, apps, shared, stopped));
                // Whatever the drain did not wait for ends here.
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .map_err(|source| EdgeError::Threads { source })?;
        tracing::info!(?addrs, threads, "edge listens");
        Ok(Self {
            addrs,
            counters,
            running: Some(Running { stop, thread }),
        })
    }

    /// The addresses that are listened on, in the order of the configuration.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// What has been counted so far.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Stops accepting, lets running requests and tunnels end for at most `drain`, cuts what remains.
    ///
    /// Blocks until then: call it through `spawn_blocking` from async code.
    pub fn shutdown(mut self, drain: Duration) {
        self.end(drain);
    }

    fn end(&mut self, drain: Duration) {
        let Some(Running { stop, thread }) = self.running.take() else {
            return;
        };
        // Fails only when the thread has ended already.
        let _ = stop.send(drain);
        if thread.join().is_err() {
            tracing::error!("the edge's thread panicked");
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

fn bind_all(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>, EdgeError> {
    if addrs.is_empty() {
        return Err(EdgeError::NoAddress);
    }
    addrs.iter().map(|addr| bind(*addr)).collect()
}

fn bind(addr: SocketAddr) -> Result<TcpListener, EdgeError> {
    let listener = TcpListener::bind(addr).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => EdgeError::PortTaken { addr, source },
        io::ErrorKind::PermissionDenied => EdgeError::PortForbidden { addr, source },
        _ => EdgeError::Listen { addr, source },
    })
}
