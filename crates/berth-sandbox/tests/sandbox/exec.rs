//! Commands in a living sandbox.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use berth_sandbox::{ExecRequest, ExecSession, ExitInfo, Sandbox, SandboxError};

use crate::world::{World, eventually};

fn sh(script: &str) -> ExecRequest {
    ExecRequest {
        argv: vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()],
        ..ExecRequest::default()
    }
}

async fn idle(world: &World) -> Sandbox {
    let mut spec = world.spec("");
    spec.start = None;
    let (sandbox, mut events) = world.start(spec).await;
    while let Some(event) = events.recv().await {
        if matches!(
            event,
            berth_sandbox::SandboxEvent::Phase {
                phase: berth_sandbox::Phase::AppStarted,
                ..
            }
        ) {
            break;
        }
    }
    sandbox
}

async fn drain(fd: std::os::fd::OwnedFd) -> String {
    tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        // A terminal's master ends with EIO, not with nothing.
        let _ = File::from(fd).read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
    .await
    .unwrap()
}

async fn output(session: &mut ExecSession) -> (ExitInfo, String, String) {
    drop(session.stdin.take());
    let (out, err) = tokio::join!(
        drain(session.stdout.take().unwrap()),
        drain(session.stderr.take().unwrap())
    );
    (session.wait().await.unwrap(), out, err)
}

pub async fn a_command_inside_has_its_own_pipes_and_exit_code(world: Arc<World>) {
    let sandbox = idle(&world).await;
    let mut request = sh("cat; echo $GREETING $MORE; pwd; echo oops >&2; exit 9");
    request.env = BTreeMap::from([("MORE".to_owned(), "and more".to_owned())]);
    let mut session = sandbox.exec(request).await.unwrap();
    File::from(session.stdin.take().unwrap()).write_all(b"typed\n").unwrap();
    let (exit, out, err) = output(&mut session).await;
    assert_eq!(
        (exit.code, out.as_str(), err.as_str()),
        (Some(9), "typed\ngood day and more\n/app\n", "oops\n")
    );
    let mut session = sandbox.exec(sh("kill -SEGV $$")).await.unwrap();
    assert_eq!(output(&mut session).await.0.signal, Some(11));
    sandbox.stop(Duration::ZERO).await.unwrap();
}

pub async fn a_command_inside_is_as_confined_as_the_app(world: Arc<World>) {
    let sandbox = idle(&world).await;
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Groups)' /proc/self/status; ls /proc/self/fd | wc -l; ls /proc | grep -c '^[0-9]'; \
        hostname; mount -t tmpfs x /tmp 2>&1; cat /proc/self/cgroup; ls -l /proc/self/ns; ulimit -n";
    let mut session = sandbox.exec(sh(script)).await.unwrap();
    let (_, out, _) = output(&mut session).await;
    assert_eq!(out.matches("0000000000000000").count(), 5, "{out}");
    assert!(
        out.contains("NoNewPrivs:\t1") && out.contains("Seccomp:\t2") && out.contains("Uid:\t1000\t1000\t1000\t1000"),
        "{out}"
    );
    assert!(
        out.contains("hello\n") && out.contains("mount: permission denied"),
        "{out}"
    );
    assert!(!out.contains(&world.instance), "it is in the sandbox's cgroup: {out}");
    assert!(
        out.lines()
            .filter(|l| l.contains(":memory:") || l.starts_with("0::"))
            .all(|l| l.ends_with(":/")),
        "{out}"
    );
    for kind in ["user", "pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        let inside = std::fs::read_link(format!("/proc/{}/ns/{kind}", sandbox.init_pid())).unwrap();
        assert!(out.contains(&*inside.to_string_lossy()), "{kind}: {out}");
    }
    sandbox.stop(Duration::ZERO).await.unwrap();
}

pub async fn a_terminal_is_a_terminal(world: Arc<World>) {
    let sandbox = idle(&world).await;
    let mut request = sh("tty; stty size; echo $TERM; read line; stty size; echo got $line; exit 3");
    request.tty = Some((33, 101));
    let mut session = sandbox.exec(request).await.unwrap();
    let mut terminal = File::from(session.terminal.as_ref().unwrap().try_clone().unwrap());
    session.resize(40, 120).unwrap();
    session.resize(33, 101).unwrap();
    terminal.write_all(b"typed\n").unwrap();
    let text = drain(terminal.into()).await;
    assert_eq!(session.wait().await.unwrap().code, Some(3));
    assert!(
        text.contains("/dev/pts/0") && text.contains("33 101") && text.contains("xterm-256color"),
        "{text}"
    );
    assert!(text.contains("got typed"), "{text}");
    // Job control: the interrupt character ends the foreground command, not the shell.
    let mut request = sh("trap 'exit 2' INT; echo ready; while :; do sleep 0.05; done");
    request.tty = Some((24, 80));
    let mut session = sandbox.exec(request).await.unwrap();
    let mut terminal = File::from(session.terminal.as_ref().unwrap().try_clone().unwrap());
    let mut seen = [0; 64];
    let n = terminal.read(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen[..n]).contains("ready"));
    terminal.write_all(&[3]).unwrap();
    assert_eq!(session.wait().await.unwrap().code, Some(2));
    // Hanging up ends what runs on the terminal.
    let mut request = sh("sleep 1000");
    request.tty = Some((24, 80));
    let session = sandbox.exec(request).await.unwrap();
    let pid = session.pid();
    drop(session);
    eventually("the command hears the hang-up", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    })
    .await;
    sandbox.stop(Duration::ZERO).await.unwrap();
}

pub async fn a_command_that_is_not_there_is_an_error(world: Arc<World>) {
    let sandbox = idle(&world).await;
    let missing = ExecRequest {
        argv: vec!["bash".to_owned()],
        ..ExecRequest::default()
    };
    let error = sandbox.exec(missing).await.unwrap_err();
    assert!(
        matches!(&error, SandboxError::Exec { reason, .. } if reason == "command not found: bash"),
        "{error}"
    );
    let nowhere = ExecRequest {
        cwd: Some("/nowhere".to_owned()),
        ..sh("true")
    };
    assert!(
        sandbox
            .exec(nowhere)
            .await
            .unwrap_err()
            .to_string()
            .contains("/nowhere")
    );
    assert!(sandbox.exec(ExecRequest::default()).await.is_err());
    sandbox.stop(Duration::ZERO).await.unwrap();
    assert!(matches!(
        sandbox.exec(sh("true")).await,
        Err(SandboxError::Ended { .. })
    ));
}

pub async fn commands_end_with_their_sandbox(world: Arc<World>) {
    let sandbox = idle(&world).await;
    let mut session = sandbox.exec(sh("sleep 1000")).await.unwrap();
    let mut other = sandbox
        .exec(sh("trap 'exit 8' USR1; echo ready; while :; do sleep 0.05; done"))
        .await
        .unwrap();
    let mut ready = [0; 6];
    File::from(other.stdout.take().unwrap()).read_exact(&mut ready).unwrap();
    other.signal(10).await.unwrap();
    assert_eq!(other.wait().await.unwrap().code, Some(8));
    let pid = session.pid();
    sandbox.stop(Duration::ZERO).await.unwrap();
    assert_eq!(session.wait().await.unwrap().signal, Some(9));
    eventually("the command is gone", || {
        !std::path::Path::new(&format!("/proc/{pid}")).exists()
    })
    .await;
}
