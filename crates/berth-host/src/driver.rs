//! The driver: one task per app that owns its [`State`], does what the machine says, and tells it what came of it.
//!
//! Everything that takes time happens elsewhere (`life.rs`, one task per sandbox) and comes back as a [`Message`], so the
//! driver answers at once, whatever its sandboxes do. After every message the app's status is published.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use berth_sandbox::logs::{LogLine, LogPhase, LogStream, LogWriter};
use berth_sandbox::{Limits, SandboxId, SandboxSpec};
use berth_workspace::{AppName, LimitsOverride, Plan, RevisionId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::config::HostConfig;
use crate::failure::{AcquireError, FailReason};
use crate::gate::{Lease, Upstream};
use crate::history::History;
use crate::life::{Life, Turns};
use crate::machine::{self, Action, Event, Front, Moment, Refusal, Rest, RunId, State, WaiterId, Wanted};
use crate::sandboxes::{Order, Sandboxes};
use crate::snapshot::{AppState, ColdStart, EventKind, HostEvent};
use crate::source::Source;

/// Making a sandbox takes milliseconds; a host that needs this long for it is in trouble.
const CREATE_LIMIT: Duration = Duration::from_secs(60);

/// What arrives in a driver's mailbox.
pub(crate) enum Message {
    /// The workspace has a new revision.
    Workspace {
        revision: RevisionId,
        plan: Box<Result<Plan, FailReason>>,
    },
    /// A request wants a lease.
    Request {
        waiter: WaiterId,
        reply: oneshot::Sender<Result<Lease, AcquireError>>,
    },
    /// A request no longer wants one (or has had its answer).
    Withdraw(WaiterId),
    /// An order by hand; `done` hears when it was taken up.
    Order { event: Event, done: oneshot::Sender<()> },
    /// A sandbox answers.
    Risen {
        run: RunId,
        upstream: Arc<Upstream>,
        cold_start: ColdStart,
    },
    /// Anything else that happened.
    Event(Event),
}

/// What all drivers of a host share.
pub(crate) struct Ground {
    pub(crate) config: HostConfig,
    pub(crate) source: Source,
    pub(crate) sandboxes: Arc<dyn Sandboxes>,
    pub(crate) turns: Turns,
    pub(crate) history: History,
    pub(crate) tasks: TaskTracker,
    /// Distinguishes the sandboxes of this daemon from those of an earlier one.
    pub(crate) boot: u32,
    pub(crate) generations: AtomicU64,
}

impl Ground {
    /// A number no other sandbox of this daemon has, and an id that none of an earlier one has.
    pub(crate) fn next_sandbox(&self, app: &AppName) -> (u64, Option<SandboxId>) {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        // At most 48 characters: the app's name may be cut, boot and generation make the id unique.
        let short: String = app.as_str().chars().take(24).collect();
        let id = format!(
            "{}-{:06x}-{generation}",
            short.trim_end_matches('-'),
            self.boot & 0xff_ffff
        );
        (generation, SandboxId::parse(&id).ok())
    }

    /// The spec of a sandbox of `app`, all but the places that are known only when it is made.
    pub(crate) fn spec(&self, id: SandboxId, app: &AppName, revision: &RevisionId, plan: &Plan) -> SandboxSpec {
        let mut env = plan.env.clone();
        env.entry("PORT".to_owned()).or_insert_with(|| plan.port.to_string());
        env.entry("HOST".to_owned()).or_insert_with(|| "0.0.0.0".to_owned());
        env.insert("BERTH_APP".to_owned(), app.to_string());
        env.insert("BERTH_REVISION".to_owned(), revision.short().to_owned());
        let mut install_env = env.clone();
        install_env.extend(self.config.install_env.variables().clone());
        SandboxSpec {
            id,
            app: app.clone(),
            revision: revision.clone(),
            instance: self.config.instance.clone(),
            image_root: PathBuf::new(),
            source: self.source.of(app),
            run_dir: self.config.run_dir.clone(),
            log_dir: self.log_dir(app),
            limits: limits(self.config.limits, &plan.limits),
            copy_source: plan.copy_source,
            copy_excludes: self.config.excludes.patterns().to_vec(),
            install: plan.install.clone(),
            start: Some(plan.start.clone()),
            env,
            install_env,
            ca_bundle: self.config.ca_bundle.clone(),
            slot: None,
            // Known when a slot is leased.
            uid_base: 0,
            extra_ro_binds: Vec::new(),
        }
    }

    pub(crate) fn log_dir(&self, app: &AppName) -> PathBuf {
        self.config.log_dir.join(app.as_str())
    }
}

fn limits(host: Limits, app: &LimitsOverride) -> Limits {
    Limits {
        memory: app.memory.unwrap_or(host.memory),
        cpus: app.cpus.unwrap_or(host.cpus),
        pids: app.pids.unwrap_or(host.pids),
        app_size: app.app_size.unwrap_or(host.app_size),
        tmp_size: app.tmp_size.unwrap_or(host.tmp_size),
    }
}

/// One sandbox, as the driver knows it.
struct Run {
    /// Taken when the order to stop is given.
    stop: Option<oneshot::Sender<()>>,
    id: String,
    upstream: Option<Arc<Upstream>>,
}

/// The owner of one app's state.
pub(crate) struct Driver {
    app: Arc<App>,
    ground: Arc<Ground>,
    state: State,
    origin: Instant,
    /// The newest good plan and the number of its shape.
    plan: Option<Arc<Plan>>,
    shape: u64,
    revision: Option<RevisionId>,
    runs: HashMap<RunId, Run>,
    replies: HashMap<WaiterId, oneshot::Sender<Result<Lease, AcquireError>>>,
    starts: u64,
    cold_start: Option<ColdStart>,
    phase: (AppState, SystemTime),
    retired: bool,
}

impl Driver {
    pub(crate) fn new(app: Arc<App>, ground: Arc<Ground>) -> Self {
        let config = &ground.config;
        let state = State::new(machine::Limits {
            start: config.start_timeout,
            install: config.install_timeout,
            create: CREATE_LIMIT,
            drain: config.drain_limit,
            keep_last_good: config.keep_last_good,
            idle_reclaim: config.idle_reclaim,
        });
        Self {
            app,
            ground,
            state,
            origin: Instant::now(),
            plan: None,
            shape: 0,
            revision: None,
            runs: HashMap::new(),
            replies: HashMap::new(),
            starts: 0,
            cold_start: None,
            phase: (AppState::Cold, SystemTime::now()),
            retired: false,
        }
    }

    /// Runs until the app is closed and nothing of it is left.
    pub(crate) async fn drive(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        while !self.retired {
            // A time too far away for the clock never comes.
            let deadline = self.state.deadline().and_then(|at| self.origin.checked_add(at));
            let wake = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = wake => self.tick(),
            }
            self.publish();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Workspace { revision, plan } => self.workspace(revision, *plan),
            Message::Request { waiter, reply } => {
                self.replies.insert(waiter, reply);
                self.event(Event::Request(waiter));
            }
            Message::Withdraw(waiter) => {
                if self.replies.remove(&waiter).is_some() {
                    self.event(Event::Withdrawn(waiter));
                }
            }
            Message::Order { event, done } => {
                self.event(event);
                self.publish();
                // Whoever gave the order may have gone away.
                let _ = done.send(());
            }
            Message::Risen {
                run,
                upstream,
                cold_start,
            } => {
                if let Some(known) = self.runs.get_mut(&run) {
                    known.upstream = Some(upstream);
                    self.cold_start = Some(cold_start);
                }
                self.event(Event::Listening(run));
            }
            Message::Event(event) => self.event(event),
        }
    }

    fn workspace(&mut self, revision: RevisionId, plan: Result<Plan, FailReason>) {
        self.revision = Some(revision.clone());
        match plan {
            Err(reason) => self.event(Event::Unplannable(reason)),
            Ok(plan) => {
                // Hosts are the edge's business: a change of them alone needs no new sandbox.
                let same = self.plan.as_deref().is_some_and(|known| {
                    let hosts = known.hosts.clone();
                    *known == Plan { hosts, ..plan.clone() }
                });
                if !same {
                    self.shape += 1;
                }
                let wanted = Wanted {
                    revision,
                    shape: self.shape,
                    in_place: !plan.copy_source,
                    idle_freeze: plan.idle_freeze.unwrap_or(self.ground.config.idle_freeze),
                    idle_stop: plan.idle_stop.unwrap_or(self.ground.config.idle_stop),
                };
                self.plan = Some(Arc::new(plan));
                self.event(Event::Saved(wanted));
            }
        }
    }

    fn tick(&mut self) {
        // The warm path does not tell the machine of each request, so it is asked before the machine judges idleness.
        if let Front::Ready { live, .. } = self.state.front() {
            let (run, awake) = (live.run, matches!(live.rest, Rest::Awake { .. }));
            if let Some(upstream) = self.runs.get(&run).and_then(|run| run.upstream.clone()) {
                let at = self.now().saturating_sub(upstream.gate.unused_for());
                self.event(Event::Used(run, at));
                if awake && let Some(stats) = upstream.running.stats() {
                    self.event(Event::Worked(run, Duration::from_micros(stats.cpu_usec)));
                }
            }
        }
        self.event(Event::Tick);
    }

    fn event(&mut self, event: Event) {
        let now = self.now();
        if let Event::Stopped(run) = &event {
            self.runs.remove(run);
        }
        for action in self.state.apply(now, event) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Start(run, wanted) => self.start(run, &wanted),
            Action::Open(run) => {
                let upstream = self.runs.get(&run).and_then(|run| run.upstream.clone());
                *self.app.front.write() = upstream;
            }
            Action::Answer(run, waiters) => self.answer(run, waiters),
            Action::Refuse(waiters, refusal) => {
                for reply in waiters.iter().filter_map(|waiter| self.replies.remove(waiter)) {
                    // A waiter that gave up does not mind.
                    let _ = reply.send(Err(refused(&refusal)));
                }
            }
            Action::Drain(run) => {
                self.shut(run);
                self.watch_drain(run);
            }
            Action::Stop(run) => {
                self.shut(run);
                if let Some(stop) = self.runs.get_mut(&run).and_then(|run| run.stop.take()) {
                    // A life that has ended already has said so.
                    let _ = stop.send(());
                }
            }
            Action::Freeze(run) => self.freeze(run),
            Action::Reclaim(run, what) => {
                if let Some(upstream) = self.runs.get(&run).and_then(|run| run.upstream.clone()) {
                    self.ground.tasks.spawn_blocking(move || upstream.reclaim(what));
                }
            }
            Action::Note(kind, text) => self.note(kind, text),
            Action::Retire => self.retired = true,
        }
    }

    fn start(&mut self, run: RunId, wanted: &Wanted) {
        let (generation, id) = self.ground.next_sandbox(&self.app.name);
        // The machine starts only what was saved with a plan, and a name makes a valid id.
        let (Some(plan), Some(id)) = (self.plan.clone(), id) else {
            return;
        };
        self.starts += 1;
        let (stop, stopped) = oneshot::channel();
        let spec = self.ground.spec(id.clone(), &self.app.name, &wanted.revision, &plan);
        let life = Life {
            run,
            app: self.app.name.clone(),
            generation,
            revision: wanted.revision.clone(),
            order: Order {
                spec,
                image: plan.image.clone(),
            },
            plan,
            sandboxes: Arc::clone(&self.ground.sandboxes),
            source: self.ground.source.clone(),
            turns: self.ground.turns.clone(),
            driver: self.app.mailbox.clone(),
            grace: self.ground.config.stop_grace,
            log_dir: self.ground.log_dir(&self.app.name),
        };
        self.runs.insert(
            run,
            Run {
                stop: Some(stop),
                id: id.to_string(),
                upstream: None,
            },
        );
        self.ground.tasks.spawn(life.live(stopped));
        self.note(
            EventKind::Starting,
            format!("starting revision {} in sandbox {id}", wanted.revision.short()),
        );
    }

    fn answer(&mut self, run: RunId, waiters: Vec<WaiterId>) {
        let upstream = self.runs.get(&run).and_then(|run| run.upstream.clone());
        for waiter in waiters {
            let Some(reply) = self.replies.remove(&waiter) else {
                continue;
            };
            // The machine answers with a sandbox that serves, and only this task closes its gate.
            let lease = upstream.clone().and_then(Upstream::lease).ok_or(AcquireError::Stopping);
            // A waiter that gave up returns the lease by dropping it.
            let _ = reply.send(lease);
        }
    }

    /// Off this task: requests may thaw at the same time, and the driver hears in which order it went.
    fn freeze(&mut self, run: RunId) {
        match self.runs.get(&run).and_then(|run| run.upstream.clone()) {
            Some(upstream) => {
                self.ground.tasks.spawn_blocking(move || upstream.freeze());
            }
            None => self.event(Event::StayedAwake(run)),
        }
    }

    /// No request gets to this sandbox any more.
    fn shut(&mut self, run: RunId) {
        let Some(upstream) = self.runs.get(&run).and_then(|run| run.upstream.as_ref()) else {
            return;
        };
        upstream.gate.close();
        upstream.let_go();
        let mut front = self.app.front.write();
        if front
            .as_ref()
            .is_some_and(|serving| serving.generation == upstream.generation)
        {
            *front = None;
        }
    }

    fn watch_drain(&self, run: RunId) {
        let Some(upstream) = self.runs.get(&run).and_then(|run| run.upstream.clone()) else {
            return;
        };
        let mailbox = self.app.mailbox.clone();
        let limit = self.ground.config.drain_limit;
        self.ground.tasks.spawn(async move {
            // After the limit the machine stops it anyhow.
            if tokio::time::timeout(limit, upstream.gate.drained()).await.is_ok() {
                // A driver that is gone has stopped it.
                let _ = mailbox.send(Message::Event(Event::Drained(run)));
            }
        });
    }

    /// Tells the history, and the app's own log, so that whoever reads the log sees why it was restarted.
    fn note(&self, kind: EventKind, text: String) {
        if kind != EventKind::Saved {
            let line = LogLine::now(LogStream::Berth, LogPhase::App, text.clone());
            LogWriter::open(&self.ground.log_dir(&self.app.name)).write(&[line]);
        }
        self.ground
            .history
            .add(HostEvent::now(self.app.name.as_str(), kind, text));
    }

    fn publish(&mut self) {
        let phase = self.state.phase();
        if phase != self.phase.0 {
            self.phase = (phase, SystemTime::now());
        }
        let live = match self.state.front() {
            Front::Ready { live, .. } => Some(live),
            _ => None,
        };
        let retry_at = match self.state.front() {
            Front::Failed(setback) => {
                let wait = setback.until.saturating_sub(self.now());
                (!wait.is_zero()).then(|| (SystemTime::now() + wait).into())
            }
            _ => None,
        };
        let sandbox = live.and_then(|live| self.runs.get(&live.run)).map(|run| run.id.clone());
        let serving = live.map(|live| live.wanted.revision.clone());
        let leaving = self.state.is_leaving();
        let rising = self.state.rising().is_some();
        let yields = self.state.yields();
        self.app.status.send_modify(|status| {
            status.kind = self
                .plan
                .as_ref()
                .filter(|_| serving.is_some() || self.state.wanted().is_some())
                .map(|plan| plan.kind);
            status.state = phase;
            status.revision = self.revision.clone();
            status.serving = serving;
            status.port = self.plan.as_ref().map(|plan| plan.port);
            status.error = self.state.error().cloned();
            status.since = self.phase.1.into();
            status.retry_at = retry_at;
            status.starts = self.starts;
            status.cold_start = self.cold_start;
            status.sandbox = sandbox;
            status.rising = rising;
            status.leaving = leaving;
            status.yields = yields;
            status.known = self.revision.is_some();
        });
    }

    fn now(&self) -> Moment {
        self.origin.elapsed()
    }
}

fn refused(refusal: &Refusal) -> AcquireError {
    match refusal {
        Refusal::NoSuchApp => AcquireError::NoSuchApp,
        Refusal::Failed(reason, retry_after) => AcquireError::Failed {
            reason: reason.clone(),
            retry_after: *retry_after,
        },
        Refusal::Stopped => AcquireError::Stopping,
        Refusal::ShuttingDown => AcquireError::ShuttingDown,
    }
}
