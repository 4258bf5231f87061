//! Joins the edge to the host: what the edge asks of "the apps", answered by [`Host`].

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use berth_edge::{Apps, Lease, Refusal, Route, RouteTable, Upstream};
use berth_host::{AcquireError, Host};
use berth_workspace::AppName;
use parking_lot::RwLock;

/// The host's apps as the edge sees them.
pub struct HostedApps {
    host: Host,
    routes: Arc<RwLock<Arc<RouteTable>>>,
}

impl HostedApps {
    /// Follows the host's routes from now on. Call within the daemon's runtime.
    pub fn new(host: Host, domain: String) -> Self {
        let mut changes = host.routes();
        let first = edge_table(&domain, &changes.borrow_and_update());
        let routes = Arc::new(RwLock::new(first));
        let shared = Arc::clone(&routes);
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                let next = edge_table(&domain, &changes.borrow_and_update());
                *shared.write() = next;
            }
        });
        Self { host, routes }
    }
}

/// The host's routes as the edge looks them up.
fn edge_table(domain: &str, routes: &berth_host::RouteTable) -> Arc<RouteTable> {
    let hosts = routes.hosts.iter().map(|(host, app)| (host.clone(), app.clone()));
    Arc::new(RouteTable::new(domain, routes.apps.iter().cloned(), hosts))
}

#[async_trait]
impl Apps for HostedApps {
    fn route(&self, host: &str, path: &str) -> Option<Route> {
        let table = Arc::clone(&self.routes.read());
        table.resolve(host, path)
    }

    async fn acquire(&self, app: &AppName) -> Result<Box<dyn Lease>, Refusal> {
        match self.host.acquire(app).await {
            Ok(lease) => Ok(Box::new(Claim(lease))),
            Err(error) => Err(refusal(error)),
        }
    }
}

struct Claim(berth_host::Lease);

impl Lease for Claim {
    fn upstream(&self) -> Arc<dyn Upstream> {
        Arc::new(Target(Arc::clone(&self.0.upstream)))
    }
}

struct Target(Arc<berth_host::Upstream>);

#[async_trait]
impl Upstream for Target {
    fn generation(&self) -> u64 {
        self.0.generation
    }

    fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    async fn socket(&self) -> io::Result<OwnedFd> {
        self.0.socket().await
    }
}

fn refusal(error: AcquireError) -> Refusal {
    match error {
        AcquireError::NoSuchApp => Refusal::NoSuchApp,
        AcquireError::Failed { reason, retry_after } => Refusal::Failed {
            public: reason.public,
            retry_after: (retry_after > Duration::ZERO).then_some(retry_after),
        },
        AcquireError::Timeout { waited } => Refusal::StartTimeout { waited },
        AcquireError::Stopping => Refusal::Failed {
            public: "The app was stopped.".into(),
            retry_after: Some(Duration::from_secs(1)),
        },
        AcquireError::ShuttingDown => Refusal::ShuttingDown,
        AcquireError::TooMany => Refusal::TooMany {
            retry_after: Some(Duration::from_secs(1)),
        },
    }
}
