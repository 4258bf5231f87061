//! Hints between hosts that share a bucket: who has changed something tells the others at once, by UDP.
//!
//! A hint only says where to look (see [`super::watch`]): lost ones cost time, never a change, because LIST finds it. The
//! receiver never answers, so nobody can use it to flood a third one. A datagram that is forged, old, repeated or garbage is
//! dropped and counted; one that is true costs a HEAD for each key it names, or one LIST.
//!
//! Not here: what a datagram looks like (`datagram.rs`), which one was heard before (`replay.rs`).

mod datagram;
mod replay;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    net::{UdpSocket, lookup_host},
    sync::broadcast::{Receiver, error::RecvError},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::{
    datagram::{Hint, MOST, Reject, Seal, fitting},
    replay::{Heard, Old},
};
use super::{
    Store,
    watch::{Changes, Claim, Watched},
};
use crate::{Change, Result, StoreError};

/// Changes are collected for this long before they are told.
const BATCH: Duration = Duration::from_millis(10);
/// Datagrams of one batch; what does not fit into them becomes "list again".
const DATAGRAMS: usize = 4;
/// Keys of one batch; above it a LIST is cheaper for the others.
const KEYS: usize = 64;
/// How long the address of a peer is believed.
const ADDRESS: Duration = Duration::from_secs(30);
/// The pause after a failed receive, so that it does not spin.
const PAUSE: Duration = Duration::from_millis(100);

/// What became of datagrams so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HintCounts {
    /// Sent, to all peers together.
    pub sent: u64,
    /// Received and believed.
    pub heard: u64,
    /// Dropped: no datagram of ours, or of another bucket.
    pub foreign: u64,
    /// Dropped: the signature does not hold.
    pub forged: u64,
    /// Dropped: too old or from the future, by more than two minutes.
    pub stale: u64,
    /// Dropped: heard before.
    pub repeated: u64,
}

/// Telling and hearing; ends when dropped.
#[derive(Debug)]
pub struct Hints {
    counts: Arc<Counts>,
    address: Option<SocketAddr>,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    heard: AtomicU64,
    foreign: AtomicU64,
    forged: AtomicU64,
    stale: AtomicU64,
    repeated: AtomicU64,
}

impl Hints {
    /// What became of datagrams so far.
    #[must_use]
    pub fn counts(&self) -> HintCounts {
        let Counts {
            sent,
            heard,
            foreign,
            forged,
            stale,
            repeated,
        } = &*self.counts;
        HintCounts {
            sent: sent.load(Relaxed),
            heard: heard.load(Relaxed),
            foreign: foreign.load(Relaxed),
            forged: forged.load(Relaxed),
            stale: stale.load(Relaxed),
            repeated: repeated.load(Relaxed),
        }
    }

    /// Where hints are heard, with the port that was taken.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Store {
    /// Hears the hints of other hosts at `listen` and tells `peers` (`HOST:PORT`) of what is written here. All need the same
    /// secret key.
    ///
    /// # Errors
    /// [`StoreError::Config`] when the address cannot be listened on.
    pub async fn share_hints(&self, listen: Option<SocketAddr>, peers: Vec<String>) -> Result<Hints> {
        let inner = &self.inner;
        let seal = Arc::new(Seal::new(&inner.secret_key, &inner.bucket));
        let counts = Arc::<Counts>::default();
        let stop = CancellationToken::new();
        let mut address = None;
        if let Some(listen) = listen {
            let unusable = |error: io::Error| StoreError::Config {
                what: format!("hints cannot be heard at {listen} ({error}); stop what uses it, or choose another port"),
            };
            let socket = UdpSocket::bind(listen).await.map_err(unusable)?;
            address = Some(socket.local_addr().map_err(unusable)?);
            // With the embedded server's feed there is nothing to hear that it has not told already.
            if let Some(watched) = inner.changes.watch() {
                let hearing = hear(socket, Arc::clone(&seal), Arc::clone(watched), Arc::clone(&counts));
                tokio::spawn(stop.clone().run_until_cancelled_owned(hearing));
            }
        }
        if !peers.is_empty() {
            let changes = match &inner.changes {
                // All that anybody does to the embedded server's bucket: the others are told by nobody else.
                Changes::Fed(_) => Source::All(inner.changes.subscribe()),
                Changes::Watched(watched) => Source::Own(watched.own_writes()),
            };
            let peers = peers.into_iter().map(Peer::new).collect();
            let telling = tell(changes, peers, seal, Arc::clone(&counts));
            tokio::spawn(stop.clone().run_until_cancelled_owned(telling));
        }
        Ok(Hints {
            counts,
            address,
            _stop: stop.drop_guard(),
        })
    }
}

async fn hear(socket: UdpSocket, seal: Arc<Seal>, watched: Arc<Watched>, counts: Arc<Counts>) {
    let mut heard = Heard::default();
    // One byte more, so that a longer datagram is not taken for a whole one.
    let mut buffer = [0; MOST + 1];
    loop {
        let received = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => &buffer[..length],
            Err(error) => {
                tracing::debug!(%error, "cannot receive hints");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let hint = match seal.read(received) {
            Ok(hint) => hint,
            Err(reject) => {
                let counter = match reject {
                    Reject::Malformed | Reject::OtherBucket => &counts.foreign,
                    Reject::Forged => &counts.forged,
                };
                counter.fetch_add(1, Relaxed);
                continue;
            }
        };
        if let Err(old) = heard.is_new(hint.sender, hint.counter, hint.millis, millis()) {
            let counter = match old {
                Old::Stale => &counts.stale,
                Old::Repeated => &counts.repeated,
            };
            if counter.fetch_add(1, Relaxed) == 0 && old == Old::Stale {
                tracing::warn!("a hint of another host is older than two minutes: are the clocks of all hosts right?");
            }
            continue;
        }
        counts.heard.fetch_add(1, Relaxed);
        for key in &hint.keys {
            watched.hear(key, Claim::Changed);
        }
        if hint.list_again {
            watched.list_soon();
        }
    }
}

/// Whose changes are told.
enum Source {
    All(Receiver<Change>),
    Own(Receiver<String>),
}

impl Source {
    /// The next key; an error when some were missed (`true`) or there will be no more.
    async fn next(&mut self) -> Result<String, bool> {
        let missed = |error| matches!(error, RecvError::Lagged(_));
        match self {
            Self::All(changes) => match changes.recv().await {
                Ok(change) => Ok(change.key().to_owned()),
                Err(error) => Err(missed(error)),
            },
            Self::Own(keys) => keys.recv().await.map_err(missed),
        }
    }
}

/// Keys that changed within one batch.
#[derive(Debug, Default)]
struct Batch {
    keys: Vec<String>,
    more: bool,
}

impl Batch {
    /// `false` when there will be no more changes.
    fn add(&mut self, next: Result<String, bool>) -> bool {
        match next {
            Ok(key) if self.keys.contains(&key) => {}
            Ok(key) if self.keys.len() < KEYS => self.keys.push(key),
            Ok(_) | Err(true) => self.more = true,
            Err(false) => return false,
        }
        true
    }
}

async fn tell(mut changes: Source, mut peers: Vec<Peer>, seal: Arc<Seal>, counts: Arc<Counts>) {
    let (sender, mut counter) = (rand::random::<u64>(), 0);
    let mut sockets = Sockets::default();
    let mut goes_on = true;
    while goes_on {
        let mut batch = Batch::default();
        goes_on = batch.add(changes.next().await);
        let end = tokio::time::sleep(BATCH);
        tokio::pin!(end);
        while goes_on {
            tokio::select! {
                () = &mut end => break,
                next = changes.next() => goes_on = batch.add(next),
            }
        }
        for datagram in datagrams(batch, &seal, sender, &mut counter) {
            for peer in &mut peers {
                if peer.send(&mut sockets, &datagram).await {
                    counts.sent.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// As few as there are needed, and one that says "list again" when that would be too many.
fn datagrams(batch: Batch, seal: &Seal, sender: u64, counter: &mut u64) -> Vec<Vec<u8>> {
    let mut hint = |keys, list_again| {
        *counter += 1;
        let millis = millis();
        Hint {
            sender,
            counter: *counter,
            millis,
            list_again,
            keys,
        }
    };
    let (mut all, mut rest) = (Vec::new(), batch.keys.as_slice());
    while !batch.more && !rest.is_empty() && all.len() < DATAGRAMS {
        let (named, after) = rest.split_at(fitting(rest));
        if named.is_empty() {
            break;
        }
        all.push(seal.write(&hint(named.to_vec(), false)));
        rest = after;
    }
    if batch.more || !rest.is_empty() {
        return vec![seal.write(&hint(Vec::new(), true))];
    }
    all
}

/// Another host.
#[derive(Debug)]
struct Peer {
    name: String,
    address: Option<(SocketAddr, Instant)>,
    failing: bool,
}

impl Peer {
    fn new(name: String) -> Self {
        Self {
            name,
            address: None,
            failing: false,
        }
    }

    async fn send(&mut self, sockets: &mut Sockets, datagram: &[u8]) -> bool {
        let sent = self.try_send(sockets, datagram).await;
        match &sent {
            Ok(()) => self.failing = false,
            Err(error) if !self.failing => {
                tracing::warn!(peer = self.name, %error, "cannot tell another host what changed; it finds it by LIST");
                self.failing = true;
            }
            Err(_) => {}
        }
        sent.is_ok()
    }

    async fn try_send(&mut self, sockets: &mut Sockets, datagram: &[u8]) -> io::Result<()> {
        let address = match self.address {
            Some((address, since)) if since.elapsed() < ADDRESS => address,
            _ => {
                let mut found = lookup_host(&self.name).await?;
                let address = found.next().ok_or(io::ErrorKind::NotFound)?;
                self.address = Some((address, Instant::now()));
                address
            }
        };
        sockets.to(address).await?.send_to(datagram, address).await?;
        Ok(())
    }
}

/// One for each kind of address, made when it is needed.
#[derive(Debug, Default)]
struct Sockets {
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn to(&mut self, address: SocketAddr) -> io::Result<&UdpSocket> {
        let (socket, any) = match address {
            SocketAddr::V4(_) => (&mut self.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (&mut self.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        match socket {
            Some(socket) => Ok(socket),
            none => Ok(none.insert(UdpSocket::bind(any).await?)),
        }
    }
}

fn millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
