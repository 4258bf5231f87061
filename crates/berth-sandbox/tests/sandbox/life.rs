//! From birth to the last trace.

use std::ffi::OsStr;
use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_sandbox::logs::{self, LogPhase, LogStream};
use berth_sandbox::{
    ExecRequest, ExitInfo, Phase, Sandbox, SandboxError, SandboxEvent, SandboxSpec, Spawner, clean_leftovers, running,
};
use futures::StreamExt;

use crate::world::{World, all, eventually, step, text};

fn code(code: i32) -> ExitInfo {
    ExitInfo {
        code: Some(code),
        ..ExitInfo::default()
    }
}

pub async fn an_app_runs_and_its_exit_code_is_told(world: Arc<World>) {
    let spec = world.spec("echo out; echo err >&2; printf unfinished; exit 7");
    let log_dir = spec.log_dir.clone();
    let dir = spec.dir();
    let (sandbox, events) = world.start(spec).await;
    let events = all(events).await;
    assert!(
        matches!(events[0], SandboxEvent::Phase { phase: Phase::Created, at_ms } if at_ms > 0.0 && at_ms < 5000.0),
        "{events:?}"
    );
    assert!(
        matches!(
            events[1],
            SandboxEvent::Phase {
                phase: Phase::Copied,
                ..
            }
        ),
        "{events:?}"
    );
    assert!(
        matches!(
            events[2],
            SandboxEvent::Phase {
                phase: Phase::AppStarted,
                ..
            }
        ),
        "{events:?}"
    );
    assert_eq!(events[3], SandboxEvent::Exited(code(7)));
    assert_eq!(events.len(), 4);
    let lines = logs::read_tail(&log_dir, 10).unwrap();
    let find = |text: &str| {
        lines
            .iter()
            .find(|l| l.text == text)
            .unwrap_or_else(|| panic!("no `{text}` in {lines:?}"))
    };
    assert_eq!(find("out").stream, LogStream::Stdout);
    assert_eq!(find("err").stream, LogStream::Stderr);
    assert_eq!(find("unfinished").phase, LogPhase::App);
    assert_eq!(find("ended: exit code 7").stream, LogStream::Berth);
    assert!(!dir.exists());
    assert_eq!(
        sandbox.stop(Duration::ZERO).await.unwrap(),
        code(7),
        "stopping what has ended says how it ended"
    );
}

pub async fn the_source_is_copied_and_install_steps_run_first(world: Arc<World>) {
    let mut spec = world.spec("cat hello.txt installed; sub/run.sh; echo $GREETING; pwd; echo $HOME; id -u");
    let mut second = step("echo two-$EXTRA >> installed");
    second.env.insert("EXTRA".to_owned(), "step".to_owned());
    spec.install = vec![step("echo installing; echo $WHERE > installed"), second];
    spec.install_env.insert("WHERE".to_owned(), "everywhere".to_owned());
    let log_dir = spec.log_dir.clone();
    let (_sandbox, events) = world.start(spec).await;
    let events = all(events).await;
    let phases: Vec<Phase> = events
        .iter()
        .filter_map(|e| {
            if let SandboxEvent::Phase { phase, .. } = e {
                Some(*phase)
            } else {
                None
            }
        })
        .collect();
    assert_eq!(
        phases,
        [
            Phase::Created,
            Phase::Copied,
            Phase::Installed(0),
            Phase::Installed(1),
            Phase::AppStarted
        ]
    );
    assert_eq!(events.last(), Some(&SandboxEvent::Exited(code(0))));
    assert_eq!(
        text(&log_dir),
        "installing\nhello\neverywhere\ntwo-step\nran\ngood day\n/app\n/tmp/home\n1000\n"
    );
    let lines = logs::read_tail(&log_dir, 100).unwrap();
    assert_eq!(
        lines.iter().find(|l| l.text == "installing").unwrap().phase,
        LogPhase::Install
    );
    assert_eq!(lines.iter().find(|l| l.text == "hello").unwrap().phase, LogPhase::App);
}

pub async fn a_failed_install_tells_its_last_lines(world: Arc<World>) {
    let mut spec = world.spec("echo never");
    spec.install = vec![step(
        "for i in $(seq 50); do echo line $i; done; echo broken >&2; exit 3",
    )];
    spec.install[0].what = "npm ci".to_owned();
    let log_dir = spec.log_dir.clone();
    let (_sandbox, events) = world.start(spec).await;
    let events = all(events).await;
    let SandboxEvent::InstallFailed { step, exit, tail } = &events[2] else {
        panic!("{events:?}")
    };
    assert_eq!((step.as_str(), *exit, tail.len()), ("npm ci", code(3), 20));
    assert!(
        tail.contains(&"line 50".to_owned()) && tail.contains(&"broken".to_owned()),
        "{tail:?}"
    );
    assert!(!text(&log_dir).contains("never"));
    assert!(matches!(events.last(), Some(SandboxEvent::Exited(exit)) if !exit.success()));
}

pub async fn a_command_that_is_not_there_is_named(world: Arc<World>) {
    let mut spec = world.spec("");
    spec.start.as_mut().unwrap().argv = vec!["gunicorn".to_owned()];
    let (exit, text) = world.run_spec(spec).await;
    assert_eq!(exit, code(127));
    assert!(text.contains("command not found: gunicorn"), "{text}");
}

pub async fn a_stop_lets_the_app_end_by_itself(world: Arc<World>) {
    let spec = world.spec("trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done");
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    eventually("the app is ready", || text(&log_dir).contains("ready")).await;
    assert_eq!(sandbox.stop(Duration::from_secs(10)).await.unwrap(), code(5));
    assert!(text(&log_dir).contains("bye"));
    assert_eq!(sandbox.stop(Duration::from_secs(10)).await.unwrap(), code(5));
}

pub async fn an_app_that_ignores_the_stop_is_killed_after_the_grace(world: Arc<World>) {
    let spec = world.spec("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    eventually("the app is ready", || text(&log_dir).contains("ready")).await;
    let asked = Instant::now();
    let exit = sandbox.stop(Duration::from_millis(300)).await.unwrap();
    assert_eq!(exit.signal, Some(9));
    assert!(
        asked.elapsed() >= Duration::from_millis(300) && asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
}

pub async fn a_stop_ends_a_running_install(world: Arc<World>) {
    let mut spec = world.spec("echo never");
    spec.install = vec![step("echo begun; sleep 1000")];
    let log_dir = spec.log_dir.clone();
    let (sandbox, events) = world.start(spec).await;
    eventually("the install has begun", || text(&log_dir).contains("begun")).await;
    sandbox.stop(Duration::from_secs(10)).await.unwrap();
    assert!(
        !all(events)
            .await
            .iter()
            .any(|e| matches!(e, SandboxEvent::InstallFailed { .. })),
        "a stop is no failure"
    );
    assert!(!text(&log_dir).contains("never"));
}

pub async fn orphans_are_reaped(world: Arc<World>) {
    let script = "for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done; sleep 0.5; ps -o stat,comm | grep -c ^Z; echo done";
    let (exit, text) = world.run(script).await;
    assert_eq!(exit, code(0));
    assert_eq!(text, "0\ndone\n");
}

pub async fn a_broken_specification_leaves_nothing(world: Arc<World>) {
    let mut spec = world.spec("true");
    spec.image_root = world.scratch().join("no-such-image");
    let dir = spec.dir();
    let error = Sandbox::create(&world.spawner, spec, None).await.unwrap_err();
    assert!(
        matches!(&error, SandboxError::Create { reason, .. } if reason.contains("no-such-image")),
        "{error}"
    );
    assert!(!dir.exists());
}

pub async fn logs_are_written_rotated_and_followed(world: Arc<World>) {
    // 60 000 lines of about 130 bytes as JSON: rotated once at least.
    let spec = world.spec("echo first; sleep 0.3; seq 1 60000; echo last");
    let log_dir = spec.log_dir.clone();
    let (sandbox, _events) = world.start(spec).await;
    let mut lines = Box::pin(logs::follow(&log_dir, 10));
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("last") {
        let line = tokio::time::timeout(Duration::from_secs(30), lines.next())
            .await
            .unwrap()
            .unwrap();
        seen.push(line.text);
    }
    assert_eq!(sandbox.ended().await, code(0));
    assert_eq!(seen.len(), 60_002, "none is lost and none comes twice");
    assert!(log_dir.join("current.log.1").exists());
    let size = |name: &str| std::fs::metadata(log_dir.join(name)).map_or(0, |m| m.len());
    assert!(size("current.log.1") < logs::ROTATE_AT + (1 << 20));
    let tail = logs::read_tail(&log_dir, 3).unwrap();
    assert_eq!(
        tail.iter().map(|l| l.text.as_str()).collect::<Vec<_>>(),
        ["59999", "60000", "last"]
    );
}

pub async fn a_sandbox_outlives_its_daemons_handle_and_is_adopted(world: Arc<World>) {
    let spec = world.spec("trap 'exit 4' TERM; echo ready; while :; do sleep 0.05; done");
    let (id, log_dir) = (spec.id.clone(), spec.log_dir.clone());
    let (sandbox, events) = world.start(spec).await;
    eventually("the app is ready", || text(&log_dir).contains("ready")).await;
    let (keeper, init) = (sandbox.keeper_pid(), sandbox.init_pid());
    drop(events);
    sandbox.detach();
    assert_eq!(running(&world.run_dir).await, std::slice::from_ref(&id));
    let (sandbox, events) = Sandbox::adopt(&world.run_dir, &id, None).await.unwrap();
    assert_eq!((sandbox.keeper_pid(), sandbox.init_pid()), (keeper, init));
    assert_eq!(sandbox.phase(), Some(Phase::AppStarted));
    assert_eq!(sandbox.spec().env["GREETING"], "good day");
    assert_eq!(sandbox.stop(Duration::from_secs(5)).await.unwrap(), code(4));
    assert_eq!(all(events).await, [SandboxEvent::Exited(code(4))]);
}

/// Set for a copy of this program that is to be a daemon: the path of the specification it starts.
pub const DAEMON: &str = "BERTH_TEST_DAEMON";

/// Starts one sandbox and sits there until killed.
pub fn be_a_daemon(spawner: Spawner, spec: &OsStr) -> ExitCode {
    let spec: SandboxSpec = serde_json::from_slice(&std::fs::read(spec).unwrap()).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let _held = Sandbox::create(&spawner, spec, None).await.unwrap();
        println!("{}", spawner.pid());
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

pub async fn a_sandbox_outlives_a_killed_daemon_and_its_spawner(world: Arc<World>) {
    let spec = world.spec("trap 'exit 4' TERM; while :; do date +%s%N; sleep 0.05; done");
    let (id, log_dir) = (spec.id.clone(), spec.log_dir.clone());
    let path = world.scratch().join("daemon.json");
    std::fs::write(&path, serde_json::to_vec(&spec).unwrap()).unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .env(DAEMON, &path)
        .env("A_SECRET_OF_THE_DAEMON", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    std::io::BufReader::new(daemon.stdout.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let spawner = said.trim().to_owned();
    eventually("the spawner ends with its daemon", || {
        !std::path::Path::new(&format!("/proc/{spawner}")).exists()
    })
    .await;
    let before = text(&log_dir).len();
    eventually("the app goes on and is logged", || text(&log_dir).len() > before).await;
    let (sandbox, _events) = Sandbox::adopt(&world.run_dir, &id, None).await.unwrap();
    let mut session = sandbox
        .exec(ExecRequest {
            argv: vec!["env".to_owned()],
            ..ExecRequest::default()
        })
        .await
        .unwrap();
    let env = std::io::read_to_string(std::fs::File::from(session.stdout.take().unwrap())).unwrap();
    assert!(session.wait().await.unwrap().success());
    assert!(env.contains("GREETING=good day") && !env.contains("A_SECRET"), "{env}");
    assert_eq!(sandbox.stop(Duration::from_secs(5)).await.unwrap(), code(4));
}

pub async fn a_killed_keeper_takes_its_sandbox_along(world: Arc<World>) {
    let spec = world.spec("sleep 1000");
    let dir = spec.dir();
    let (sandbox, events) = world.start(spec).await;
    let init = sandbox.init_pid();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(sandbox.keeper_pid()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(10), sandbox.ended())
        .await
        .unwrap();
    assert_eq!(exit.signal, Some(9));
    assert!(matches!(all(events).await.last(), Some(SandboxEvent::Exited(_))));
    eventually("the init is gone", || {
        !std::path::Path::new(&format!("/proc/{init}")).exists()
    })
    .await;
    assert!(!dir.exists());
}

pub async fn leftovers_are_cleaned(world: Arc<World>) {
    let mut spec = world.spec("sleep 1000");
    spec.run_dir = world.shm().join("other");
    spec.instance = format!("{}x", world.instance);
    let (run_dir, instance, dir) = (spec.run_dir.clone(), spec.instance.clone(), spec.dir());
    let (sandbox, _events) = world.start(spec).await;
    sandbox.detach();
    std::fs::create_dir_all(run_dir.join("sandboxes/half-made/bundle")).unwrap();
    let done = clean_leftovers(&run_dir, &instance).await.unwrap();
    assert!(done.iter().any(|l| l.starts_with("stopped sandbox case-")), "{done:?}");
    assert!(
        done.contains(&"removed what was left of sandbox half-made".to_owned()),
        "{done:?}"
    );
    assert!(!dir.exists() && !run_dir.join("sandboxes/half-made").exists());
    assert!(running(&run_dir).await.is_empty());
    assert!(clean_leftovers(&run_dir, &instance).await.unwrap().is_empty());
}
