//! Pid 1 of a sandbox: copies the source, installs, starts the app, reaps, and ends with it.
//!
//! libcontainer calls [`Init::exec`] where it would otherwise execve, in the finished container: namespaces entered, root pivoted, uid
//! 1000, no capabilities. There is no execve here; the init is this code in a forked copy of the keeper, so nothing has to be bind-mounted
//! into the sandbox and a start saves an exec. That makes three things this module's duty, in this order: close every descriptor of the
//! keeper, become undumpable (`/proc/1/mem` must not show the keeper's memory), load the system call filter or end.
//!
//! Everything the init hears is a signal (all blocked, taken one by one), everything it says goes down the report pipe. If the keeper
//! dies, the kernel kills the init, and with it the whole pid namespace.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use berth_sys::process::{self, Fork};
use berth_workspace::{Excludes, Step};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, setsid};

use crate::command::{Prepared, base_environment};
use crate::copy::Copy;
use crate::logs::LogPhase;
use crate::protocol::Report;
use crate::seccomp::Filter;
use crate::spec::{APP_HOME, ExitInfo, Phase, SandboxSpec};

/// Exit code of an init that could not do its work.
const BROKEN: i32 = 125;

/// The executor given to libcontainer.
#[derive(Clone)]
pub(crate) struct Init {
    pub spec: Arc<SandboxSpec>,
    pub filter: Arc<Filter>,
    pub report: Arc<OwnedFd>,
}

impl Executor for Init {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let code = Running {
            init: self,
            stopping: false,
            signals: handled(),
        }
        .run();
        process::exit_now(code)
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }

    /// The keeper's environment is empty already, and each command gets its own.
    fn setup_envs(&self, _: std::collections::HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}

fn handled() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGQUIT,
    ] {
        set.add(signal);
    }
    set
}

struct Running<'a> {
    init: &'a Init,
    /// Asked to end: no further step is begun.
    stopping: bool,
    signals: SigSet,
}

impl Running<'_> {
    fn run(mut self) -> i32 {
        if let Err(reason) = self.confine() {
            self.report(&Report::Fatal { reason });
            return BROKEN;
        }
        let code = self.live();
        // Whatever the app left behind ends with it.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        while waitpid(None, None).is_ok() {}
        code
    }

    /// Shuts the doors to the keeper, in the order that the module's head gives.
    fn confine(&self) -> Result<(), String> {
        let says = |what: &'static str| move |error| format!("{what}: {error}");
        process::close_all_but(&[self.init.report.as_raw_fd()]).map_err(says("close descriptors"))?;
        process::set_dumpable(false).map_err(says("become undumpable"))?;
        process::set_parent_death_signal(libc::SIGKILL).map_err(says("tie the init to its keeper"))?;
        process::set_name(c"berth-init");
        self.signals.thread_block().map_err(|e| format!("block signals: {e}"))?;
        self.init
            .filter
            .load()
            .map_err(|e| format!("load the system call filter: {e}"))?;
        fs::create_dir_all(APP_HOME).map_err(|e| format!("make {APP_HOME}: {e}"))
    }

    fn live(&mut self) -> i32 {
        let spec = Arc::clone(&self.init.spec);
        self.report(&Report::Phase(Phase::Created));
        if spec.copy_source {
            self.report(&Report::Logging(LogPhase::Copy));
            if let Err(detail) = copy(&spec) {
                self.report(&Report::StepFailed {
                    step: "copy".to_owned(),
                    exit: ExitInfo {
                        code: Some(1),
                        ..ExitInfo::default()
                    },
                    detail: Some(detail),
                });
                return 1;
            }
        }
        self.report(&Report::Phase(Phase::Copied));
        if !spec.install.is_empty() {
            self.report(&Report::Logging(LogPhase::Install));
        }
        for (index, step) in spec.install.iter().enumerate() {
            if self.stop_asked() {
                return 0;
            }
            let exit = self.command(step, &spec.install_env);
            if self.stopping {
                return 0;
            }
            if !exit.success() {
                self.report(&Report::StepFailed {
                    step: step.what.clone(),
                    exit,
                    detail: None,
                });
                return 1;
            }
            self.report(&Report::Phase(Phase::Installed(index)));
        }
        self.report(&Report::Logging(LogPhase::App));
        if self.stop_asked() {
            return 0;
        }
        match &spec.start {
            Some(start) => self.app(start),
            None => self.idle(),
        }
    }

    fn app(&mut self, start: &Step) -> i32 {
        let exit = match self.spawn(start, &self.init.spec.env) {
            Ok(pid) => {
                self.report(&Report::Phase(Phase::AppStarted));
                self.wait_for(Some(pid))
            }
            Err(reason) => return self.fatal(reason),
        };
        self.report(&Report::AppExited(exit));
        exit.shell_code()
    }

    fn idle(&mut self) -> i32 {
        self.report(&Report::Phase(Phase::AppStarted));
        self.wait_for(None);
        self.report(&Report::AppExited(ExitInfo {
            code: Some(0),
            ..ExitInfo::default()
        }));
        0
    }

    /// Runs one install step to its end.
    fn command(&mut self, step: &Step, env: &BTreeMap<String, String>) -> ExitInfo {
        match self.spawn(step, env) {
            Ok(pid) => self.wait_for(Some(pid)),
            Err(reason) => {
                let _ = writeln!(std::io::stderr(), "berth: {reason}");
                ExitInfo {
                    code: Some(BROKEN),
                    ..ExitInfo::default()
                }
            }
        }
    }

    fn spawn(&self, step: &Step, env: &BTreeMap<String, String>) -> Result<Pid, String> {
        let spec = &self.init.spec;
        let base = base_environment(spec.app.as_str(), spec.cwd());
        let ready = Prepared::new(&step.argv, &[&base, env, &step.env])?;
        match process::fork().map_err(|e| format!("cannot start {}: {e}", step.what))? {
            Fork::Parent(pid) => Ok(Pid::from_raw(pid)),
            Fork::Child => {
                // A session of its own: signals go to all of the command's processes, and none of them has a terminal.
                let _ = setsid();
                process::reset_signals();
                let (code, reason) = match chdir(spec.cwd()) {
                    Ok(()) => {
                        let _ = process::close_all_but(&[]);
                        ready.exec()
                    }
                    Err(error) => (BROKEN, format!("cannot enter {}: {error}", spec.cwd())),
                };
                let _ = writeln!(std::io::stderr(), "berth: {reason}");
                process::exit_now(code)
            }
        }
    }

    /// Reaps everything until `target` ends; without one, until asked to end. Passes signals on meanwhile.
    fn wait_for(&mut self, target: Option<Pid>) -> ExitInfo {
        loop {
            let Ok(signal) = self.signals.wait() else { continue };
            if signal == Signal::SIGCHLD {
                if let Some(exit) = reap(target) {
                    return exit;
                }
                continue;
            }
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
                self.stopping = true;
            }
            match target {
                // A child that was forked a moment ago has no group yet; it takes the signal when it unblocks it.
                Some(pid) if killpg(pid, signal).is_err() => {
                    let _ = kill(pid, signal);
                }
                Some(_) => {}
                None if self.stopping => return ExitInfo::default(),
                None => {}
            }
        }
    }

    /// Looks for a request to end that came between two steps.
    fn stop_asked(&mut self) -> bool {
        self.stopping = self.stopping || pending_stop();
        self.stopping
    }

    fn report(&self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            // EPIPE: the keeper died before the init could tie itself to it, and nobody will ever end this sandbox.
            if nix::unistd::write(&*self.init.report, &line).is_err() {
                process::exit_now(BROKEN);
            }
        }
    }

    fn fatal(&self, reason: String) -> i32 {
        self.report(&Report::Fatal { reason });
        BROKEN
    }
}

/// Whether SIGTERM, SIGINT or SIGQUIT waits to be taken, by the kernel's own account.
fn pending_stop() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let masks = status
        .lines()
        .filter_map(|l| l.strip_prefix("ShdPnd:").or_else(|| l.strip_prefix("SigPnd:")));
    let pending = masks
        .filter_map(|m| u64::from_str_radix(m.trim(), 16).ok())
        .fold(0, |a, b| a | b);
    [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT]
        .iter()
        .any(|signal| pending & (1 << (signal - 1)) != 0)
}

/// Takes in every ended child; the end of `target` if it was among them.
fn reap(target: Option<Pid>) -> Option<ExitInfo> {
    let mut ended = None;
    loop {
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (
                pid,
                ExitInfo {
                    code: Some(code),
                    ..ExitInfo::default()
                },
            ),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (
                pid,
                ExitInfo {
                    signal: Some(signal as i32),
                    ..ExitInfo::default()
                },
            ),
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => continue,
        };
        if Some(pid) == target {
            ended = Some(exit);
        }
    }
}

fn copy(spec: &SandboxSpec) -> Result<(), String> {
    let own;
    let excludes = if spec.copy_excludes.is_empty() {
        Excludes::standard()
    } else {
        own = Excludes::new(&spec.copy_excludes).map_err(|e| e.to_string())?;
        &own
    };
    let copy = Copy {
        from: Path::new("/workspace"),
        to: Path::new("/app"),
        excludes,
        app: spec.app.as_str(),
    };
    copy.run().map(drop).map_err(|e| e.to_string())
}
