//! The command line's side of the admin API: HTTP over the daemon's unix socket.

use std::path::{Path, PathBuf};

use berth_console::frames;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, StatusCode, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::failure::Failure;

/// A daemon that may or may not answer.
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon behind this socket.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// GET, as a value.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        parse(self.send(Method::GET, path).await?).await
    }

    /// POST, as a value.
    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        parse(self.send(Method::POST, path).await?).await
    }

    /// GET an endless answer; `line` is called for each line and says whether to go on.
    pub async fn lines(&self, path: &str, mut line: impl FnMut(&[u8]) -> bool) -> Result<(), Failure> {
        let mut body = self.send(Method::GET, path).await?;
        let mut rest = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::failed(format!("the daemon's answer broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            rest.extend_from_slice(&data);
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let whole: Vec<u8> = rest.drain(..=end).collect();
                if !line(&whole[..end]) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// A connection for a session with a command.
    pub async fn upgrade(&self, path: &str) -> Result<TokioIo<Upgraded>, Failure> {
        let request = request(Method::GET, path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, frames::PROTOCOL)
            .body(Empty::<Bytes>::new());
        let response = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response.status(), response.into_body()).await);
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(broken)
    }

    async fn send(&self, method: Method, path: &str) -> Result<Incoming, Failure> {
        let response = self.exchange(request(method, path).body(Empty::new())).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refusal(response.status(), response.into_body()).await)
    }

    async fn exchange(
        &self,
        request: hyper::http::Result<Request<Empty<Bytes>>>,
    ) -> Result<hyper::Response<Incoming>, Failure> {
        let request =
            request.map_err(|error| Failure::usage(format!("this cannot be asked of the daemon: {error}")))?;
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(broken)
    }
}

fn request(method: Method, path: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "berth")
}

/// Makes a value safe in a path or query.
pub fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

async fn parse<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let bytes = body.collect().await.map_err(broken)?.to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::failed(format!("the daemon's answer is not understood: {error}")))
}

async fn refusal(status: StatusCode, body: Incoming) -> Failure {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: String,
    }
    let bytes = body
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .unwrap_or_default();
    let message = serde_json::from_slice::<Refusal>(&bytes).map_or_else(
        |_| format!("the daemon answered {status}: {}", String::from_utf8_lossy(&bytes)),
        |refusal| refusal.error,
    );
    match status {
        StatusCode::NOT_FOUND => Failure::not_found(message),
        StatusCode::UNPROCESSABLE_ENTITY => Failure::no_command(message),
        _ => Failure::failed(message),
    }
}

fn broken(error: hyper::Error) -> Failure {
    Failure::failed(format!("the daemon hung up: {error}"))
}

fn unreachable(socket: &Path, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind;
    let socket = socket.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Failure::no_daemon(format!(
            "no right to use {socket}: be root or join the group that owns it"
        )),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            Failure::no_daemon(format!("no daemon answers on {socket}; start one with `berth serve`"))
        }
        _ => Failure::no_daemon(format!("cannot reach the daemon on {socket}: {error}")),
    }
}
