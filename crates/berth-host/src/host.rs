//! The door to the host: the apps by name, and one task that turns what the monitor sees into drivers and routes.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use berth_image::ImageStore;
use berth_sandbox::{Network, Sandbox, Spawner, clean_leftovers};
use berth_store::Store;
use berth_sys::netns::SocketFactory;
use berth_workspace::{AppName, Plan, PlanError, RevisionId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{App, Status};
use crate::config::HostConfig;
use crate::driver::{Driver, Ground, Message};
use crate::failure::{AcquireError, ControlError, FailKind, FailReason, HostError, RunError};
use crate::gate::Lease;
use crate::history::History;
use crate::life::Turns;
use crate::machine::Event;
use crate::monitor::{Bucket, Monitor, MonitorEvent};
use crate::pressure::{self, HostMemory, Memory, Pace};
use crate::routes::{Claims, RouteTable};
use crate::run::{self, RunRequest, RunSession};
use crate::sandboxes::{RealSandboxes, Sandboxes};
use crate::snapshot::{AppSnapshot, AppState, EventKind, HostEvent, InvalidWorkspace};
use crate::source::Source;

/// How long the start waits for the first listing: with it the first request after a restart finds its route. Without it
/// (an S3 server that is down) the host starts all the same.
const FIRST_LISTING: Duration = Duration::from_secs(10);

/// What a host is made of.
pub struct HostParts {
    /// The bucket.
    pub store: Store,
    /// The images of this host.
    pub images: Arc<ImageStore>,
    /// Forks keepers; made first thing in `main`.
    pub spawner: Arc<Spawner>,
    /// The sandboxes' network.
    pub network: Arc<Network>,
    /// Where sandboxes find the workspaces.
    pub source: Source,
    /// Makes sockets inside sandboxes.
    pub sockets: SocketFactory,
}

/// All apps of this host. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    ground: Arc<Ground>,
    apps: RwLock<HashMap<AppName, Arc<App>>>,
    invalid: RwLock<BTreeMap<String, String>>,
    claims: Mutex<Claims>,
    routes: watch::Sender<Arc<RouteTable>>,
    closing: AtomicBool,
    stop: CancellationToken,
}

impl Host {
    /// Cleans what an earlier daemon left, lists the bucket and starts to watch it. Apps start when requests come.
    ///
    /// # Errors
    /// [`HostError::Directory`] for a run or log directory that cannot be made, [`HostError::Leftovers`] when sandboxes of
    /// an earlier daemon cannot be removed.
    pub async fn start(config: HostConfig, parts: HostParts) -> Result<Self, HostError> {
        for directory in [&config.run_dir, &config.log_dir] {
            make_directory(directory)?;
        }
        match clean_leftovers(&config.run_dir, &config.instance).await {
            Ok(done) => done
                .iter()
                .for_each(|line| tracing::info!("left by an earlier daemon: {line}")),
            Err(error) => {
                return Err(HostError::Leftovers {
                    path: config.run_dir,
                    message: berth_workspace::chain(&error),
                });
            }
        }
        let sandboxes = RealSandboxes {
            images: parts.images,
            spawner: parts.spawner,
            network: parts.network,
            sockets: parts.sockets,
            run_dir: config.run_dir.clone(),
            instance: config.instance.clone(),
        };
        let host = Self::begin(config, Arc::new(sandboxes), Arc::new(parts.store), parts.source).await;
        host.heed(Arc::new(HostMemory), Pace::default());
        Ok(host)
    }

    /// From now on, apps make room when memory is short.
    pub(crate) fn heed(&self, memory: Arc<dyn Memory>, pace: Pace) {
        let inner = Arc::clone(&self.inner);
        let stop = self.inner.stop.clone();
        let watch = pressure::watch(memory, pace, move || inner.apps.read().values().cloned().collect());
        tokio::spawn(stop.run_until_cancelled_owned(watch));
    }

    pub(crate) async fn begin(
        config: HostConfig,
        sandboxes: Arc<dyn Sandboxes>,
        bucket: Arc<dyn Bucket>,
        source: Source,
    ) -> Self {
        let monitor = Monitor::watch(bucket, config.excludes.clone());
        let ground = Ground {
            turns: Turns::new(config.max_installs, config.max_starts),
            config,
            source,
            sandboxes,
            history: History::new(),
            tasks: TaskTracker::new(),
            boot: rand::random(),
            generations: AtomicU64::new(0),
        };
        let inner = Arc::new(Inner {
            ground: Arc::new(ground),
            apps: RwLock::new(HashMap::new()),
            invalid: RwLock::new(BTreeMap::new()),
            claims: Mutex::new(Claims::default()),
            routes: watch::Sender::new(Arc::new(RouteTable::default())),
            closing: AtomicBool::new(false),
            stop: CancellationToken::new(),
        });
        let (listed, first_listing) = oneshot::channel();
        tokio::spawn(follow(Arc::clone(&inner), monitor, listed));
        if tokio::time::timeout(FIRST_LISTING, first_listing).await.is_err() {
            tracing::warn!("the bucket is not listed yet; apps appear when it is");
        }
        Self { inner }
    }

    /// Every workspace with a valid name, by name.
    pub fn apps(&self) -> Vec<AppSnapshot> {
        let mut apps: Vec<Arc<App>> = self.inner.apps.read().values().cloned().collect();
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        apps.iter().map(|app| self.snapshot(app)).collect()
    }

    /// One of them.
    pub fn app(&self, name: &AppName) -> Option<AppSnapshot> {
        let app = self.find(name)?;
        Some(self.snapshot(&app))
    }

    /// Folders whose name no app can have.
    pub fn invalid(&self) -> Vec<InvalidWorkspace> {
        let invalid = self.inner.invalid.read();
        invalid
            .iter()
            .map(|(name, reason)| InvalidWorkspace {
                name: name.clone(),
                reason: reason.clone(),
            })
            .collect()
    }

    /// A lease on the app, which is started first if need be. Cancel-safe: dropping the future gives up the place.
    ///
    /// # Errors
    /// [`AcquireError`]; each says whether and when to try again.
    pub async fn acquire(&self, name: &AppName) -> Result<Lease, AcquireError> {
        if self.inner.closing.load(Ordering::Acquire) {
            return Err(AcquireError::ShuttingDown);
        }
        let app = self.find(name).ok_or(AcquireError::NoSuchApp)?;
        let config = &self.inner.ground.config;
        app.acquire(config.max_waiting, config.acquire_timeout).await
    }

    /// Stops the app; the next request starts it again. Returns when nothing of it runs: requests that it still answers
    /// may go on until the drain limit.
    ///
    /// # Errors
    /// [`ControlError::NoSuchApp`].
    pub async fn stop(&self, name: &AppName) -> Result<(), ControlError> {
        let app = self.order(name, Event::StopAsked).await?;
        settled(&app, |status| {
            !status.leaving || status.rising || matches!(status.state, AppState::Ready | AppState::Frozen)
        })
        .await;
        Ok(())
    }

    /// Starts the app anew beside the running one and swaps; starts it if it is down. Returns when it is ready or failed.
    ///
    /// # Errors
    /// [`ControlError::CannotStart`] with the reason; what served before goes on serving then.
    pub async fn restart(&self, name: &AppName) -> Result<(), ControlError> {
        let app = self.order(name, Event::RestartAsked).await?;
        let status = settled(&app, |status| !status.rising).await;
        match status.error {
            Some(reason) => Err(ControlError::CannotStart {
                app: name.clone(),
                reason,
            }),
            None if status.state == AppState::Cold => {
                let reason = FailReason::new(FailKind::NotAnApp, "nothing in the folder says how to run it");
                Err(ControlError::CannotStart {
                    app: name.clone(),
                    reason,
                })
            }
            None => Ok(()),
        }
    }

    /// What happens from now on. A receiver that lags misses events; [`Host::recent_events`] has them.
    pub fn events(&self) -> broadcast::Receiver<HostEvent> {
        self.inner.ground.history.feed()
    }

    /// The last 1000 events, oldest first.
    pub fn recent_events(&self) -> Vec<HostEvent> {
        self.inner.ground.history.recent()
    }

    /// The sandbox that serves, for exec and statistics.
    pub fn sandbox(&self, name: &AppName) -> Option<Arc<Sandbox>> {
        let app = self.find(name)?;
        let front = app.front.read().clone()?;
        front.running.sandbox()
    }

    /// Where the app's log is kept (`berth_sandbox::logs` reads it).
    pub fn log_dir(&self, name: &AppName) -> PathBuf {
        self.inner.ground.log_dir(name)
    }

    /// Runs a command in a sandbox of its own, made of the workspace as it is now. It is removed when the command has
    /// ended, or when the session is dropped.
    ///
    /// # Errors
    /// [`RunError`].
    pub async fn run(&self, request: RunRequest) -> Result<RunSession, RunError> {
        let no_such = || RunError::NoSuchApp(request.app.clone());
        let app = self.find(&request.app).ok_or_else(no_such)?;
        let known = app.plan.read().clone();
        let Some((revision, plan)) = known else {
            let reason = app.status.borrow().error.clone();
            return Err(reason.map_or_else(no_such, |reason| RunError::NoPlan {
                app: request.app.clone(),
                reason,
            }));
        };
        run::start(&self.inner.ground, self.inner.stop.clone(), request, &revision, &plan).await
    }

    /// The routes, and a signal whenever they change.
    pub fn routes(&self) -> watch::Receiver<Arc<RouteTable>> {
        self.inner.routes.subscribe()
    }

    /// Stops every sandbox, all at once, and returns when nothing is left. Requests that wait are refused.
    pub async fn shutdown(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.stop.cancel();
        for app in self.inner.apps.read().values() {
            app.say(Message::Event(Event::Shutdown));
        }
        self.inner.ground.tasks.close();
        self.inner.ground.tasks.wait().await;
        self.inner.ground.sandboxes.clear().await;
    }

    fn find(&self, name: &AppName) -> Option<Arc<App>> {
        self.inner.apps.read().get(name).cloned()
    }

    fn snapshot(&self, app: &App) -> AppSnapshot {
        let claims = self.inner.claims.lock();
        let warnings = claims.conflicts(&app.name).into_iter().map(|conflict| {
            format!(
                "host {} belongs to {}; remove it from one of the two workspace.json",
                conflict.host, conflict.owner
            )
        });
        let (hosts, warnings) = (claims.hosts(&app.name), warnings.collect());
        drop(claims);
        app.snapshot(hosts, warnings)
    }

    /// Gives an order to an app's driver and returns when it was taken up.
    async fn order(&self, name: &AppName, event: Event) -> Result<Arc<App>, ControlError> {
        if self.inner.closing.load(Ordering::Acquire) {
            return Err(ControlError::ShuttingDown);
        }
        let app = self.find(name).ok_or_else(|| ControlError::NoSuchApp(name.clone()))?;
        let (done, taken_up) = oneshot::channel();
        app.say(Message::Order { event, done });
        taken_up.await.map_err(|_| ControlError::NoSuchApp(name.clone()))?;
        Ok(app)
    }
}

/// Waits until the app's status is as wanted. The app holds the sender, so it never closes under us.
async fn settled(app: &App, wanted: impl FnMut(&Status) -> bool) -> Status {
    let mut status = app.status.subscribe();
    match status.wait_for(wanted).await {
        Ok(status) => status.clone(),
        Err(_) => app.status.borrow().clone(),
    }
}

fn make_directory(path: &Path) -> Result<(), HostError> {
    std::fs::create_dir_all(path).map_err(|source| HostError::Directory {
        path: path.to_owned(),
        source,
    })
}

/// Turns what the monitor sees into drivers and routes, until the host shuts down.
async fn follow(inner: Arc<Inner>, mut monitor: mpsc::UnboundedReceiver<MonitorEvent>, listed: oneshot::Sender<()>) {
    let mut listed = Some(listed);
    loop {
        let event = tokio::select! {
            () = inner.stop.cancelled() => return,
            event = monitor.recv() => event,
        };
        match event {
            None => return,
            Some(MonitorEvent::WorkspaceChanged {
                name,
                revision,
                files: _,
                plan,
            }) => inner.changed(name, revision, *plan),
            Some(MonitorEvent::WorkspaceGone { name }) => inner.gone(&name),
            Some(MonitorEvent::InvalidName { name, reason }) => inner.invalid_name(name, reason),
            Some(MonitorEvent::InvalidGone { name }) => {
                inner.invalid.write().remove(&name);
            }
            Some(MonitorEvent::Listed) => {
                if let Some(listed) = listed.take() {
                    // The start may have stopped waiting.
                    let _ = listed.send(());
                }
            }
        }
    }
}

impl Inner {
    fn changed(&self, name: AppName, revision: RevisionId, plan: Result<Plan, PlanError>) {
        let app = self.app_or_new(&name);
        self.claim(&name, &app, &plan);
        let plan = plan.map_err(|error| match error {
            PlanError::NotAnApp => FailReason::new(FailKind::NotAnApp, error.to_string()),
            error => FailReason::new(FailKind::BadPlan, berth_workspace::chain(&error)),
        });
        *app.plan.write() = plan
            .as_ref()
            .ok()
            .map(|plan| (revision.clone(), Arc::new(plan.clone())));
        app.say(Message::Workspace {
            revision,
            plan: Box::new(plan),
        });
    }

    fn app_or_new(&self, name: &AppName) -> Arc<App> {
        let mut apps = self.apps.write();
        if let Some(app) = apps.get(name) {
            return Arc::clone(app);
        }
        let (app, inbox) = App::new(name.clone());
        apps.insert(name.clone(), Arc::clone(&app));
        drop(apps);
        self.ground
            .history
            .add(HostEvent::now(name.as_str(), EventKind::Appeared, "new workspace"));
        self.ground
            .tasks
            .spawn(Driver::new(Arc::clone(&app), Arc::clone(&self.ground)).drive(inbox));
        app
    }

    /// Puts the app's routes right.
    fn claim(&self, name: &AppName, app: &App, plan: &Result<Plan, PlanError>) {
        let mut claims = self.claims.lock();
        let before = claims.conflicts(name);
        match plan {
            Ok(plan) => claims.set(name, &plan.hosts),
            // What serves goes on serving, under the names it has.
            Err(_) if claims.knows(name) && app.front.read().is_some() => {}
            Err(PlanError::NotAnApp) => claims.remove(name),
            // Its error page is an answer too.
            Err(_) if claims.knows(name) => {}
            Err(_) => claims.set(name, &[]),
        }
        let table = claims.table();
        let conflicts = claims.conflicts(name);
        drop(claims);
        self.publish(table);
        for conflict in conflicts.into_iter().filter(|conflict| !before.contains(conflict)) {
            let text = format!("host {} belongs to {} already", conflict.host, conflict.owner);
            self.ground
                .history
                .add(HostEvent::now(name.as_str(), EventKind::Warning, text));
        }
    }

    fn gone(&self, name: &AppName) {
        let Some(app) = self.apps.write().remove(name) else {
            return;
        };
        let table = {
            let mut claims = self.claims.lock();
            claims.remove(name);
            claims.table()
        };
        self.publish(table);
        app.say(Message::Event(Event::Deleted));
        self.ground
            .history
            .add(HostEvent::now(name.as_str(), EventKind::Gone, "workspace deleted"));
    }

    fn publish(&self, table: RouteTable) {
        self.routes.send_if_modified(|routes| {
            let changed = **routes != table;
            if changed {
                *routes = Arc::new(table);
            }
            changed
        });
    }

    fn invalid_name(&self, name: String, reason: String) {
        self.ground
            .history
            .add(HostEvent::now(name.as_str(), EventKind::Warning, reason.as_str()));
        self.invalid.write().insert(name, reason);
    }
}
