//! Who waits, who is answered and what is stopped, with sandboxes that are plain sockets and start when the test says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod freezing;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use berth_sandbox::{ExitInfo, Phase, Reclaim, Sandbox, SandboxError, SandboxEvent, Stats};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::*;
use crate::host::Host;
use crate::monitor::tests::Memory;
use crate::sandboxes::{Made, Running};

/// One sandbox that is a socket.
struct Puppet {
    listener: TcpListener,
    listens: AtomicBool,
    stopped: AtomicBool,
    frozen: AtomicBool,
    reclaimed: AtomicBool,
    /// Neither to be frozen nor to be thawed.
    stuck: AtomicBool,
    cpu_usec: AtomicU64,
    events: mpsc::Sender<SandboxEvent>,
}

impl Running for Puppet {
    fn listening(&self) -> io::Result<Vec<SocketAddr>> {
        if self.listens.load(Ordering::Relaxed) {
            Ok(vec![self.listener.local_addr()?])
        } else {
            Ok(Vec::new())
        }
    }

    fn socket(&self, _v6: bool) -> BoxFuture<'_, io::Result<OwnedFd>> {
        // A duplicate is the same socket, and outlives the wrapper.
        Box::pin(async { tokio::net::TcpSocket::new_v4()?.as_fd().try_clone_to_owned() })
    }

    fn stop(&self, _grace: Duration) -> BoxFuture<'_, Result<ExitInfo, SandboxError>> {
        assert!(!self.is_frozen(), "a frozen process hears no SIGTERM");
        self.stopped.store(true, Ordering::Relaxed);
        Box::pin(async {
            Ok(ExitInfo {
                code: Some(0),
                ..ExitInfo::default()
            })
        })
    }

    fn freeze(&self) -> io::Result<()> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(io::Error::other("no freezer"));
        }
        self.frozen.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn thaw(&self) -> io::Result<()> {
        if self.stuck.load(Ordering::Relaxed) {
            return Err(io::Error::other("gone"));
        }
        self.frozen.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn reclaim(&self, _what: Reclaim, go_on: &dyn Fn() -> bool) -> io::Result<()> {
        self.reclaimed.store(go_on(), Ordering::Relaxed);
        Ok(())
    }

    fn stats(&self) -> Option<Stats> {
        Some(Stats {
            cpu_usec: self.cpu_usec.load(Ordering::Relaxed),
            ..Stats::default()
        })
    }

    fn sandbox(&self) -> Option<Arc<Sandbox>> {
        None
    }
}

#[derive(Default)]
struct Stage {
    made: Arc<Mutex<Vec<Arc<Puppet>>>>,
}

impl Sandboxes for Stage {
    fn create(&self, _order: Order) -> BoxFuture<'static, Result<Made, FailReason>> {
        let made = Arc::clone(&self.made);
        Box::pin(async move {
            let (events, receiver) = mpsc::channel(16);
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let puppet = Puppet {
                listener,
                listens: AtomicBool::new(false),
                stopped: AtomicBool::new(false),
                frozen: AtomicBool::new(false),
                reclaimed: AtomicBool::new(false),
                stuck: AtomicBool::new(false),
                cpu_usec: AtomicU64::new(0),
                events: events.clone(),
            };
            let puppet = Arc::new(puppet);
            made.lock().push(Arc::clone(&puppet));
            events
                .send(SandboxEvent::Phase {
                    phase: Phase::AppStarted,
                    at_ms: 1.0,
                })
                .await
                .unwrap();
            Ok(Made {
                running: puppet,
                events: receiver,
                prepared: Duration::ZERO,
            })
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct World {
    host: Host,
    bucket: Arc<Memory>,
    made: Arc<Mutex<Vec<Arc<Puppet>>>>,
    _logs: tempfile::TempDir,
}

impl World {
    /// A host with one node app, `app`, that is cold.
    async fn new(adjust: impl FnOnce(&mut HostConfig)) -> Self {
        Self::with(Source::at("/nowhere"), adjust).await
    }

    async fn with(source: Source, adjust: impl FnOnce(&mut HostConfig)) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let mut config = HostConfig {
            log_dir: logs.path().to_owned(),
            ..HostConfig::default()
        };
        adjust(&mut config);
        let bucket = Memory::new(1000);
        bucket.put("app/index.html", "1");
        let stage = Stage::default();
        let made = Arc::clone(&stage.made);
        let host = Host::begin(config, Arc::new(stage), Arc::clone(&bucket) as _, source).await;
        Self {
            host,
            bucket,
            made,
            _logs: logs,
        }
    }

    fn ask(&self, app: &AppName) -> tokio::task::JoinHandle<Result<Lease, AcquireError>> {
        let (host, app) = (self.host.clone(), app.clone());
        tokio::spawn(async move { host.acquire(&app).await })
    }

    /// The sandbox made as number `n`, from 0.
    async fn puppet(&self, n: usize) -> Arc<Puppet> {
        eventually("a sandbox is made", || self.made.lock().len() > n).await;
        Arc::clone(&self.made.lock()[n])
    }

    fn waiting(&self, app: &AppName) -> u64 {
        self.host.app(app).unwrap().waiting
    }
}

impl Puppet {
    fn listen(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < until, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn app() -> AppName {
    AppName::parse("app").unwrap()
}

#[tokio::test]
async fn a_request_that_gave_up_leaves_no_place_and_no_lease_behind() {
    let world = World::new(|_| {}).await;
    let (gone, stays) = (world.ask(&app()), world.ask(&app()));
    let puppet = world.puppet(0).await;
    eventually("both wait", || world.waiting(&app()) == 2).await;
    gone.abort();
    eventually("one gave up", || world.waiting(&app()) == 1).await;
    puppet.listen();
    let lease = stays.await.unwrap().unwrap();
    assert_eq!(lease.upstream.in_flight(), 1, "the one that gave up holds nothing");
    drop(lease);
    assert_eq!(world.host.app(&app()).unwrap().in_flight, 0);
    world.host.shutdown().await;
    assert!(puppet.is_stopped());
}

#[tokio::test]
async fn no_sandbox_is_made_before_its_source_can_be_seen() {
    let (asked, seen) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let source = Source::at("/nowhere").once({
        let (asked, seen) = (Arc::clone(&asked), Arc::clone(&seen));
        move || {
            asked.fetch_add(1, Ordering::Relaxed);
            let seen = Arc::clone(&seen);
            Box::pin(async move { seen.acquire().await.unwrap().forget() })
        }
    });
    let world = World::with(source, |_| {}).await;
    let waits = world.ask(&app());
    eventually("the source is asked for", || asked.load(Ordering::Relaxed) == 1).await;
    assert!(world.made.lock().is_empty(), "made before the save could be seen");
    seen.add_permits(1);
    world.puppet(0).await.listen();
    drop(waits.await.unwrap().unwrap());
    // The next revision waits for its own.
    world.bucket.put("app/workspace.json", r#"{"idle_stop": "5m"}"#);
    eventually("the source is asked for again", || asked.load(Ordering::Relaxed) == 2).await;
    assert_eq!(world.made.lock().len(), 1);
    seen.add_permits(1);
    world.puppet(1).await.listen();
}

#[tokio::test]
async fn more_requests_than_may_wait_are_refused_at_once() {
    let world = World::new(|config| config.max_waiting = 2).await;
    let held = [world.ask(&app()), world.ask(&app())];
    eventually("two wait", || world.waiting(&app()) == 2).await;
    assert_eq!(world.host.acquire(&app()).await.unwrap_err(), AcquireError::TooMany);
    world.puppet(0).await.listen();
    for request in held {
        drop(request.await.unwrap().unwrap());
    }
    assert!(world.host.acquire(&app()).await.is_ok(), "a warm app has no queue");
}

#[tokio::test]
async fn a_request_is_held_no_longer_than_the_limit_and_the_start_goes_on() {
    let world = World::new(|config| config.acquire_timeout = Duration::from_millis(50)).await;
    assert!(matches!(
        world.host.acquire(&app()).await,
        Err(AcquireError::Timeout { .. })
    ));
    world.puppet(0).await.listen();
    eventually("it is ready all the same", || {
        world.host.app(&app()).unwrap().state == AppState::Ready
    })
    .await;
    assert!(world.host.acquire(&app()).await.is_ok());
}

#[tokio::test]
async fn starts_wait_for_their_turn() {
    let world = World::new(|config| config.max_starts = 1).await;
    world.bucket.put("second/index.html", "1");
    let second = AppName::parse("second").unwrap();
    eventually("the second app is known", || {
        world.host.app(&second).is_some_and(|app| app.revision.is_some())
    })
    .await;
    let one = world.ask(&app());
    let puppet = world.puppet(0).await;
    let two = world.ask(&second);
    eventually("the second waits", || world.waiting(&second) == 1).await;
    assert_eq!(world.made.lock().len(), 1, "one at a time");
    puppet.listen();
    drop(one.await.unwrap().unwrap());
    world.puppet(1).await.listen();
    drop(two.await.unwrap().unwrap());
}

#[tokio::test]
async fn a_stop_by_hand_refuses_those_who_wait_and_ends_the_start() {
    let world = World::new(|_| {}).await;
    let waits = world.ask(&app());
    let puppet = world.puppet(0).await;
    world.host.stop(&app()).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap_err(), AcquireError::Stopping);
    assert!(puppet.is_stopped());
    assert_eq!(world.host.app(&app()).unwrap().state, AppState::Cold);
}

#[tokio::test]
async fn a_newer_save_abandons_the_start_and_those_who_wait_get_the_newer_one() {
    let world = World::new(|_| {}).await;
    let waits = world.ask(&app());
    let old = world.puppet(0).await;
    // Another plan, so that a new sandbox is needed.
    world.bucket.put("app/workspace.json", r#"{"idle_stop": "5m"}"#);
    let new = world.puppet(1).await;
    eventually("the old one is stopped", || old.is_stopped()).await;
    new.listen();
    let lease = waits.await.unwrap().unwrap();
    assert_eq!(lease.upstream.addr, new.listener.local_addr().unwrap());
}

#[tokio::test]
async fn a_replaced_sandbox_is_stopped_when_its_last_lease_ends() {
    let world = World::new(|_| {}).await;
    let waits = world.ask(&app());
    let old = world.puppet(0).await;
    old.listen();
    let lease = waits.await.unwrap().unwrap();
    world.bucket.put("app/workspace.json", r#"{"idle_stop": "5m"}"#);
    let new = world.puppet(1).await;
    new.listen();
    let first = lease.upstream.generation;
    eventually("the new one serves", || {
        world
            .host
            .app(&app())
            .unwrap()
            .generation
            .is_some_and(|now| now != first)
    })
    .await;
    assert!(!old.is_stopped(), "a request is under way in it");
    drop(lease);
    eventually("the old one is stopped", || old.is_stopped()).await;
    assert!(!new.is_stopped());
}

#[tokio::test]
async fn an_app_that_dies_with_its_keeper_is_a_failure_and_not_a_hang() {
    let world = World::new(|_| {}).await;
    let waits = world.ask(&app());
    let puppet = world.puppet(0).await;
    puppet
        .events
        .send(SandboxEvent::Exited(ExitInfo {
            code: Some(1),
            ..ExitInfo::default()
        }))
        .await
        .unwrap();
    let Err(AcquireError::Failed { reason, retry_after }) = waits.await.unwrap() else {
        panic!("it must fail")
    };
    assert_eq!(reason.kind, crate::FailKind::ExitedEarly);
    assert!(retry_after <= Duration::from_secs(1));
    eventually("it is stopped", || puppet.is_stopped()).await;
}
