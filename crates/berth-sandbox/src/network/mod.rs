//! The network of the sandboxes: a link for each, a way out to the internet, names, and a firewall around it all.
//!
//! ```text
//!   sandbox ── eth0 ── veth ── INSTANCE_0007 ─┐                                   ┌─ internet
//!   sandbox ── eth0 ── veth ── INSTANCE_0008 ─┼─ host: nft table inet INSTANCE ───┤  (masqueraded)
//!                                             └─ 10.213.0.1:53 (on lo) ───────────┴─ the host's resolvers
//! ```
//!
//! What a sandbox reaches: the internet, and names through the gateway. What it does not: other sandboxes, anything that listens
//! on the host, private and link-local ranges (cloud metadata), unless a range is in `allow`. The rules are standing ones that
//! match links by the instance's prefix, so starting a sandbox adds none ([`firewall`] has them all).
//!
//! * [`slot`]: which address, link name and user ids a sandbox has;
//! * [`wire`]: the link itself, made by the keeper from inside the new namespace;
//! * [`firewall`]: the nft table;
//! * [`dns`]: the forwarder on the gateway's address.
//!
//! Everything of one daemon carries its instance name, so that daemons run side by side on one host with subnets of their own.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use parking_lot::Mutex;

mod addresses;
pub mod dns;
pub mod firewall;
mod netlink;
pub mod slot;
pub mod wire;

#[cfg(test)]
mod tests;

pub use addresses::{Ipv4Net, RangeError};
pub use dns::DnsConfig;
pub use slot::{Slot, SlotSpec, uid_base};
pub use wire::{probe, wire_inside};

use netlink::Netlink;
use slot::SlotTable;

/// Where the kernel is told to pass packets on between links.
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Used when the host has no default route to take it from.
const USUAL_MTU: u32 = 1500;

/// A daemon's name among those on its host: it begins the name of every link, table and cgroup of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance(String);

impl Instance {
    /// Begins every link's name. It ends in a sign that no instance's name contains, so no prefix is the beginning of another's.
    #[must_use]
    pub fn link_prefix(&self) -> String {
        format!("{}_", self.0)
    }

    /// The host's end of slot `index`; at most 8 + 1 + 4 signs where the kernel allows 15.
    #[must_use]
    pub fn link(&self, index: u32) -> String {
        format!("{}_{index:04x}", self.0)
    }

    /// The nft table: `berth` for the usual instance, else `berth_NAME`, because a bare name could be a word of nft's language
    /// or begin with a digit.
    #[must_use]
    pub fn table(&self) -> String {
        if self.0 == "berth" {
            self.0.clone()
        } else {
            format!("berth_{}", self.0)
        }
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Instance {
    type Err = NetworkError;

    fn from_str(name: &str) -> Result<Self, NetworkError> {
        let good = (1..=8).contains(&name.len())
            && name
                .bytes()
                .all(|sign| sign.is_ascii_lowercase() || sign.is_ascii_digit());
        if good {
            Ok(Self(name.to_owned()))
        } else {
            Err(NetworkError::InstanceName { name: name.to_owned() })
        }
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a network is started from.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// `[a-z0-9]{1,8}`, unlike that of every other daemon on the host.
    pub instance: String,
    /// Where sandboxes' addresses come from; at least a /23, and unlike every other daemon's.
    pub subnet: Ipv4Net,
    /// Ranges that sandboxes may reach although they are private. Never opens other sandboxes or the host itself.
    pub allow: Vec<Ipv4Net>,
    /// How names are resolved.
    pub dns: DnsConfig,
    /// `false`: sandboxes have loopback only, and nothing is changed on the host.
    pub enabled: bool,
}

impl NetworkConfig {
    /// The defaults for an instance: 10.213.0.0/16, nothing private allowed, the host's own resolvers.
    #[must_use]
    pub fn new(instance: impl Into<String>) -> Self {
        Self {
            instance: instance.into(),
            subnet: Ipv4Net::containing(Ipv4Addr::new(10, 213, 0, 0), 16),
            allow: Vec::new(),
            dns: DnsConfig::default(),
            enabled: true,
        }
    }
}

/// Why something about the network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The instance's name cannot begin a link's name.
    #[error("instance `{name}`: use 1 to 8 of a-z and 0-9, because it begins the names of network links")]
    InstanceName {
        /// As given.
        name: String,
    },
    /// The subnet's addresses cannot be hosts'.
    #[error(
        "subnet {subnet} cannot be used for sandboxes: choose a private one, of /23 or larger, such as 10.213.0.0/16"
    )]
    Subnet {
        /// As configured.
        subnet: Ipv4Net,
    },
    /// Every slot is in use.
    #[error("all {slots} addresses of subnet {subnet} are in use: stop apps, or configure a larger subnet")]
    Full {
        /// As configured.
        subnet: Ipv4Net,
        /// How many sandboxes it has room for.
        slots: u32,
    },
    /// A sandbox found alive has a slot that the subnet does not have.
    #[error("slot {index} is not one of subnet {subnet}: was the subnet changed while sandboxes ran?")]
    Foreign {
        /// The slot.
        index: u32,
        /// As configured now.
        subnet: Ipv4Net,
    },
    /// Two sandboxes claim one slot.
    #[error("slot {index} is in use by another sandbox")]
    InUse {
        /// The slot.
        index: u32,
    },
    /// `nft` is not there.
    #[error(
        "the program `nft` was not found: install the package nftables, or disable sandboxes' network in the configuration"
    )]
    NoNft,
    /// `nft` said no.
    #[error("nft could not {act} table inet {table}: {said}")]
    Nft {
        /// What was tried.
        act: &'static str,
        /// The table.
        table: String,
        /// What nft said.
        said: String,
    },
    /// `nft` could not be run.
    #[error("cannot run nft")]
    RunNft(#[source] io::Error),
    /// Forwarding could not be turned on.
    #[error("cannot turn on {path}, without which sandboxes have no way out")]
    Forwarding {
        /// The kernel's switch.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host could not be given the gateway's address.
    #[error("cannot {step} to give the host the gateway's address {address}")]
    Gateway {
        /// What was tried.
        step: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The forwarder could not listen.
    #[error("cannot listen for DNS on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sandbox's namespace could not be wired.
    #[error("cannot {step} (link {link})")]
    Wire {
        /// What was tried.
        step: &'static str,
        /// The host's end.
        link: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime was shut down underneath.
    #[error("the daemon is ending")]
    Ending,
    /// Links left behind could not be taken away.
    #[error("cannot remove links of instance {instance} that were left behind")]
    Stale {
        /// Whose.
        instance: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The network of one daemon's sandboxes: made by [`Network::start`], taken down by [`Network::stop`].
pub struct Network {
    instance: Instance,
    config: NetworkConfig,
    slots: Arc<SlotTable>,
    forwarder: Mutex<Option<dns::Forwarder>>,
    turned_forwarding_on: bool,
}

impl Network {
    /// Installs the firewall (in place of one that an earlier daemon left, in one step), turns forwarding on, gives
    /// the host the gateway's address and starts the DNS forwarder on it.
    ///
    /// Sandboxes that still run from an earlier daemon keep their connections. Not cancel-safe: a future dropped half-way leaves
    /// the table standing, which the next start replaces.
    ///
    /// # Errors
    /// Any of [`NetworkError`]; what was made before the error is taken away again.
    pub async fn start(config: NetworkConfig) -> Result<Self, NetworkError> {
        let instance: Instance = config.instance.parse()?;
        if config.subnet.slots() == 0 || !config.subnet.is_unicast() {
            return Err(NetworkError::Subnet { subnet: config.subnet });
        }
        if !config.enabled {
            let slots = SlotTable::new(instance.clone(), config.subnet, false, USUAL_MTU);
            return Ok(Self {
                instance,
                config,
                slots,
                forwarder: Mutex::new(None),
                turned_forwarding_on: false,
            });
        }
        match Self::make(&instance, &config).await {
            Ok((forwarder, mtu, turned_forwarding_on)) => {
                let slots = SlotTable::new(instance.clone(), config.subnet, true, mtu);
                Ok(Self {
                    instance,
                    config,
                    slots,
                    forwarder: Mutex::new(Some(forwarder)),
                    turned_forwarding_on,
                })
            }
            Err(error) => {
                undo(&instance, config.subnet).await;
                Err(error)
            }
        }
    }

    /// Everything on the host, the firewall before anything is passed on.
    async fn make(instance: &Instance, config: &NetworkConfig) -> Result<(dns::Forwarder, u32, bool), NetworkError> {
        let gateway = config.subnet.gateway();
        let mtu = blocking(move || make_gateway(gateway)).await?;
        let bound = dns::bind(gateway).await?;
        firewall::install(instance, config.subnet, &config.allow, bound.port).await?;
        let turned_on = turn_forwarding_on()?;
        Ok((
            dns::Forwarder::start(bound, config.subnet, config.dns.clone()),
            mtu,
            turned_on,
        ))
    }

    /// Takes a free slot for a new sandbox.
    ///
    /// # Errors
    /// [`NetworkError::Full`] when every slot is in use.
    pub fn lease(&self) -> Result<Slot, NetworkError> {
        self.slots.lease()
    }

    /// Takes the slot that a sandbox found alive after a restart already has.
    ///
    /// # Errors
    /// [`NetworkError::InUse`] and [`NetworkError::Foreign`].
    pub fn adopt(&self, index: u32) -> Result<Slot, NetworkError> {
        self.slots.adopt(index)
    }

    /// What a sandbox's `/etc/resolv.conf` should say: the gateway as name server, the host's search list and options.
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        dns::sandbox_resolv_conf(self.config.subnet.gateway(), &self.config.dns.resolv_conf)
    }

    /// Whether sandboxes have a way out at all.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.config.enabled
    }

    /// Where sandboxes ask for names.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.subnet.gateway()
    }

    /// Whether this start turned the host's `ip_forward` on. It stays on after a stop: others may have come to rely on it.
    #[must_use]
    pub fn turned_forwarding_on(&self) -> bool {
        self.turned_forwarding_on
    }

    /// Takes away links of this instance that belong to no slot in use, and says which. For a start after a crash, when the
    /// sandboxes that still live were adopted.
    ///
    /// # Errors
    /// [`NetworkError::Stale`].
    pub async fn remove_stale_links(&self) -> Result<Vec<String>, NetworkError> {
        let keep = self.slots.links();
        let instance = self.instance.clone();
        blocking(move || remove_links(&instance, &keep)).await
    }

    /// Ends the forwarder and leaves firewall and links standing, for a daemon that is about to be followed by another while its
    /// sandboxes go on serving. Idempotent.
    pub async fn detach(&self) {
        let forwarder = self.forwarder.lock().take();
        if let Some(forwarder) = forwarder {
            forwarder.stop().await;
        }
    }

    /// Takes everything down: forwarder, links, firewall. Sandboxes still running lose their way out. Idempotent.
    pub async fn stop(&self) {
        self.detach().await;
        if self.config.enabled {
            undo(&self.instance, self.config.subnet).await;
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Takes away every link of `instance` and says which. Blocking; about 34 ms a link.
///
/// # Errors
/// [`NetworkError::InstanceName`] and [`NetworkError::Stale`].
pub fn remove_stale_links(instance: &str) -> Result<Vec<String>, NetworkError> {
    remove_links(&instance.parse()?, &BTreeSet::new())
}

fn remove_links(instance: &Instance, keep: &BTreeSet<String>) -> Result<Vec<String>, NetworkError> {
    let failed = |source| NetworkError::Stale {
        instance: instance.to_string(),
        source,
    };
    let mut netlink = Netlink::open().map_err(failed)?;
    let prefix = instance.link_prefix();
    let mut removed = Vec::new();
    for link in netlink.links().map_err(failed)? {
        if !link.name.starts_with(&prefix) || keep.contains(&link.name) {
            continue;
        }
        match netlink.remove(link.index) {
            Ok(()) => removed.push(link.name),
            // Its namespace died in the meantime.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(removed)
}

/// Takes away what a start made. What cannot be taken away is said in the log: the next start replaces it.
async fn undo(instance: &Instance, subnet: Ipv4Net) {
    let left = |what: &str, error: NetworkError| {
        tracing::warn!(%instance, what, error = &error as &dyn std::error::Error, "could not be taken away");
    };
    let owned = instance.clone();
    if let Err(error) = blocking(move || remove_links(&owned, &BTreeSet::new())).await {
        left("links", error);
    }
    if let Err(error) = blocking(move || remove_gateway(subnet.gateway())).await {
        left("gateway address", error);
    }
    if let Err(error) = firewall::remove(instance).await {
        left("firewall table", error);
    }
}

/// Gives the host the gateway's address, on lo: every kernel has that link, and it is always up. An earlier daemon may have left
/// the address there. Gives the MTU of the host's way out.
fn make_gateway(gateway: Ipv4Addr) -> Result<u32, NetworkError> {
    let failed = |step: &'static str| {
        move |source: io::Error| NetworkError::Gateway {
            step,
            address: gateway,
            source,
        }
    };
    let mut netlink = Netlink::open().map_err(failed("open a netlink socket"))?;
    let lo = netlink.link("lo").map_err(failed("find lo"))?.index;
    match netlink.add_own_address(lo, gateway) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(failed("change lo")(error)),
        _ => {}
    }
    let way_out = netlink.way_out().map_err(failed("find the default route"))?;
    let links = netlink.links().map_err(failed("list links"))?;
    Ok(way_out
        .and_then(|index| links.into_iter().find(|link| link.index == index))
        .map_or(USUAL_MTU, |link| link.mtu))
}

/// Takes the gateway's address away again; fine if it is not there.
fn remove_gateway(gateway: Ipv4Addr) -> Result<(), NetworkError> {
    let failed = |step: &'static str| {
        move |source: io::Error| NetworkError::Gateway {
            step,
            address: gateway,
            source,
        }
    };
    let mut netlink = Netlink::open().map_err(failed("open a netlink socket"))?;
    let lo = netlink.link("lo").map_err(failed("find lo"))?.index;
    match netlink.remove_own_address(lo, gateway) {
        Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => Err(failed("change lo")(error)),
        _ => Ok(()),
    }
}

/// Turns IPv4 forwarding on; whether it was off.
fn turn_forwarding_on() -> Result<bool, NetworkError> {
    let failed = |source| NetworkError::Forwarding {
        path: IP_FORWARD,
        source,
    };
    if std::fs::read_to_string(IP_FORWARD).map_err(failed)?.trim() == "1" {
        return Ok(false);
    }
    std::fs::write(IP_FORWARD, "1").map_err(failed)?;
    tracing::info!("turned on {IP_FORWARD}: sandboxes' packets are passed on to the internet");
    Ok(true)
}

/// Runs what blocks for milliseconds where it holds nobody up.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(NetworkError::Ending),
        },
    }
}
