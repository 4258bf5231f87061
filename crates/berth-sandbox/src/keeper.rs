//! The process that owns one sandbox from its birth to its last trace, and lives on when the daemon does not.
//!
//! One thread, one poll loop over: the init's pidfd, its report pipe, its two log pipes, `keeper.sock`, the connections, and the pidfds of
//! exec'd commands. It never blocks on a reader: a connection that does not take its message is closed, a log that cannot be written is
//! counted and dropped.
//!
//! ```text
//!  born ──(network, bundle, libcontainer)──▶ running ──(init ends)──▶ removing ──▶ tells Exited, ends
//!    └─ any failure: removes what there is, tells Failed, ends
//! ```

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_sys::{packet, process};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::birth::{During, Failure, Parts, born, make_folders};
use crate::cgroup::Cgroup;
use crate::exec;
use crate::lines::LineSplitter;
use crate::logs::{LogLine, LogPhase, LogStream, LogWriter};
use crate::protocol::{self, FromKeeper, Report, SpawnRequest, ToKeeper, monotonic_ns};
use crate::seccomp::Filter;
use crate::spec::{ExitInfo, Phase, SandboxEvent, SandboxSpec};

/// Lines told with a failed install.
const TAIL: usize = 20;
/// Bytes that a pipe holds.
const PIPE: usize = 64 << 10;
/// How long an ended sandbox waits for a daemon that wants to know how.
const COLLECT: Duration = Duration::from_secs(10);
/// How long its processes may take to vanish after SIGKILL.
const REMOVE: Duration = Duration::from_secs(10);

/// The life of a keeper: the body of a process that the spawner just forked.
pub(crate) fn run(request: SpawnRequest, control: OwnedFd, filter: Arc<Filter>) -> ! {
    let spec = Arc::new(request.spec);
    let refused = |failure: Failure| {
        let _ = protocol::send(
            &control,
            &FromKeeper::Failed {
                act: failure.act.to_owned(),
                reason: failure.reason,
            },
            &[],
        );
    };
    // A folder that is there already is another sandbox's: nothing of it may be removed.
    if let Err(failure) = make_folders(&spec.dir()).during("make its run folder") {
        refused(failure);
        process::exit_now(1);
    }
    let code = match born(&spec, &filter) {
        Err(failure) => {
            remove(&spec);
            refused(failure);
            1
        }
        Ok(parts) => {
            process::trim_heap();
            Keeper::new(spec, filter, parts, control, request.created_ns).live();
            0
        }
    };
    process::exit_now(code)
}

/// Removes every trace of the sandbox on the host. The network namespace goes with the keeper.
pub(crate) fn remove(spec: &SandboxSpec) {
    let left = Cgroup::new(&spec.instance, spec.id.as_str()).remove(REMOVE);
    if left.is_empty() {
        let _ = fs::remove_dir_all(spec.dir());
    }
}

/// One connection.
struct Connection {
    socket: OwnedFd,
    /// The exec'd command that it belongs to.
    command: Option<i32>,
    /// Gone; taken out at the end of the round, so that the round's indexes stay true.
    gone: bool,
}

/// One exec'd command.
struct Command {
    pid: i32,
    pidfd: OwnedFd,
}

struct Keeper {
    spec: Arc<SandboxSpec>,
    filter: Arc<Filter>,
    parts: Parts,
    connections: Vec<Connection>,
    commands: Vec<Command>,
    logs: LogWriter,
    out: LineSplitter,
    err: LineSplitter,
    reports: Vec<u8>,
    created_ns: u64,
    phase: Option<Phase>,
    logging: LogPhase,
    tail: VecDeque<String>,
    app_exit: Option<ExitInfo>,
    kill_at: Option<Instant>,
}

/// What a descriptor in the poll set stands for.
#[derive(Clone, Copy)]
enum Source {
    Init,
    Logs,
    Report,
    Listener,
    Connection(usize),
    Command(usize),
}

impl Keeper {
    fn new(spec: Arc<SandboxSpec>, filter: Arc<Filter>, parts: Parts, control: OwnedFd, created_ns: u64) -> Self {
        let logs = LogWriter::open(&spec.log_dir);
        let _ = packet::set_nonblocking(&control);
        let logging = first_phase(&spec);
        let mut keeper = Self {
            spec,
            filter,
            parts,
            connections: Vec::new(),
            commands: Vec::new(),
            logs,
            out: LineSplitter::default(),
            err: LineSplitter::default(),
            reports: Vec::new(),
            created_ns,
            phase: None,
            logging,
            tail: VecDeque::with_capacity(TAIL),
            app_exit: None,
            kill_at: None,
        };
        keeper.welcome(control);
        keeper
    }

    fn live(mut self) {
        while !self.turn() {}
        let exit = self.bury();
        remove(&self.spec);
        self.tell(&FromKeeper::Event(SandboxEvent::Exited(exit)));
        self.sweep();
        if self.connections.is_empty() {
            self.wait_for_collector(exit);
        }
    }

    /// One round of the loop. True when the init has ended.
    fn turn(&mut self) -> bool {
        let ready = self.wait();
        let mut ended = false;
        for source in ready {
            match source {
                Source::Init => ended = true,
                Source::Logs => {
                    self.drain_logs();
                }
                Source::Report => self.hear_init(),
                Source::Listener => self.welcome_next(),
                Source::Connection(index) => self.connections[index].gone |= !self.serve(index),
                Source::Command(index) => self.command_ended(index),
            }
        }
        self.sweep();
        if self.kill_at.is_some_and(|at| at <= Instant::now()) {
            self.kill_at = None;
            let _ = process::pidfd_signal(self.parts.init.as_fd(), libc::SIGKILL);
        }
        ended
    }

    fn wait(&self) -> Vec<Source> {
        let fixed: [(BorrowedFd<'_>, Source); 5] = [
            (self.parts.stdout.as_fd(), Source::Logs),
            (self.parts.stderr.as_fd(), Source::Logs),
            (self.parts.report.as_fd(), Source::Report),
            (self.parts.init.as_fd(), Source::Init),
            (self.parts.listener.as_fd(), Source::Listener),
        ];
        let connections = self
            .connections
            .iter()
            .enumerate()
            .map(|(i, c)| (c.socket.as_fd(), Source::Connection(i)));
        let commands = self
            .commands
            .iter()
            .enumerate()
            .map(|(i, c)| (c.pidfd.as_fd(), Source::Command(i)));
        let all: Vec<_> = fixed.into_iter().chain(connections).chain(commands).collect();
        let mut fds: Vec<PollFd<'_>> = all.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let timeout = match self.kill_at {
            None => PollTimeout::NONE,
            Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
        };
        if poll(&mut fds, timeout).is_err() {
            return Vec::new();
        }
        let ready = |fd: &PollFd<'_>| {
            fd.revents()
                .is_some_and(|r| r.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR))
        };
        fds.iter()
            .zip(&all)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, (_, source))| *source)
            .collect()
    }

    /// Takes in what the app wrote, as far as it is there. False when it was nothing.
    fn drain_logs(&mut self) -> bool {
        let mut lines = Vec::new();
        let (out, some_out) = take(&self.parts.stdout, &mut self.out);
        lines.extend(
            out.into_iter()
                .map(|text| LogLine::now(LogStream::Stdout, self.logging, text)),
        );
        let (err, some_err) = take(&self.parts.stderr, &mut self.err);
        lines.extend(
            err.into_iter()
                .map(|text| LogLine::now(LogStream::Stderr, self.logging, text)),
        );
        self.log(&lines);
        some_out || some_err
    }

    fn log(&mut self, lines: &[LogLine]) {
        if self.logging != LogPhase::App {
            for line in lines {
                if self.tail.len() == TAIL {
                    self.tail.pop_front();
                }
                self.tail.push_back(line.text.clone());
            }
        }
        self.logs.write(lines);
    }

    fn say(&mut self, text: String) {
        let line = LogLine::now(LogStream::Berth, self.logging, text);
        self.log(&[line]);
    }

    /// Takes in the init's reports; what the app wrote before one is logged before it counts.
    fn hear_init(&mut self) {
        let mut chunk = [0; 4096];
        while let Ok(n @ 1..) = nix::unistd::read(&self.parts.report, &mut chunk) {
            self.reports.extend_from_slice(&chunk[..n]);
        }
        while let Some(end) = self.reports.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.reports.drain(..=end).collect();
            self.drain_logs();
            if let Ok(report) = serde_json::from_slice(&line) {
                self.reported(report);
            }
        }
    }

    fn reported(&mut self, report: Report) {
        match report {
            Report::Logging(phase) => {
                self.logging = phase;
                if phase == LogPhase::App {
                    self.tail = VecDeque::new();
                }
            }
            Report::Phase(phase) => {
                self.phase = Some(phase);
                let at_ms = monotonic_ns().saturating_sub(self.created_ns) as f64 / 1e6;
                self.tell(&FromKeeper::Event(SandboxEvent::Phase { phase, at_ms }));
            }
            Report::StepFailed { step, mut exit, detail } => {
                self.finish_lines();
                exit.oom = self.oom(exit);
                self.say(format!("{step} failed: {}", detail.unwrap_or_else(|| exit.to_string())));
                let tail = std::mem::take(&mut self.tail).into();
                self.app_exit = Some(exit);
                self.tell(&FromKeeper::Event(SandboxEvent::InstallFailed { step, exit, tail }));
            }
            Report::AppExited(exit) => self.app_exit = Some(exit),
            Report::Fatal { reason } => {
                self.say(format!("the sandbox cannot run: {reason}"));
                self.app_exit = Some(ExitInfo {
                    code: Some(125),
                    ..ExitInfo::default()
                });
            }
        }
    }

    fn oom(&self, exit: ExitInfo) -> bool {
        !exit.success() && Cgroup::new(&self.spec.instance, self.spec.id.as_str()).oom_kills() > 0
    }

    fn welcome_next(&mut self) {
        if let Ok(Some(socket)) = packet::accept(self.parts.listener.as_fd()) {
            self.welcome(socket);
        }
    }

    fn welcome(&mut self, socket: OwnedFd) {
        let hello = FromKeeper::Hello {
            keeper_pid: i32::try_from(std::process::id()).unwrap_or(0),
            init_pid: self.parts.init_pid,
            phase: self.phase,
        };
        if protocol::send(&socket, &hello, &[]).is_ok() {
            self.connections.push(Connection {
                socket,
                command: None,
                gone: false,
            });
        }
    }

    /// Does what a connection asks for. False when it is gone.
    fn serve(&mut self, index: usize) -> bool {
        let message = match protocol::receive::<ToKeeper>(&self.connections[index].socket) {
            Ok(Some((message, _))) => message,
            Ok(None) => return false,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        match message {
            ToKeeper::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms)),
            ToKeeper::Signal { signal } => {
                let _ = process::pidfd_signal(self.parts.init.as_fd(), signal);
            }
            ToKeeper::Exec(request) => return self.exec(index, &request),
            ToKeeper::ExecSignal { signal } => {
                if let Some(pid) = self.connections[index].command {
                    signal_group(pid, signal);
                }
            }
        }
        true
    }

    fn stop(&mut self, grace: Duration) {
        // A frozen process takes no signal, not even SIGKILL on v1.
        let _ = Cgroup::new(&self.spec.instance, self.spec.id.as_str()).set_frozen(false);
        let at = Instant::now() + grace;
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
        if !grace.is_zero() {
            let _ = process::pidfd_signal(self.parts.init.as_fd(), libc::SIGTERM);
        }
    }

    fn exec(&mut self, index: usize, request: &crate::spec::ExecRequest) -> bool {
        let target = exec::Target {
            spec: &self.spec,
            init: self.parts.init.as_fd(),
            filter: &self.filter,
        };
        let answer = match exec::start(&target, request) {
            Ok(started) => {
                let fds: Vec<BorrowedFd<'_>> = started.fds.iter().map(AsFd::as_fd).collect();
                let told = protocol::send(
                    &self.connections[index].socket,
                    &FromKeeper::ExecStarted { pid: started.pid },
                    &fds,
                );
                self.connections[index].command = Some(started.pid);
                self.commands.push(Command {
                    pid: started.pid,
                    pidfd: started.pidfd,
                });
                told
            }
            Err(reason) => protocol::send(&self.connections[index].socket, &FromKeeper::ExecFailed { reason }, &[]),
        };
        process::trim_heap();
        answer.is_ok()
    }

    /// Takes out what has gone. A command whose connection is gone is told so, like one whose terminal was closed.
    fn sweep(&mut self) {
        for pid in self.connections.iter().filter(|c| c.gone).filter_map(|c| c.command) {
            signal_group(pid, libc::SIGHUP);
        }
        self.connections.retain(|c| !c.gone);
        self.commands.retain(|c| c.pid != 0);
    }

    fn command_ended(&mut self, index: usize) {
        let pid = self.commands[index].pid;
        let exit = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) => exit_of(status),
            Err(_) => ExitInfo::default(),
        };
        // 0: taken out at the end of the round, so that the indexes of this round stay true.
        self.commands[index].pid = 0;
        for connection in &mut self.connections {
            if connection.command == Some(pid) {
                connection.command = None;
                let _ = protocol::send(&connection.socket, &FromKeeper::ExecExited(exit), &[]);
            }
        }
    }

    /// Sends to every connection; one that does not take it is closed.
    fn tell(&mut self, message: &FromKeeper) {
        for connection in self.connections.iter_mut().filter(|c| c.command.is_none()) {
            connection.gone |= protocol::send(&connection.socket, message, &[]).is_err();
        }
    }

    fn finish_lines(&mut self) {
        while self.drain_logs() {}
        let rest = [
            (LogStream::Stdout, self.out.finish()),
            (LogStream::Stderr, self.err.finish()),
        ];
        let lines: Vec<LogLine> = rest
            .into_iter()
            .filter_map(|(stream, text)| Some(LogLine::now(stream, self.logging, text?)))
            .collect();
        self.log(&lines);
    }

    /// The init has ended: everything it and the app still said, and how it ended.
    fn bury(&mut self) -> ExitInfo {
        self.hear_init();
        self.finish_lines();
        let status = waitpid(Pid::from_raw(self.parts.init_pid), None)
            .map(exit_of)
            .unwrap_or_default();
        for index in 0..self.commands.len() {
            self.command_ended(index);
        }
        let mut exit = self.app_exit.unwrap_or(status);
        exit.oom = exit.oom || self.oom(exit);
        if !exit.success() {
            self.say(format!("ended: {exit}"));
        }
        exit
    }

    /// Nobody listens: a daemon that starts just now may still want to know.
    fn wait_for_collector(&mut self, exit: ExitInfo) {
        let until = Instant::now() + COLLECT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.parts.listener.as_fd(), PollFlags::POLLIN)];
            if left.is_zero()
                || !matches!(
                    poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)),
                    Ok(1..)
                )
            {
                return;
            }
            self.welcome_next();
            self.tell(&FromKeeper::Event(SandboxEvent::Exited(exit)));
            self.sweep();
            if !self.connections.is_empty() {
                return;
            }
        }
    }
}

fn signal_group(pid: i32, signal: i32) {
    if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
        let _ = nix::sys::signal::killpg(Pid::from_raw(pid), signal);
    }
}

fn exit_of(status: WaitStatus) -> ExitInfo {
    match status {
        WaitStatus::Exited(_, code) => ExitInfo {
            code: Some(code),
            ..ExitInfo::default()
        },
        WaitStatus::Signaled(_, signal, _) => ExitInfo {
            signal: Some(signal as i32),
            ..ExitInfo::default()
        },
        _ => ExitInfo::default(),
    }
}

/// What the first lines belong to. A short step may have ended before its first report is heard: its lines must not be
/// taken for the app's until then.
fn first_phase(spec: &SandboxSpec) -> LogPhase {
    if spec.copy_source {
        LogPhase::Copy
    } else if spec.install.is_empty() {
        LogPhase::App
    } else {
        LogPhase::Install
    }
}

/// Reads a pipe as far as there is something, at most as much as a pipe holds: a flood from one app must not keep its keeper from its
/// commands. Also tells whether there was anything.
fn take(pipe: &OwnedFd, splitter: &mut LineSplitter) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut chunk = [0; PIPE / 4];
    for round in 0..4 {
        match nix::unistd::read(pipe, &mut chunk) {
            // The end comes only with the init's, which holds a write end all its life.
            Ok(0) | Err(_) => return (lines, round > 0),
            Ok(n) => lines.extend(splitter.push(&chunk[..n])),
        }
    }
    (lines, true)
}
