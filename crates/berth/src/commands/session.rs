//! `berth exec` and `berth run`: a command in a sandbox, as if it ran here.
//!
//! With a terminal, ours is made raw for the time, so that every key (Ctrl-C too) reaches the command, and its size is followed. Without,
//! the three streams stay apart. The exit code is the command's.

use std::{
    io::{IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    process::ExitCode,
};

use berth_console::{
    RunParameters,
    frames::{self, Frame, WindowSize},
};
use berth_sandbox::ExecRequest;
use bytes::Bytes;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    cli,
    client::{Client, encode},
    failure::Failure,
};

pub async fn exec(client: &Client, exec: cli::Exec) -> Result<ExitCode, Failure> {
    let tty = terminal_size(exec.tty)?;
    let request = ExecRequest {
        argv: exec.command,
        env: exec.env.into_iter().collect(),
        cwd: exec.workdir,
        tty,
    };
    session(client, "exec", &exec.name, &request, tty.is_some(), exec.interactive).await
}

pub async fn run(client: &Client, run: cli::Run) -> Result<ExitCode, Failure> {
    // `berth run NAME` alone is a shell, as `docker run -it IMAGE sh` would be.
    let shell = run.command.is_empty();
    let at_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let tty = terminal_size(run.tty || (shell && at_terminal))?;
    let argv = if shell { vec!["sh".to_owned()] } else { run.command };
    let request = RunParameters {
        argv,
        env: run.env.into_iter().collect(),
        tty,
        install: run.install,
    };
    session(
        client,
        "run",
        &run.name,
        &request,
        tty.is_some(),
        run.interactive || shell,
    )
    .await
}

async fn session(
    client: &Client,
    what: &str,
    name: &str,
    request: &impl serde::Serialize,
    tty: bool,
    interactive: bool,
) -> Result<ExitCode, Failure> {
    let json = serde_json::to_string(request).map_err(|error| Failure::from_error(&error))?;
    let path = format!("/v1/apps/{}/{what}?request={}", encode(name), encode(&json));
    let connection = client.upgrade(&path).await?;
    let _raw = if tty { Some(RawTerminal::enter()?) } else { None };
    let (from_daemon, to_daemon) = tokio::io::split(connection);
    let (out, outgoing) = mpsc::channel(16);
    tokio::spawn(send(to_daemon, outgoing));
    if interactive || tty {
        tokio::spawn(forward_input(out.clone()));
    } else {
        let _ = out.send(Frame::StdinEnd).await;
    }
    tokio::spawn(forward_signals(out, tty));
    show(from_daemon).await
}

async fn send(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if frames::write(&mut to, &frame).await.is_err() {
            return;
        }
    }
}

async fn forward_input(out: mpsc::Sender<Frame>) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = input.read(&mut buffer).await {
        if out
            .send(Frame::Stdin(Bytes::copy_from_slice(&buffer[..length])))
            .await
            .is_err()
        {
            return;
        }
    }
    let _ = out.send(Frame::StdinEnd).await;
}

/// Window sizes with a terminal; without, interrupts go to the command instead of ending us.
async fn forward_signals(out: mpsc::Sender<Frame>, tty: bool) {
    let (Ok(mut window), Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::window_change()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    loop {
        let frame = tokio::select! {
            _ = window.recv() => match window_size() {
                Some((rows, cols)) if tty => Frame::Resize(WindowSize { rows, cols }),
                _ => continue,
            },
            _ = interrupt.recv() => Frame::Signal(SignalKind::interrupt().as_raw_value()),
            _ = terminate.recv() => Frame::Signal(SignalKind::terminate().as_raw_value()),
        };
        if out.send(frame).await.is_err() {
            return;
        }
    }
}

/// Shows what the command writes until it ends; gives its exit code.
async fn show(mut from: impl AsyncRead + Unpin) -> Result<ExitCode, Failure> {
    loop {
        let frame = frames::read(&mut from)
            .await
            .map_err(|error| Failure::failed(format!("the session broke off: {error}")))?;
        match frame {
            Some(Frame::Stdout(bytes)) => put(&mut std::io::stdout(), &bytes),
            Some(Frame::Stderr(bytes)) => put(&mut std::io::stderr(), &bytes),
            Some(Frame::Exit(ending)) => return Ok(ExitCode::from(u8::try_from(ending.code).unwrap_or(1))),
            Some(Frame::Failure(message)) => return Err(Failure::failed(message)),
            Some(_) => {}
            None => return Err(Failure::failed("the session broke off: the daemon went away")),
        }
    }
}

/// A reader that has gone away does not end the command.
fn put(to: &mut impl Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

/// The size to ask for, when a terminal is wanted.
fn terminal_size(wanted: bool) -> Result<Option<(u16, u16)>, Failure> {
    if !wanted {
        return Ok(None);
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("the input is no terminal; leave -t away"));
    }
    Ok(Some(window_size().unwrap_or((24, 80))))
}

fn window_size() -> Option<(u16, u16)> {
    berth_sys::terminal::window_size(std::io::stdin().as_fd()).ok()
}

/// Our terminal in raw mode; as it was when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> Result<Self, Failure> {
        let failed = |error: nix::Error| Failure::failed(format!("cannot set the terminal up: {error}"));
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(failed)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        set(stdin.as_fd(), &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

fn set(terminal: BorrowedFd<'_>, mode: &Termios) -> nix::Result<()> {
    tcsetattr(terminal, SetArg::TCSADRAIN, mode)
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = set(std::io::stdin().as_fd(), &self.before);
    }
}
