//! A network and a server that fail as told: an HTTP proxy between an S3 client and an S3 server.
//!
//! ```text
//!   client ── 127.0.0.1:port ── [rules: which request fails, and how] ── upstream
//! ```
//! Every request is forwarded byte for byte with its `Host` header unchanged, so that the client's signature stays true for a
//! server that checks the header it was sent. A test sets [`Rule`]s and takes them away at run time; the first rule that fits a
//! request decides. Chance comes from one seeded generator, so a failing run can be run again with its seed. Requests that arrive at the
//! same moment draw from it in the order of their arrival, which the test controls or does not care about. The proxy runs on a thread of
//! its own and ends when it is dropped.

mod forward;

use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{net::TcpListener, sync::watch};

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server is not asked; the client gets this status with S3's words for it (503 is `SlowDown`).
    Status(u16),
    /// The connection ends before the server has seen anything.
    CutBefore,
    /// The server gets half of the request's body, then both connections end.
    CutDuring,
    /// The server does what was asked, and the client never hears of it.
    CutAfter,
    /// No answer, until the fault is taken away; then the connection ends.
    Hang,
    /// The answer comes, its body in pieces of 1 KiB with this pause between them.
    Slow(Duration),
    /// The answer's head promises the whole body, and half of it comes.
    Truncated,
}

/// Which requests fail, and how.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Only requests with this method.
    pub method: Option<&'static str>,
    /// Only requests whose path and query contain this.
    pub path: Option<String>,
    /// How many of a hundred requests fail.
    pub percent: u32,
    /// For how many requests the rule holds; `None`: until it is taken away.
    pub times: Option<u32>,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// Every request fails in this way.
    #[must_use]
    pub fn always(fault: Fault) -> Self {
        Self {
            method: None,
            path: None,
            percent: 100,
            times: None,
            fault,
        }
    }

    /// The next request with this method fails, and only that one.
    #[must_use]
    pub fn once(method: &'static str, fault: Fault) -> Self {
        Self {
            method: Some(method),
            times: Some(1),
            ..Self::always(fault)
        }
    }

    /// So many of a hundred requests fail.
    #[must_use]
    pub fn sometimes(percent: u32, fault: Fault) -> Self {
        Self {
            percent,
            ..Self::always(fault)
        }
    }

    fn fits(&self, method: &str, path: &str) -> bool {
        self.times != Some(0)
            && self.method.is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|part| path.contains(part.as_str()))
    }
}

/// Whether the proxy can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It listens.
    Up,
    /// Connections are refused; open ones were cut.
    Refused,
    /// Connections are taken and closed; open ones were cut.
    Closed,
}

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path and query as sent.
    pub path: String,
    /// Bytes of its body, as sent.
    pub length: usize,
    /// What was done to it.
    pub fault: Option<Fault>,
}

/// A running proxy.
pub struct FaultProxy {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    end: Option<tokio::sync::oneshot::Sender<()>>,
}

struct State {
    upstream: SocketAddr,
    plan: Mutex<Plan>,
    reach: watch::Sender<Reach>,
    /// Moves when rules change: what hangs ends.
    changed: watch::Sender<u64>,
}

struct Plan {
    rules: Vec<Rule>,
    chance: StdRng,
    seen: Vec<Seen>,
}

impl State {
    /// Decides about a request and writes it down.
    fn judge(&self, method: &str, path: &str, length: usize) -> Option<Fault> {
        let mut plan = self.plan.lock();
        let Plan { rules, chance, .. } = &mut *plan;
        let hit = rules
            .iter_mut()
            .find(|rule| rule.fits(method, path) && chance.random_range(0..100) < rule.percent);
        let fault = hit.map(|rule| {
            rule.times = rule.times.map(|left| left - 1);
            rule.fault
        });
        let seen = Seen {
            method: method.into(),
            path: path.into(),
            length,
            fault,
        };
        plan.seen.push(seen);
        fault
    }
}

impl FaultProxy {
    /// Listens on a free port of loopback and forwards to `upstream`.
    ///
    /// # Errors
    /// When no port, thread or runtime is to be had.
    pub fn start(upstream: SocketAddr, seed: u64) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let plan = Plan {
            rules: Vec::new(),
            chance: StdRng::seed_from_u64(seed),
            seen: Vec::new(),
        };
        let state = Arc::new(State {
            upstream,
            plan: Mutex::new(plan),
            reach: watch::Sender::new(Reach::Up),
            changed: watch::Sender::new(0),
        });
        let (end, ended) = tokio::sync::oneshot::channel();
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new().name("fault-proxy".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    done = listen(listener, address, shared) => if let Err(error) = done {
                        eprintln!("the fault proxy at {address} ended: {error}");
                    },
                    _ = ended => {}
                }
            });
        })?;
        Ok(Self {
            address,
            state,
            thread: Some(thread),
            end: Some(end),
        })
    }

    /// Where clients go.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint for S3 clients.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// These rules hold from now on, instead of those before; requests that hang are cut.
    pub fn set(&self, rules: impl Into<Vec<Rule>>) {
        self.state.plan.lock().rules = rules.into();
        self.state.changed.send_modify(|version| *version += 1);
    }

    /// No faults any more, and reachable.
    pub fn heal(&self) {
        self.set([]);
        self.reach(Reach::Up);
    }

    /// Makes the proxy reachable or not.
    pub fn reach(&self, reach: Reach) {
        self.state.reach.send_replace(reach);
    }

    /// Every request since the start or the last [`Self::forget`].
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.plan.lock().seen.clone()
    }

    /// How many requests had this method and a path that contains this.
    #[must_use]
    pub fn count(&self, method: &str, path: &str) -> usize {
        let plan = self.state.plan.lock();
        plan.seen
            .iter()
            .filter(|seen| seen.method == method && seen.path.contains(path))
            .count()
    }

    /// Counts from nought again.
    pub fn forget(&self) {
        self.state.plan.lock().seen.clear();
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The port is in the range of outgoing connections: one of those may have it for a moment.
async fn bind_again(address: SocketAddr) -> io::Result<TcpListener> {
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            other => return other,
        }
    }
}

/// Takes connections while the proxy can be reached, and cuts all when that changes.
async fn listen(first: std::net::TcpListener, address: SocketAddr, state: Arc<State>) -> io::Result<()> {
    let mut first = Some(first);
    let mut reach = state.reach.subscribe();
    loop {
        let now = *reach.borrow_and_update();
        if now == Reach::Refused {
            first = None;
            let _ = reach.changed().await;
            continue;
        }
        let listener = match first.take() {
            Some(listener) => TcpListener::from_std(listener)?,
            None => bind_again(address).await?,
        };
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                _ = reach.changed() => break,
                taken = listener.accept() => {
                    let (stream, _) = taken?;
                    if now == Reach::Up {
                        connections.spawn(forward::serve(stream, Arc::clone(&state)));
                    }
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests;
