//! Names for sandboxes: a forwarder on the gateway's address, UDP and TCP.
//!
//! A host's resolvers are mostly at addresses that sandboxes must not reach: on loopback (systemd-resolved), in the private
//! network, or behind a VPN. So sandboxes ask the gateway, and this task asks the host's resolvers in their place, those that
//! `/etc/resolv.conf` names at that moment.
//!
//! A query is passed on as it is but for its id. Each try has a socket of its own (so a port the kernel chose) and a random id,
//! and only a reply with that id and the same question is taken: an outsider has to guess both. Servers are asked in order;
//! one that is silent, fails or refuses makes room for the next. When none answers, the app is told so (SERVFAIL) rather than
//! left waiting. Replies too long for UDP come back marked as cut off, the app's resolver asks again by TCP, and that query is
//! passed on by TCP.
//!
//! What is under way is bounded, in all and for each sandbox, so that an app in a loop cannot take the names away from the
//! others; a query above the bound is dropped, which resolvers answer by asking again.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::{Ipv4Net, NetworkError};
use message::Query;
use resolv::ResolvConf;

mod message;
mod resolv;

#[cfg(test)]
pub(super) use message::tests as example;

/// Where names are asked for.
const PORT: u16 = 53;
/// How many ports are tried when 53 is taken.
const TRIES: usize = 8;
/// Queries and TCP connections under way, in all.
const MOST_UNDER_WAY: usize = 1024;
/// Those of one sandbox. Go programs ask for hundreds of names at once.
const MOST_OF_ONE: usize = 256;
/// A TCP connection without a query for this long is closed.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// The longest message there can be.
const LONGEST: usize = 65_535;

/// How names are resolved for sandboxes.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The file that names the host's resolvers; read again when it changes.
    pub resolv_conf: PathBuf,
    /// Resolvers to ask instead of those in the file; empty for the file's.
    pub servers: Vec<SocketAddr>,
    /// How long one try at one server takes at most.
    pub timeout: Duration,
    /// How often the list of servers is gone through.
    pub attempts: usize,
}

impl Default for DnsConfig {
    /// `/etc/resolv.conf`, two rounds of 2 s: with one dead server the answer still comes before the app's resolver, which
    /// waits 5 s, gives up.
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            servers: Vec::new(),
            timeout: Duration::from_secs(2),
            attempts: 2,
        }
    }
}

/// The forwarder's sockets, before anything is served.
#[derive(Debug)]
pub(super) struct Bound {
    udp: UdpSocket,
    tcp: TcpListener,
    /// The port: 53, unless somebody else has that.
    pub port: u16,
}

/// Binds the gateway's address, which must exist. Where another name server has port 53 of all addresses, any port serves: the
/// firewall leads the sandboxes' queries there.
pub(super) async fn bind(gateway: Ipv4Addr) -> Result<Bound, NetworkError> {
    let mut tried = bind_port(gateway, PORT).await;
    for _ in 0..TRIES {
        match tried {
            // A free port of UDP may be taken for TCP: the next one then.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => tried = bind_port(gateway, 0).await,
            _ => break,
        }
    }
    let bound = tried.map_err(|source| NetworkError::Listen {
        address: (gateway, PORT).into(),
        source,
    })?;
    if bound.port != PORT {
        tracing::info!(%gateway, port = bound.port, "another name server has port 53; sandboxes' queries are led past it");
    }
    Ok(bound)
}

async fn bind_port(gateway: Ipv4Addr, port: u16) -> io::Result<Bound> {
    let udp = UdpSocket::bind((gateway, port)).await?;
    let port = udp.local_addr()?.port();
    Ok(Bound {
        udp,
        tcp: TcpListener::bind((gateway, port)).await?,
        port,
    })
}

/// The forwarder: two tasks that end with it.
#[derive(Debug)]
pub(super) struct Forwarder {
    tasks: [JoinHandle<()>; 2],
}

impl Forwarder {
    /// Answers whoever asks from within `subnet`.
    pub(super) fn start(bound: Bound, subnet: Ipv4Net, config: DnsConfig) -> Self {
        let service = Arc::new(Service {
            subnet,
            config,
            known: Mutex::default(),
            under_way: Mutex::default(),
        });
        let tasks = [
            tokio::spawn(serve_udp(bound.udp, Arc::clone(&service))),
            tokio::spawn(serve_tcp(bound.tcp, service)),
        ];
        Self { tasks }
    }

    /// Ends both tasks and gives the port back before it returns.
    pub(super) async fn stop(mut self) {
        for task in &mut self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// What a sandbox's `/etc/resolv.conf` says.
pub(super) fn sandbox_resolv_conf(gateway: Ipv4Addr, hosts_file: &Path) -> String {
    let text = fs::read_to_string(hosts_file).unwrap_or_default();
    ResolvConf::parse(&text).for_sandbox(gateway)
}

struct Service {
    subnet: Ipv4Net,
    config: DnsConfig,
    known: Mutex<Known>,
    under_way: Mutex<HashMap<Ipv4Addr, usize>>,
}

/// The servers of the file, and the file they were read from.
#[derive(Default)]
struct Known {
    seen: Option<(SystemTime, u64)>,
    servers: Vec<SocketAddr>,
}

/// A place among what is under way, given back when dropped.
struct Place {
    service: Arc<Service>,
    client: Ipv4Addr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.service.under_way.lock();
        if let Some(count) = under_way.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                under_way.remove(&self.client);
            }
        }
    }
}

impl Service {
    /// A place for a query from `client`; `None` for strangers and above the bounds.
    fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let IpAddr::V4(client) = client else { return None };
        if !self.subnet.contains(client) {
            return None;
        }
        let mut under_way = self.under_way.lock();
        if under_way.values().sum::<usize>() >= MOST_UNDER_WAY {
            return None;
        }
        let count = under_way.entry(client).or_default();
        if *count >= MOST_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Place {
            service: Arc::clone(self),
            client,
        })
    }

    /// The servers to ask now. Looking at the file's times takes a microsecond; it is read only when they changed.
    fn servers(&self) -> Vec<SocketAddr> {
        if !self.config.servers.is_empty() {
            return self.config.servers.clone();
        }
        let path = &self.config.resolv_conf;
        let seen = fs::metadata(path)
            .ok()
            .and_then(|file| Some((file.modified().ok()?, file.len())));
        let mut known = self.known.lock();
        if known.seen != seen || known.servers.is_empty() {
            let text = fs::read_to_string(path).unwrap_or_default();
            let mut servers = ResolvConf::parse(&text).servers;
            if servers.is_empty() {
                // What resolv.conf(5) says of a file that is missing or names none.
                servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
            }
            tracing::debug!(path = %path.display(), ?servers, "resolvers for sandboxes");
            *known = Known { seen, servers };
        }
        known.servers.clone()
    }

    /// Asks the servers in turn; always gives something to answer with.
    async fn resolve(&self, query: &Query, way: Way) -> Vec<u8> {
        let mut last = None;
        for _ in 0..self.config.attempts.max(1) {
            for server in self.servers() {
                let asked = timeout(self.config.timeout, async {
                    match way {
                        Way::Udp => ask_udp(server, query).await,
                        Way::Tcp => ask_tcp(server, query).await,
                    }
                });
                match asked.await {
                    Ok(Ok(reply)) if message::ask_elsewhere(&reply) => last = Some(reply),
                    Ok(Ok(reply)) => return query.answered_by(reply),
                    Ok(Err(error)) => tracing::debug!(%server, %error, "a resolver could not be asked"),
                    Err(_) => tracing::debug!(%server, "a resolver did not answer in time"),
                }
            }
            if last.is_some() {
                break;
            }
        }
        last.map_or_else(|| query.failed(), |reply| query.answered_by(reply))
    }
}

/// How a query is passed on: as it came.
#[derive(Clone, Copy)]
enum Way {
    Udp,
    Tcp,
}

async fn serve_udp(socket: UdpSocket, service: Arc<Service>) {
    let socket = Arc::new(socket);
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        tokio::select! {
            Some(_) = under_way.join_next() => {}
            received = socket.recv_from(&mut buffer) => {
                // Errors here are those of earlier replies (nobody listened any more), reported late.
                let Ok((length, client)) = received else { continue };
                let Some(query) = Query::parse(&buffer[..length]) else { continue };
                let Some(place) = service.admit(client.ip()) else { continue };
                let socket = Arc::clone(&socket);
                under_way.spawn(async move {
                    let reply = place.service.resolve(&query, Way::Udp).await;
                    let _ = socket.send_to(&reply, client).await;
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, service: Arc<Service>) {
    let mut under_way = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = under_way.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    if let Some(place) = service.admit(client.ip()) {
                        under_way.spawn(async move { converse(stream, &place.service).await });
                    }
                }
                // Out of descriptors: the connection stays queued, so asking again at once would spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

/// One query after the other, until the client stops, errs or is idle.
async fn converse(mut stream: TcpStream, service: &Service) {
    while let Ok(Ok(bytes)) = timeout(TCP_IDLE, read_message(&mut stream)).await {
        let Some(query) = Query::parse(&bytes) else { return };
        let reply = service.resolve(&query, Way::Tcp).await;
        match timeout(TCP_IDLE, write_message(&mut stream, &reply)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

async fn ask_udp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel takes replies from this server only, and tells us when nobody listens there.
    socket.connect(server).await?;
    let id = rand::random();
    socket.send(&query.with_id(id)).await?;
    let mut reply = Vec::with_capacity(LONGEST);
    loop {
        reply.clear();
        socket.recv_buf(&mut reply).await?;
        if query.is_answer(&reply, id) {
            reply.shrink_to_fit();
            return Ok(reply);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &Query) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    write_message(&mut stream, &query.with_id(id)).await?;
    let reply = read_message(&mut stream).await?;
    if query.is_answer(&reply, id) {
        Ok(reply)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "an answer to something else",
        ))
    }
}

/// A message over TCP has its length before it.
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(message);
    stream.write_all(&framed).await
}
