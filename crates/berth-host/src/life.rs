//! One sandbox from its order to its removal: a task of its own, which does what takes time so that the driver never waits.
//!
//! It waits for its turn, has the sandbox made, follows its phases, probes it when its start command runs, and tells the
//! driver what came of it. It ends when the driver says stop and the sandbox is removed; that is its last word.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_sandbox::logs::{self, LogStream};
use berth_sandbox::{ExitInfo, Phase, SandboxEvent};
use berth_workspace::{AppName, Plan, RevisionId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use crate::driver::Message;
use crate::failure::{FailKind, FailReason};
use crate::freezing::Freezer;
use crate::gate::Upstream;
use crate::machine::{Climb, Event, RunId};
use crate::probe::{self, Question};
use crate::sandboxes::{Made, Order, Running, Sandboxes};
use crate::snapshot::ColdStart;
use crate::source::Source;

/// A start that takes longer than this gives its turn to others: it is waiting for something, not computing.
const TURN: Duration = Duration::from_secs(5);
/// Lines of output shown with a failure.
const TAIL: usize = 20;

/// Turns, so that many apps woken at once do not all start at once. Installs have their own, since they may take minutes and
/// must not hold up an app that starts in a blink.
#[derive(Clone)]
pub(crate) struct Turns {
    installs: Arc<Semaphore>,
    starts: Arc<Semaphore>,
}

impl Turns {
    pub(crate) fn new(installs: usize, starts: usize) -> Self {
        Self {
            installs: Arc::new(Semaphore::new(installs.max(1))),
            starts: Arc::new(Semaphore::new(starts.max(1))),
        }
    }

    async fn take(&self, plan: &Plan) -> Option<OwnedSemaphorePermit> {
        let line = if plan.install.is_empty() {
            &self.starts
        } else {
            &self.installs
        };
        // The semaphores are never closed; without a permit the start just goes on.
        Arc::clone(line).acquire_owned().await.ok()
    }
}

/// All that one life needs.
pub(crate) struct Life {
    pub(crate) run: RunId,
    pub(crate) app: AppName,
    pub(crate) generation: u64,
    pub(crate) revision: RevisionId,
    pub(crate) plan: Arc<Plan>,
    pub(crate) order: Order,
    pub(crate) sandboxes: Arc<dyn Sandboxes>,
    pub(crate) source: Source,
    pub(crate) turns: Turns,
    pub(crate) driver: mpsc::UnboundedSender<Message>,
    pub(crate) grace: Duration,
    pub(crate) log_dir: PathBuf,
}

impl Life {
    /// Lives until `stop` says so (or the driver is gone).
    pub(crate) async fn live(self, mut stop: oneshot::Receiver<()>) {
        let begun = Instant::now();
        let permit = tokio::select! {
            permit = self.turns.take(&self.plan) => permit,
            _ = &mut stop => return self.event(Event::Stopped(self.run)),
        };
        let mut line = ColdStart {
            queue_ms: ms(begun.elapsed()),
            ..ColdStart::default()
        };
        self.climbed(Climb::Creating);
        let asked = Instant::now();
        self.source.ready().await;
        let made = match self.sandboxes.create(self.order.clone()).await {
            Ok(made) => made,
            Err(reason) => {
                self.event(Event::Broke(self.run, reason));
                drop(permit);
                let _ = stop.await;
                return self.event(Event::Stopped(self.run));
            }
        };
        line.network_ms = ms(made.prepared);
        line.create_ms = ms(asked.elapsed().saturating_sub(made.prepared));
        let running = Arc::clone(&made.running);
        if stop.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            self.climb_and_serve(made, permit, line, begun, &mut stop).await;
        }
        if let Err(error) = running.stop(self.grace).await {
            tracing::warn!(app = %self.app, sandbox = %self.order.spec.id, "stopping: {}", berth_workspace::chain(&error));
        }
        self.event(Event::Stopped(self.run));
    }

    /// From a sandbox that was made to the order to stop it.
    async fn climb_and_serve(
        &self,
        made: Made,
        permit: Option<OwnedSemaphorePermit>,
        mut line: ColdStart,
        begun: Instant,
        stop: &mut oneshot::Receiver<()>,
    ) {
        let Made {
            running, mut events, ..
        } = made;
        if self.plan.copy_source {
            self.climbed(Climb::Copying);
        } else if !self.plan.install.is_empty() {
            self.climbed(Climb::Installing);
        }
        let mut permit = permit;
        let mut at = 0.0;
        let mut stage = Stage::Climbing;
        loop {
            let launched = matches!(stage, Stage::Starting(_));
            tokio::select! {
                biased;
                _ = &mut *stop => return,
                event = events.recv() => match event {
                    Some(SandboxEvent::Phase { phase, at_ms }) => {
                        clock(&mut line, phase, (at_ms - at).max(0.0));
                        at = at_ms;
                        match phase {
                            Phase::Copied if !self.plan.install.is_empty() => self.climbed(Climb::Installing),
                            Phase::AppStarted => {
                                self.climbed(Climb::Starting);
                                stage = Stage::Starting(Instant::now());
                            }
                            _ => {}
                        }
                    }
                    Some(SandboxEvent::InstallFailed { step, exit, tail }) => {
                        return self.broken(install_failed(&step, exit, &tail), stop).await;
                    }
                    Some(SandboxEvent::Exited(exit)) => {
                        let reason = self.ended(exit, &stage).await;
                        return self.broken(reason, stop).await;
                    }
                    None => {
                        let reason = FailReason::new(FailKind::Sandbox, "the sandbox's keeper ended without a word");
                        return self.broken(reason, stop).await;
                    }
                },
                addr = self.ready(&*running), if launched => {
                    if let Stage::Starting(since) = stage {
                        line.ready_ms = ms(since.elapsed());
                    }
                    line.total_ms = ms(begun.elapsed());
                    stage = Stage::Serving;
                    permit = None;
                    let upstream = Upstream::new(
                        self.app.clone(), self.generation, self.revision.clone(), addr, Arc::clone(&running),
                        Freezer::new(self.run, self.driver.clone()),
                    );
                    self.say(Message::Risen { run: self.run, upstream: Arc::new(upstream), cold_start: line });
                }
                () = sleep(TURN), if launched && permit.is_some() => permit = None,
            }
        }
    }

    /// Reports a failure, then waits for the order to stop, which the machine owes for every sandbox it started.
    async fn broken(&self, reason: FailReason, stop: &mut oneshot::Receiver<()>) {
        self.event(Event::Broke(self.run, reason));
        let _ = stop.await;
    }

    async fn ready(&self, running: &dyn Running) -> std::net::SocketAddr {
        let question = Question {
            port: self.plan.port,
            health: self.plan.health.as_deref(),
            host: self.app.as_str(),
        };
        probe::until_ready(running, &question, || self.climbed(Climb::Unhealthy)).await
    }

    async fn ended(&self, exit: ExitInfo, stage: &Stage) -> FailReason {
        let dir = self.log_dir.clone();
        let tail = tokio::task::spawn_blocking(move || logs::read_tail(&dir, TAIL)).await;
        let tail: Vec<String> = match tail {
            Ok(Ok(lines)) => lines
                .into_iter()
                .filter(|line| line.stream != LogStream::Berth)
                .map(|line| line.text)
                .collect(),
            // The reason stands without the tail too.
            _ => Vec::new(),
        };
        let what = &self.plan.start.what;
        let (kind, head) = match stage {
            _ if exit.oom => (
                FailKind::OutOfMemory,
                format!("`{what}` ran out of memory; raise limits.memory in workspace.json"),
            ),
            Stage::Serving => (FailKind::Crashed, format!("`{what}` ended with {exit}")),
            Stage::Climbing => (
                FailKind::Sandbox,
                format!("the sandbox ended with {exit} before `{what}` was started"),
            ),
            Stage::Starting(_) => (
                FailKind::ExitedEarly,
                format!("`{what}` ended with {exit} before it listened on a port"),
            ),
        };
        FailReason::new(kind, with_tail(head, &tail))
    }

    fn climbed(&self, climb: Climb) {
        self.event(Event::Climbed(self.run, climb));
    }

    fn event(&self, event: Event) {
        self.say(Message::Event(event));
    }

    fn say(&self, message: Message) {
        // A driver that is gone needs no report.
        let _ = self.driver.send(message);
    }
}

/// Enters how long it took to reach `phase` from the one before.
fn clock(line: &mut ColdStart, phase: Phase, took: f64) {
    match phase {
        // Making it is measured by whoever ordered it.
        Phase::Created => {}
        Phase::Copied => line.copy_ms = Some(took),
        Phase::Installed(_) => *line.install_ms.get_or_insert(0.0) += took,
        Phase::AppStarted => line.launch_ms = took,
    }
}

/// How far a life has come, for the words of its end.
enum Stage {
    Climbing,
    Starting(Instant),
    Serving,
}

pub(crate) fn install_failed(step: &str, exit: ExitInfo, tail: &[String]) -> FailReason {
    let head = format!("`{step}` failed with {exit}");
    let kind = if exit.oom {
        FailKind::OutOfMemory
    } else {
        FailKind::InstallFailed
    };
    FailReason::new(kind, with_tail(head, tail))
}

fn with_tail(mut head: String, tail: &[String]) -> String {
    for line in tail {
        head.push('\n');
        head.push_str(line);
    }
    head
}

fn ms(of: Duration) -> f64 {
    of.as_secs_f64() * 1000.0
}
