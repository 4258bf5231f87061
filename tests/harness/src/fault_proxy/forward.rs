//! One connection of the fault proxy: each request is read whole, judged, forwarded and answered.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::TRANSFER_ENCODING,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Fault, State};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Size of the pieces of a slow answer, bytes.
const PIECE: usize = 1024;

/// Answers requests until the client or a fault ends the connection.
pub(super) async fn serve(stream: TcpStream, state: Arc<State>) {
    let _ = stream.set_nodelay(true);
    let answer = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { handle(request, &state).await }
    });
    // An error is a fault that was asked for, or a client that has gone.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

async fn handle(request: Request<Incoming>, state: &State) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut changed = state.changed.subscribe();
    changed.mark_unchanged();
    let fault = state.judge(head.method.as_str(), &path, body.len());
    match fault {
        Some(Fault::Status(status)) => return refusal(status),
        Some(Fault::CutBefore) => return Err(cut()),
        Some(Fault::CutDuring) => {
            let half = body.slice(..body.len() / 2);
            let broken = pieces([Ok(half), Err(cut())], Duration::ZERO);
            let _ = send(head, broken, state).await;
            return Err(cut());
        }
        Some(Fault::Hang) => {
            let _ = changed.changed().await;
            return Err(cut());
        }
        _ => {}
    }
    let (head, body) = send(head, whole(body), state).await?.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let body = match fault {
        Some(Fault::CutAfter) => return Err(cut()),
        Some(Fault::Truncated) if body.len() > 1 => {
            pieces([Ok(body.slice(..body.len() / 2)), Err(cut())], Duration::ZERO)
        }
        // With nothing to cut from the body, the whole answer is what gets lost.
        Some(Fault::Truncated) => return Err(cut()),
        Some(Fault::Slow(pause)) if body.is_empty() => {
            tokio::time::sleep(pause).await;
            whole(body)
        }
        Some(Fault::Slow(pause)) => {
            let parts: Vec<_> = (0..body.len())
                .step_by(PIECE)
                .map(|at| Ok(body.slice(at..body.len().min(at + PIECE))))
                .collect();
            pieces(parts, pause)
        }
        _ => whole(body),
    };
    Ok(Response::from_parts(head, body))
}

/// Sends the request on, over a connection of its own: what a fault cuts is then this request alone.
async fn send(mut head: http::request::Parts, body: Body, state: &State) -> io::Result<Response<Incoming>> {
    head.headers.remove(TRANSFER_ENCODING);
    let stream = TcpStream::connect(state.upstream).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    tokio::spawn(connection);
    sender
        .send_request(Request::from_parts(head, body))
        .await
        .map_err(io::Error::other)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut by the fault proxy")
}

fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A body that comes in parts, the last of which may be an error.
fn pieces(parts: impl IntoIterator<Item = io::Result<Bytes>>, pause: Duration) -> Body {
    let parts: Vec<_> = parts.into_iter().collect();
    let stream = futures::stream::unfold(parts.into_iter(), move |mut parts| async move {
        let part = parts.next()?;
        // Also without a pause of its own, what came before must be written before an error ends the connection.
        tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        Some((part.map(Frame::data), parts))
    });
    BodyExt::boxed_unsync(StreamBody::new(stream))
}

fn refusal(status: u16) -> io::Result<Response<Body>> {
    let code = match status {
        503 => "SlowDown",
        404 => "NoSuchKey",
        403 => "AccessDenied",
        _ => "InternalError",
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>by the fault proxy</Message></Error>"
    );
    Response::builder()
        .status(status)
        .header("content-type", "application/xml")
        .body(whole(text.into()))
        .map_err(io::Error::other)
}
