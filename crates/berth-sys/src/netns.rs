//! Network namespaces: handles to them, and sockets made inside them.
//!
//! A socket belongs for its whole life to the network namespace of the thread that made it. So the edge reaches an app at
//! 127.0.0.1:PORT *inside* the app's namespace through an ordinary socket that was made there: no published port, no address
//! that a later sandbox could inherit. Making one means that a thread enters the namespace (setns(2)), calls socket(2) and comes
//! back; connecting, reading and writing happen afterwards on any thread.
//!
//! Threads of a runtime must never do this: a task that ran next on a thread left in the wrong namespace would open its
//! sockets in an app's network. [`SocketFactory`] therefore owns one thread of its own (`berth-netns`) that does nothing else.
//! If that thread ever fails to come back, it ends itself, and the next request starts another one from a thread that never
//! moved.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt};
use tokio::sync::oneshot;

/// How often a request is given to a fresh thread after the one that had it ended, before the caller gets the error.
const ATTEMPTS: usize = 3;

/// A handle that keeps a network namespace alive and lets it be entered.
///
/// Cheap to clone: all clones share one file descriptor. While one exists, the kernel keeps the namespace with its links, so
/// drop it with the sandbox.
#[derive(Clone)]
pub struct Netns(Arc<OwnedFd>);

impl Netns {
    /// Opens the namespace that `path` stands for: `/proc/PID/ns/net` or a bind mount such as `/run/netns/NAME`.
    ///
    /// # Errors
    /// Those of open(2). A file that is no network namespace is only found out when it is entered.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::from_fd(File::open(path)?.into()))
    }

    /// Opens the namespace of process `pid`. The caller sees to it that the pid still is the process it means (a child not
    /// yet waited for, or a pidfd checked afterwards).
    ///
    /// # Errors
    /// `ENOENT` when there is no such process; `EACCES` without ptrace access to it.
    pub fn of_pid(pid: i32) -> io::Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// Those of open(2), such as `EMFILE`.
    pub fn current() -> io::Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Takes a descriptor of a namespace that somebody else opened, for example one received over a socket.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Moves the calling thread into this namespace.
    ///
    /// Only this thread moves: call it on a thread or in a process of your own, never on a pool's.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN; `EINVAL` if this is no network namespace.
    pub fn enter(&self) -> io::Result<()> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Runs `act` inside the namespace, on a thread made for it that ends with it. Blocks until then.
    ///
    /// For what is rare: a listener in another namespace, a look at its links. Sockets by the thousand come from
    /// [`SocketFactory`].
    ///
    /// # Errors
    /// Those of making a thread, of [`Netns::enter`] and of `act`.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("berth-netns-run".into())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    act()
                })?;
            worker
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
        })
    }

    /// Listens for TCP on `addr` inside the namespace.
    ///
    /// # Errors
    /// Those of [`Netns::run`] and of bind(2).
    pub fn tcp_listener(&self, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
        self.run(|| std::net::TcpListener::bind(addr))
    }

    /// Binds a UDP socket to `addr` inside the namespace.
    ///
    /// # Errors
    /// Those of [`Netns::run`] and of bind(2).
    pub fn udp_socket(&self, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.run(|| std::net::UdpSocket::bind(addr))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Netns(fd {})", self.0.as_raw_fd())
    }
}

struct Request {
    ns: Netns,
    v6: bool,
    reply: oneshot::Sender<io::Result<OwnedFd>>,
}

/// Makes TCP sockets inside network namespaces, on one thread of its own. Clones share that thread; it ends with the last.
#[derive(Clone)]
pub struct SocketFactory {
    worker: Arc<Mutex<mpsc::Sender<Request>>>,
    /// Where the thread belongs, kept so that a replacement started from anywhere begins at the same place.
    home: Netns,
}

impl SocketFactory {
    /// Starts the thread in the namespace of the caller, which is where it returns to after each socket.
    ///
    /// # Errors
    /// Those of opening the caller's namespace and of making a thread.
    pub fn start() -> io::Result<Self> {
        let home = Netns::current()?;
        let worker = start_worker(&home)?;
        Ok(Self {
            worker: Arc::new(Mutex::new(worker)),
            home,
        })
    }

    /// Makes a nonblocking, close-on-exec TCP socket with TCP_NODELAY inside `ns`, not yet connected.
    ///
    /// Cancel-safe: if the future is dropped, the socket is closed when it is made.
    ///
    /// # Errors
    /// Those of setns(2) and socket(2): `EPERM` without CAP_SYS_ADMIN, `EMFILE` when the process has no descriptor left,
    /// `EAFNOSUPPORT` for `v6` on a host without IPv6.
    pub async fn tcp(&self, ns: &Netns, v6: bool) -> io::Result<OwnedFd> {
        for _ in 0..ATTEMPTS {
            let (reply, answer) = oneshot::channel();
            self.hand_over(Request {
                ns: ns.clone(),
                v6,
                reply,
            })?;
            // No answer means that the thread ended with our request in its queue: the next round starts another thread.
            if let Ok(made) = answer.await {
                return made;
            }
        }
        Err(io::Error::other(
            "the thread that enters network namespaces keeps ending; see the log",
        ))
    }

    fn hand_over(&self, request: Request) -> io::Result<()> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let Err(mpsc::SendError(request)) = worker.send(request) else {
            return Ok(());
        };
        *worker = start_worker(&self.home)?;
        worker
            .send(request)
            .map_err(|_| io::Error::other("the thread that enters network namespaces ended at once"))
    }
}

impl fmt::Debug for SocketFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketFactory(home {:?})", self.home)
    }
}

fn start_worker(home: &Netns) -> io::Result<mpsc::Sender<Request>> {
    let (sender, requests) = mpsc::channel();
    let home = home.clone();
    thread::Builder::new()
        .name("berth-netns".into())
        .spawn(move || serve(&home, &requests))?;
    Ok(sender)
}

/// The thread's whole life: one hop a request, until nobody can ask any more or it cannot come home.
fn serve(home: &Netns, requests: &mpsc::Receiver<Request>) {
    if let Err(error) = home.enter() {
        tracing::error!(%error, "cannot enter the host's network namespace");
        return;
    }
    while let Ok(request) = requests.recv() {
        let made = request.ns.enter().and_then(|()| tcp_socket(request.v6));
        let back = home.enter();
        // A caller that went away closes the socket by dropping the message.
        let _ = request.reply.send(made);
        if let Err(error) = back {
            // Somewhere else for good: what is queued is dropped, so its callers ask the thread that replaces this one.
            tracing::error!(%error, "a thread is stuck in an app's network namespace; replacing it");
            return;
        }
    }
}

fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&made, sockopt::TcpNoDelay, &true)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpStream};
    use std::time::Instant;

    use nix::sched::unshare;
    use nix::sys::socket::{SockaddrIn, connect};

    use super::*;

    /// A namespace of its own, with lo up when asked for.
    fn fresh() -> Netns {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace needs root");
            Netns::current().unwrap()
        })
        .join()
        .unwrap()
    }

    fn lo_up(ns: &Netns) {
        ns.run(|| {
            let done = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()?;
            assert!(done.success());
            Ok(())
        })
        .unwrap();
    }

    fn id(ns: &Netns) -> u64 {
        nix::sys::stat::fstat(ns).unwrap().st_ino
    }

    #[tokio::test]
    async fn a_socket_made_in_a_namespace_reaches_its_loopback_and_not_the_hosts() {
        let ns = fresh();
        lo_up(&ns);
        let inside = ns.tcp_listener((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = inside.local_addr().unwrap();
        let factory = SocketFactory::start().unwrap();
        let fd = factory.tcp(&ns, false).await.unwrap();
        let _ = connect(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, addr.port()));
        let (mut peer, _) = inside.accept().unwrap();
        peer.write_all(b"here").unwrap();
        drop(peer);
        let mut stream = TcpStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        assert!(stream.nodelay().unwrap());
        let mut got = String::new();
        stream.read_to_string(&mut got).unwrap();
        assert_eq!(got, "here");
    }

    #[tokio::test]
    async fn sockets_are_nonblocking_and_closed_on_exec() {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        let factory = SocketFactory::start().unwrap();
        for v6 in [false, true] {
            let fd = factory.tcp(&fresh(), v6).await.unwrap();
            assert!(OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK));
            assert!(FdFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFD).unwrap()).contains(FdFlag::FD_CLOEXEC));
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_namespace_is_an_error_and_the_next_request_works() {
        let factory = SocketFactory::start().unwrap();
        let wrong = Netns::open("/proc/self/status").unwrap();
        assert!(factory.tcp(&wrong, false).await.is_err());
        assert!(factory.tcp(&fresh(), false).await.is_ok());
    }

    #[tokio::test]
    async fn a_thread_that_ended_is_replaced() {
        let factory = SocketFactory::start().unwrap();
        // A sender without a receiver is what a thread that could not come home leaves behind.
        *factory.worker.lock().unwrap() = mpsc::channel().0;
        assert!(factory.tcp(&fresh(), false).await.is_ok());
    }

    #[test]
    fn the_callers_own_thread_never_moves() {
        let before = id(&Netns::current().unwrap());
        let ns = fresh();
        let inside = ns.run(Netns::current).unwrap();
        assert_eq!(id(&inside), id(&ns));
        assert_ne!(id(&inside), before);
        assert_eq!(id(&Netns::current().unwrap()), before);
    }

    #[tokio::test]
    async fn a_socket_takes_microseconds() {
        let factory = SocketFactory::start().unwrap();
        let spaces: Vec<_> = (0..4).map(|_| fresh()).collect();
        let mut taken = Vec::new();
        for round in 0..400 {
            let begun = Instant::now();
            factory.tcp(&spaces[round % spaces.len()], false).await.unwrap();
            taken.push(begun.elapsed());
        }
        taken.sort();
        println!("socket in a namespace: median {:?}, p95 {:?}", taken[200], taken[380]);
        assert!(taken[200].as_millis() < 5, "median {:?}", taken[200]);
    }
}
