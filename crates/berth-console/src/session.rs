//! Commands run inside sandboxes: `exec` in an app's own, `run` in one made for it.
//!
//! The connection is upgraded, then [`pump`] carries frames between the client and the command's descriptors until the command ends or
//! the client leaves. A client that leaves takes its command with it (SIGHUP, as a terminal that is closed does).

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Path, Query, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use berth_host::RunRequest;
use berth_sandbox::{ExecRequest, ExecSession};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::{
    api::{Api, parse_name, snapshot},
    error::ApiError,
    frames::{self, Ending, Frame},
};

/// What `berth run` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunParameters {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Over the app's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A terminal of this many rows and columns.
    pub tty: Option<(u16, u16)>,
    /// Whether dependencies are installed first.
    #[serde(default)]
    pub install: bool,
}

#[derive(Deserialize)]
pub(crate) struct SessionQuery {
    /// The request as JSON: a body cannot travel with an upgrade.
    request: String,
}

impl SessionQuery {
    fn parse<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_str(&self.request).map_err(|error| {
            ApiError::new(
                StatusCode::BAD_REQUEST,
                format!("the request is not understood: {error}"),
            )
        })
    }
}

pub(crate) async fn exec(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<SessionQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted: ExecRequest = query.parse()?;
    let app = parse_name(&name)?;
    snapshot(&api, &app)?;
    let sandbox = api.host.sandbox(&app).ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            format!("{app} does not run; start it with a request or `berth start {app}`, or try it by hand with `berth run {app}`"),
        )
    })?;
    // One exec keeps the app awake: it holds a claim as a request does.
    let claim = api.host.acquire(&app).await.ok();
    let session = sandbox.exec(wanted).await?;
    upgrade(request, session, (claim, sandbox))
}

pub(crate) async fn run(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<SessionQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let wanted: RunParameters = query.parse()?;
    let app = parse_name(&name)?;
    let run = api
        .host
        .run(RunRequest {
            app,
            install: wanted.install,
            exec: ExecRequest {
                argv: wanted.argv,
                env: wanted.env,
                cwd: None,
                tty: wanted.tty,
            },
        })
        .await?;
    let (session, keep) = run.into_parts();
    upgrade(request, session, keep)
}

/// Answers 101 and carries the session on a task of its own; `keep` is dropped when it ends.
fn upgrade(mut request: Request, session: ExecSession, keep: impl Send + 'static) -> Result<Response, ApiError> {
    let asked = request
        .headers()
        .get(header::UPGRADE)
        .is_some_and(|value| value == frames::PROTOCOL);
    if !asked {
        return Err(ApiError::new(
            StatusCode::UPGRADE_REQUIRED,
            format!("this call needs `Upgrade: {}`", frames::PROTOCOL),
        ));
    }
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrading.await {
            Ok(connection) => pump(TokioIo::new(connection), session).await,
            Err(error) => tracing::debug!(%error, "a client left before its session began"),
        }
        drop(keep);
    });
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(frames::PROTOCOL));
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(answer)
}

/// A terminal that is closed.
const SIGHUP: i32 = 1;

/// How long output is still waited for after a command has ended: a background child may hold its pipes open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// Carries frames until the command ends or the client leaves.
async fn pump(connection: impl AsyncRead + AsyncWrite + Send + 'static, mut session: ExecSession) {
    let (from_client, to_client) = tokio::io::split(connection);
    let (out, outgoing) = mpsc::channel::<Frame>(16);
    let writer = tokio::spawn(send_frames(to_client, outgoing));
    let ending = match Descriptors::take(&mut session) {
        Ok(descriptors) => carry(from_client, &mut session, descriptors, &out).await,
        Err(error) => Frame::Failure(format!("cannot reach the command's input and output: {error}")),
    };
    // Sending fails only when the client has left.
    let _ = out.send(ending).await;
    drop(out);
    let _ = writer.await;
}

async fn send_frames(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if frames::write(&mut to, &frame).await.is_err() {
            break;
        }
    }
}

/// The session proper; gives the last frame.
async fn carry(
    from_client: impl AsyncRead + Unpin + Send + 'static,
    session: &mut ExecSession,
    descriptors: Descriptors,
    out: &mpsc::Sender<Frame>,
) -> Frame {
    let (orders_in, mut orders) = mpsc::channel(16);
    let reader = tokio::spawn(read_client(from_client, descriptors.input, orders_in));
    let outputs: Vec<_> = descriptors
        .outputs
        .into_iter()
        .map(|(from, wrap)| tokio::spawn(copy_output(from, wrap, out.clone())))
        .collect();
    let ending = loop {
        tokio::select! {
            ended = session.wait() => break match ended {
                Ok(exit) => Frame::Exit(Ending { code: exit.shell_code(), text: exit.to_string() }),
                Err(error) => Frame::Failure(berth_workspace::chain(&error)),
            },
            order = orders.recv() => match order {
                Some(Frame::Resize(size)) => {
                    if let Err(error) = session.resize(size.rows, size.cols) {
                        tracing::debug!(%error, "a terminal's size was not changed");
                    }
                }
                Some(Frame::Signal(number)) => {
                    let _ = session.signal(number).await;
                }
                Some(_) => {}
                None => {
                    let _ = session.signal(SIGHUP).await;
                    break Frame::Failure("the client left".into());
                }
            },
        }
    };
    for mut output in outputs {
        if tokio::time::timeout(DRAIN, &mut output).await.is_err() {
            output.abort();
        }
    }
    reader.abort();
    ending
}

/// Input goes straight to the command, everything else to the session. Ends, and with it `orders`, when the client leaves.
async fn read_client(mut from: impl AsyncRead + Unpin, input: Arc<Descriptor>, orders: mpsc::Sender<Frame>) {
    let mut input = Some(input);
    while let Ok(Some(frame)) = frames::read(&mut from).await {
        match frame {
            Frame::Stdin(bytes) => {
                let Some(to) = &input else { continue };
                if to.write_all(&bytes).await.is_err() {
                    input = None;
                }
            }
            Frame::StdinEnd => input = None,
            order => {
                if orders.send(order).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn copy_output(from: Arc<Descriptor>, wrap: fn(Bytes) -> Frame, out: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; 32 << 10];
    // A terminal whose last user has left gives EIO: its end.
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if out.send(wrap(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            break;
        }
    }
}

/// Where output comes from, and the frame it is sent in.
type Output = (Arc<Descriptor>, fn(Bytes) -> Frame);

/// The command's ends of its pipes or terminal.
struct Descriptors {
    input: Arc<Descriptor>,
    outputs: Vec<Output>,
}

impl Descriptors {
    fn take(session: &mut ExecSession) -> io::Result<Self> {
        let missing = || io::Error::other("a descriptor is missing");
        if let Some(terminal) = &session.terminal {
            // The session keeps the terminal too: it changes the window's size on it.
            let terminal = Arc::new(Descriptor::new(terminal.try_clone()?)?);
            return Ok(Self {
                input: Arc::clone(&terminal),
                outputs: vec![(terminal, Frame::Stdout)],
            });
        }
        let input = Arc::new(Descriptor::new(session.stdin.take().ok_or_else(missing)?)?);
        let stdout = Arc::new(Descriptor::new(session.stdout.take().ok_or_else(missing)?)?);
        let stderr = Arc::new(Descriptor::new(session.stderr.take().ok_or_else(missing)?)?);
        Ok(Self {
            input,
            outputs: vec![(stdout, Frame::Stdout), (stderr, Frame::Stderr)],
        })
    }
}

/// A pipe or terminal, read and written without blocking a thread.
struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        berth_sys::packet::watch(fd).map(Self)
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?))
            .await
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .0
                .async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?))
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }
}
