//! One HTTP GET, enough to see whether an app answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// The status of `GET path` at `address`; waits up to `timeout` for the answer, since apps start on it.
pub fn status(address: SocketAddr, host: &str, path: &str, timeout: Duration) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(timeout))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    // The status is in the first line; reading on to the end lets the app finish its answer.
    stream.read_to_end(&mut answer)?;
    let line = String::from_utf8_lossy(&answer);
    let code = line.split(' ').nth(1).context("no HTTP answer")?;
    code.parse().with_context(|| format!("no HTTP status: {code}"))
}
