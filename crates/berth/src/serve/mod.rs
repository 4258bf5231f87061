//! `berth serve`: the life of the daemon, from the first fork to the last unmount.
//!
//! ```text
//!   spawner forked ─▶ directories ─▶ admin socket ─▶ edge ports ─▶ S3 ─▶ store ─▶ mount ─▶ images ─▶ network ─▶ host ─▶ edge
//!                                    (one daemon only)                                                                │
//!   exit ◀─ S3 closed ◀─ mount flushed, unmounted ◀─ network removed ◀─ apps stopped ◀─ requests drained ◀─ SIGTERM ◀──┘
//! ```
//!
//! Each step either works or says what failed and what to do; what was built before it is taken down again in the reverse order,
//! so a start that fails leaves nothing behind.

mod parts;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_console::{Api, DaemonStatus};
use berth_edge::Edge;
use berth_sandbox::Spawner;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{apps::HostedApps, config::Config, failure::Failure, telemetry};

/// How long requests may go on when the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(config: Config) -> Result<ExitCode, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::failed(
            "the daemon makes mounts and namespaces and must run as root: try `sudo berth serve`",
        ));
    }
    let spawner = Spawner::fork_before_threads().map_err(|error| Failure::from_error(&error))?;
    telemetry::install(&config.log);
    parts::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("berth")
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the runtime: {error}")))?;
    let done = runtime.block_on(serve(config, Arc::new(spawner)));
    runtime.shutdown_timeout(Duration::from_secs(2));
    done.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: Config, spawner: Arc<Spawner>) -> Result<(), Failure> {
    let mut stop = Stop::listen()?;
    parts::make_directories(&config)?;
    let mut built = parts::Parts::default();
    parts::run_in_memory(&config, &mut built)?;
    let admin = match berth_console::bind(&config.admin_socket(), &config.admin.group).await {
        Ok(admin) => admin,
        Err(error) => {
            built.down().await;
            return Err(Failure::from_error(&error));
        }
    };
    let ran = tokio::select! {
        ran = up(&config, spawner, admin, &mut built) => ran,
        () = stop.asked() => Ok(None),
    };
    let outcome = match ran {
        Ok(Some(running)) => {
            announce(&config, &running);
            stop.asked().await;
            tracing::info!("stopping: requests are let end, then apps, mount and S3 are closed");
            running.down(&mut stop).await;
            Ok(())
        }
        Ok(None) => Ok(()),
        Err(failure) => Err(failure),
    };
    let _ = std::fs::remove_file(config.admin_socket());
    built.down().await;
    outcome
}

/// The parts that answer people: edge and admin API.
struct Running {
    edge: Edge,
    admin: tokio::task::JoinHandle<std::io::Result<()>>,
    stop_admin: oneshot::Sender<()>,
}

impl Running {
    /// Lets requests end, for a while; a second signal ends the wait.
    async fn down(self, stop: &mut Stop) {
        let edge = self.edge;
        let drained = tokio::task::spawn_blocking(move || edge.shutdown(DRAIN));
        tokio::select! {
            _ = drained => {}
            () = stop.asked() => tracing::warn!("told twice to stop: open requests are cut"),
        }
        let _ = self.stop_admin.send(());
        // Followers of logs and events never end by themselves.
        if tokio::time::timeout(Duration::from_millis(300), self.admin)
            .await
            .is_err()
        {
            tracing::debug!("clients of the admin socket were cut");
        }
    }
}

/// Brings everything up in order. What is built before an error stands in `built`.
async fn up(
    config: &Config,
    spawner: Arc<Spawner>,
    admin: UnixListener,
    built: &mut parts::Parts,
) -> Result<Option<Running>, Failure> {
    parts::ports_are_free(&config.edge.listen)?;
    let (store, endpoint) = parts::storage(config, built).await?;
    parts::hints(config, &store, built).await?;
    parts::mount(config, store.clone(), built).await?;
    let images = parts::images(config, built)?;
    let host = parts::host(config, store.clone(), images, spawner, built).await?;
    let apps = Arc::new(HostedApps::new(host.clone(), config.domain.clone()));
    let edge = parts::edge(config, apps).await?;
    let status = parts::status_source(config, (store, endpoint), &edge, built);
    let (stop_admin, stopped) = oneshot::channel::<()>();
    let router = berth_console::router(Api {
        host,
        log_dir: config.paths.logs.clone(),
        status,
        local: parts::local_source(built),
    });
    let admin = tokio::spawn(berth_console::serve(admin, router, async {
        let _ = stopped.await;
    }));
    Ok(Some(Running {
        edge,
        admin,
        stop_admin,
    }))
}

/// Tells a person where things are.
fn announce(config: &Config, running: &Running) {
    for address in running.edge.local_addrs() {
        tracing::info!(
            "apps answer at http://{address}/NAME/ and http://NAME.{}:{}/",
            config.domain,
            address.port()
        );
    }
    tracing::info!("ready: save source under {}", config.mount.path.display());
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")));
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
        })
    }

    /// Resolves at the next one. Cancel-safe.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What `berth status` shows.
fn daemon_status(config: &Config, endpoint: String, edge: Vec<String>, since: Instant) -> DaemonStatus {
    DaemonStatus {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime_s: since.elapsed().as_secs(),
        domain: config.domain.clone(),
        edge,
        mount: config.mount.path.clone(),
        s3_endpoint: endpoint,
        bucket: config.s3.bucket.clone(),
        local: berth_mount::LocalUsage::default(),
        pending: berth_mount::Pending::default(),
        unshown: berth_mount::Unshown::default(),
        unannounced: 0,
        journal: None,
        s3: berth_console::S3Status::default(),
    }
}

/// Logs what could not be taken down; the rest is taken down all the same.
fn note(what: &str, error: &dyn std::error::Error) {
    tracing::warn!("{what}: {}", berth_workspace::chain(error));
}
