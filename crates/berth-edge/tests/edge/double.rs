//! Doubles for the tests: apps that are plain TCP servers on loopback, with a gate before each and counters behind.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use berth_edge::{Apps, Edge, EdgeConfig, Lease, Refusal, Route, RouteTable, Upstream};
use berth_workspace::AppName;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The domain of all test edges.
pub const DOMAIN: &str = "berth.test";

/// One app: where it is, whether it is ready, who uses it.
pub struct App {
    place: Mutex<(SocketAddr, u64)>,
    ready: watch::Sender<bool>,
    refusal: Mutex<Option<Refusal>>,
    pub waiting: AtomicUsize,
    pub leases: AtomicUsize,
    pub acquired: AtomicUsize,
    pub sockets: AtomicUsize,
}

impl App {
    pub fn open(&self) {
        self.ready.send_replace(true);
    }

    pub fn move_to(&self, addr: SocketAddr) {
        *self.place.lock() = (addr, GENERATION.fetch_add(1, Ordering::Relaxed));
    }

    pub fn refuse(&self, refusal: Refusal) {
        *self.refusal.lock() = Some(refusal);
    }

    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub fn sockets(&self) -> usize {
        self.sockets.load(Ordering::SeqCst)
    }
}

static GENERATION: AtomicU64 = AtomicU64::new(1);

/// All apps of a test.
pub struct Double {
    table: RouteTable,
    apps: HashMap<AppName, Arc<App>>,
}

struct Waiting(Arc<App>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Apps for Double {
    fn route(&self, host: &str, path: &str) -> Option<Route> {
        self.table.resolve(host, path)
    }

    async fn acquire(&self, app: &AppName) -> Result<Box<dyn Lease>, Refusal> {
        let app = self.apps.get(app).ok_or(Refusal::NoSuchApp)?;
        app.waiting.fetch_add(1, Ordering::SeqCst);
        let _waiting = Waiting(Arc::clone(app));
        if let Some(refusal) = app.refusal.lock().clone() {
            return Err(refusal);
        }
        app.ready
            .subscribe()
            .wait_for(|ready| *ready)
            .await
            .map_err(|_| Refusal::ShuttingDown)?;
        app.leases.fetch_add(1, Ordering::SeqCst);
        app.acquired.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Claim(Arc::clone(app))))
    }
}

struct Claim(Arc<App>);

impl Lease for Claim {
    fn upstream(&self) -> Arc<dyn Upstream> {
        let (addr, generation) = *self.0.place.lock();
        Arc::new(Place {
            addr,
            generation,
            app: Arc::clone(&self.0),
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Place {
    addr: SocketAddr,
    generation: u64,
    app: Arc<App>,
}

#[async_trait]
impl Upstream for Place {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn addr(&self) -> SocketAddr {
        self.addr
    }

    async fn socket(&self) -> io::Result<OwnedFd> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        self.app.sockets.fetch_add(1, Ordering::SeqCst);
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?)
    }
}

/// An edge with its apps.
pub struct World {
    pub edge: Edge,
    pub addr: SocketAddr,
    apps: HashMap<String, Arc<App>>,
}

impl World {
    /// An edge in front of these apps, all of them ready.
    pub fn new(apps: &[(&str, SocketAddr)]) -> Self {
        Self::with(apps, |_| {})
    }

    pub fn with(apps: &[(&str, SocketAddr)], change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let world = Self::closed(apps, change);
        for app in world.apps.values() {
            app.open();
        }
        world
    }

    /// An edge in front of these apps, none of them ready.
    pub fn closed(apps: &[(&str, SocketAddr)], change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let apps: HashMap<AppName, Arc<App>> = apps
            .iter()
            .map(|(name, addr)| {
                let app = App {
                    place: Mutex::new((*addr, GENERATION.fetch_add(1, Ordering::Relaxed))),
                    ready: watch::Sender::new(false),
                    refusal: Mutex::new(None),
                    waiting: AtomicUsize::new(0),
                    leases: AtomicUsize::new(0),
                    acquired: AtomicUsize::new(0),
                    sockets: AtomicUsize::new(0),
                };
                (AppName::parse(name).expect("a valid name"), Arc::new(app))
            })
            .collect();
        let hosts = apps
            .keys()
            .map(|name| (format!("{name}.custom.test"), name.clone()))
            .collect::<Vec<_>>();
        let table = RouteTable::new(DOMAIN, apps.keys().cloned(), hosts);
        let mut config = EdgeConfig {
            listen: vec![([127, 0, 0, 1], 0).into()],
            domain: DOMAIN.to_owned(),
            threads: 2,
            ..EdgeConfig::default()
        };
        change(&mut config);
        let by_name = apps
            .iter()
            .map(|(name, app)| (name.to_string(), Arc::clone(app)))
            .collect();
        let edge = Edge::start(config, Arc::new(Double { table, apps })).expect("an edge on a free port");
        let addr = edge.local_addrs()[0];
        Self {
            edge,
            addr,
            apps: by_name,
        }
    }

    pub fn app(&self, name: &str) -> &App {
        &self.apps[name]
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Sends these bytes and returns all that comes back until the connection is closed.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).await.expect("connect");
        stream.write_all(request).await.expect("send");
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .expect("an end");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A client that follows no redirects.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("a client")
}

pub type Answer = Response<BoxBody<Bytes, io::Error>>;

pub fn body(text: impl Into<Bytes>) -> BoxBody<Bytes, io::Error> {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// An app made of hyper: `answer` is called for each request.
pub async fn http_app<F, Fut>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    tcp_app(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = answer.clone();
                async move { Ok::<_, io::Error>(answer(request).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
    })
    .await
}

/// An app that says `text`.
pub async fn hello(text: &'static str) -> SocketAddr {
    http_app(move |_| async move { Response::new(body(text)) }).await
}

/// An app that tells what it was asked: the request line, then each header, one a line.
pub async fn mirror() -> SocketAddr {
    http_app(|request| async move {
        let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        Response::new(body(text))
    })
    .await
}

/// An app that gets each connection as it is.
pub async fn tcp_app<F, Fut>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(serve(stream));
        }
    });
    addr
}

/// Reads up to the empty line after a header.
pub async fn read_header(stream: &mut TcpStream) -> String {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => header.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&header).into_owned()
}

/// Waits until `condition` holds; fails the test after ten seconds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
