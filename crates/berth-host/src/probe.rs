//! Finding out where an app listens and whether it answers, from outside, without its help.
//!
//! The kernel's list of listening sockets in the app's network namespace is read every millisecond (a small file), so
//! readiness is noticed within a millisecond or two and no app needs a health check. Whatever is found is connected to
//! before it counts.
//!
//! An app that listens on its `PORT` is taken at once. One that listens elsewhere is given [`SETTLE`] to open `PORT`
//! after all (many open a debugger or a metrics port first); then its lowest port that is no debugger's is used. The
//! address is used as it was found, so an app that listens on 127.0.0.1 or ::1 only is reached too: the socket that
//! connects is made inside the namespace.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::sandboxes::Running;

/// How long an app that listens elsewhere may still open its `PORT`.
const SETTLE: Duration = Duration::from_millis(300);
/// Looking this often at first …
const EAGER: Duration = Duration::from_millis(1);
/// … for this long …
const EAGER_FOR: Duration = Duration::from_secs(2);
/// … and this often afterwards.
const PATIENT: Duration = Duration::from_millis(10);
/// A connection inside one host that takes longer than this is not going to come about.
const CONNECT: Duration = Duration::from_millis(500);
/// The longest wait for one answer of a health path.
const HEALTH_ANSWER: Duration = Duration::from_secs(5);
/// Between two requests to a health path that did not answer well.
const HEALTH_PAUSE: Duration = Duration::from_millis(50);
/// Ports that belong to debuggers of Node, Python, Go and the JVM: never the app itself.
const DEBUG_PORTS: [u16; 6] = [9229, 9230, 5678, 2345, 40000, 5005];

/// What is asked of an app before it counts as ready.
pub(crate) struct Question<'a> {
    pub(crate) port: u16,
    pub(crate) health: Option<&'a str>,
    pub(crate) host: &'a str,
}

/// Waits until the app answers and tells where. `listens` is called once when it listens but has yet to report itself
/// healthy. Never gives up: the caller has the clock. Cancel-safe.
pub(crate) async fn until_ready(running: &dyn Running, question: &Question<'_>, listens: impl FnOnce()) -> SocketAddr {
    let addr = until_listening(running, question.port).await;
    if let Some(path) = question.health {
        listens();
        while !healthy(running, addr, question.host, path).await {
            sleep(HEALTH_PAUSE).await;
        }
    }
    addr
}

async fn until_listening(running: &dyn Running, port: u16) -> SocketAddr {
    let begun = Instant::now();
    let mut elsewhere_since: Option<Instant> = None;
    loop {
        // An error here means that the namespace is going away; the sandbox's end is reported on another way.
        let sockets = running.listening().unwrap_or_default();
        if !sockets.is_empty() {
            let settled = elsewhere_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE;
            for addr in candidates(&sockets, port, settled) {
                if connect(running, addr).await.is_ok() {
                    return addr;
                }
            }
        }
        sleep(if begun.elapsed() < EAGER_FOR { EAGER } else { PATIENT }).await;
    }
}

/// The addresses worth trying, best first. Others than `port` count only once `settled`.
fn candidates(sockets: &[SocketAddr], port: u16, settled: bool) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = sockets
        .iter()
        .copied()
        .filter(|addr| addr.port() == port || settled && !DEBUG_PORTS.contains(&addr.port()))
        .collect();
    found.sort_by_key(|addr| (addr.port() != port, addr.port(), addr.is_ipv6()));
    let mut tried = Vec::new();
    for addr in found {
        for addr in reachable(addr) {
            if !tried.contains(&addr) {
                tried.push(addr);
            }
        }
    }
    tried
}

/// Where a socket that listens at `addr` can be connected to from inside: a wildcard is reached over loopback. `[::]` mostly
/// takes IPv4 as well, which every kernel has.
fn reachable(addr: SocketAddr) -> Vec<SocketAddr> {
    let port = addr.port();
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![(Ipv4Addr::LOCALHOST, port).into()],
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => reachable((ip, port).into()),
            None => vec![addr],
        },
        IpAddr::V4(_) => vec![addr],
    }
}

async fn connect(running: &dyn Running, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = running.socket(addr.is_ipv6()).await?;
    let socket = TcpSocket::from_std_stream(StdStream::from(socket));
    timeout(CONNECT, socket.connect(addr))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// One GET of the health path: below 500 is healthy.
async fn healthy(running: &dyn Running, addr: SocketAddr, host: &str, path: &str) -> bool {
    let asked = async {
        let mut stream = connect(running, addr).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: berth-health\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        // "HTTP/1.1 200": the rest does not matter.
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        Ok::<_, io::Error>(status(&head))
    };
    matches!(timeout(HEALTH_ANSWER, asked).await, Ok(Ok(Some(code))) if code < 500)
}

fn status(head: &[u8; 12]) -> Option<u16> {
    let text = std::str::from_utf8(head).ok()?;
    text.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn addrs(of: &[&str]) -> Vec<SocketAddr> {
        of.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_planned_port_wins_over_all_others() {
        let found = candidates(&addrs(&["0.0.0.0:80", "[::]:3000", "127.0.0.1:9229"]), 3000, true);
        assert_eq!(found, addrs(&["127.0.0.1:3000", "[::1]:3000", "127.0.0.1:80"]));
    }

    #[test]
    fn another_port_counts_only_after_a_while_and_a_debugger_never() {
        let sockets = addrs(&["127.0.0.1:9229", "127.0.0.1:8081", "127.0.0.1:8080"]);
        assert!(candidates(&sockets, 3000, false).is_empty());
        assert_eq!(
            candidates(&sockets, 3000, true),
            addrs(&["127.0.0.1:8080", "127.0.0.1:8081"])
        );
    }

    #[test]
    fn an_app_on_one_loopback_address_is_reached_there() {
        assert_eq!(candidates(&addrs(&["[::1]:3000"]), 3000, false), addrs(&["[::1]:3000"]));
        assert_eq!(
            candidates(&addrs(&["[::ffff:127.0.0.1]:3000"]), 3000, false),
            addrs(&["127.0.0.1:3000"])
        );
    }

    #[test]
    fn a_status_line_is_read() {
        assert_eq!(status(b"HTTP/1.1 204"), Some(204));
        assert_eq!(status(b"HTTP/1.0 503"), Some(503));
        assert_eq!(status(b"SSH-2.0-Open"), None);
    }
}
