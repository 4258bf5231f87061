//! Wiring a new network namespace to the host, from inside.
//!
//! ```text
//!   sandbox's namespace                 host's namespace
//!   lo    127.0.0.1, ::1
//!   eth0  ADDRESS/31  ───── veth ─────  INSTANCE_SLOT  GATEWAY/31
//!         default via GATEWAY
//! ```
//!
//! The pair is made in the *new* namespace with its other end born in the host's: that takes about a millisecond and a half
//! with everything around it, while moving a finished link between namespaces takes 36. Nothing here takes a link away: the
//! kernel does that when the namespace dies, and it takes 34 ms that nobody should wait for.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use berth_sys::link;
use berth_sys::netns::Netns;
use nix::sched::{CloneFlags, unshare};

use super::netlink::Netlink;
use super::{NetworkError, SlotSpec};

/// The link's name inside every sandbox.
const INSIDE: &str = "eth0";
/// Both ends of a link share a network of just two addresses.
const PREFIX: u8 = 31;

/// Wires the network namespace of the calling thread, which must be new and empty, as `spec` says.
///
/// For a keeper: blocking, and to be called by a process with one thread right after `unshare(CLONE_NEWNET)`, because the thread
/// visits the host's namespace for a moment. `host_ns` is that namespace, opened before. Takes about 1.5 ms.
///
/// # Errors
/// [`NetworkError::Wire`] with the step that failed. The namespace is then half wired and, if coming back failed, the thread is
/// in the host's namespace: the keeper must end.
pub fn wire_inside(spec: &SlotSpec, host_ns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let step = |step: &'static str| {
        let link = spec.host_link.clone();
        move |source: io::Error| NetworkError::Wire { step, link, source }
    };
    let mut inside = Netlink::open().map_err(step("open a netlink socket"))?;
    let lo = inside.link("lo").map_err(step("find lo"))?;
    inside.up(lo.index).map_err(step("bring lo up"))?;
    if !spec.enabled {
        return Ok(());
    }
    quiet_ipv6("default");
    let mut outside = outside(host_ns).map_err(step("visit the host's network namespace"))?;
    add_pair(spec, host_ns, &mut inside, &mut outside).map_err(step("make the link"))?;
    let eth0 = inside.link(INSIDE).map_err(step("find eth0"))?;
    let host_end = eth0
        .peer
        .ok_or_else(|| io::Error::other("eth0 has no other end"))
        .map_err(step("find the host's end"))?;
    inside
        .add_address(eth0.index, spec.address, PREFIX)
        .map_err(step("give eth0 its address"))?;
    inside.up(eth0.index).map_err(step("bring eth0 up"))?;
    inside
        .add_default_route(eth0.index, spec.gateway)
        .map_err(step("add the default route"))?;
    outside
        .add_address(host_end, spec.gateway, PREFIX)
        .map_err(step("give the host's end its address"))?;
    outside.up(host_end).map_err(step("bring the host's end up"))?;
    // eth0 came up before it had anything to talk to: without this the kernel may yet drop the app's first packets.
    link::settle(INSIDE).map(drop).map_err(step("have eth0 ready to send"))
}

/// Wires a link between two namespaces made for this and gone afterwards: whether sandboxes can have one, and how long it takes.
/// Blocking.
///
/// # Errors
/// [`NetworkError::Wire`] with the step that failed.
pub fn probe() -> Result<Duration, NetworkError> {
    let fresh = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Netns::current()
    };
    let failed = |source: io::Error| NetworkError::Wire {
        step: "make a network namespace",
        link: "probe_0000".into(),
        source,
    };
    let spec = SlotSpec {
        index: 0,
        enabled: true,
        address: Ipv4Addr::new(10, 213, 1, 1),
        gateway: Ipv4Addr::new(10, 213, 1, 0),
        dns: Ipv4Addr::new(10, 213, 0, 1),
        host_link: "probe_0000".into(),
        mtu: 1500,
    };
    let wired = thread::spawn(move || {
        let outer = fresh().map_err(failed)?;
        let _inner = fresh().map_err(failed)?;
        let begun = Instant::now();
        wire_inside(&spec, outer.as_fd())?;
        Ok(begun.elapsed())
    });
    wired
        .join()
        .unwrap_or_else(|_| Err(failed(io::Error::other("the thread panicked"))))
}

/// A conversation about the host's namespace, opened by a visit there.
fn outside(host_ns: BorrowedFd<'_>) -> io::Result<Netlink> {
    let here = Netns::current()?;
    Netns::from_fd(host_ns.try_clone_to_owned()?).enter()?;
    let opened = Netlink::open();
    here.enter()?;
    opened
}

/// Makes the pair. A link of that name in the host is left from an earlier sandbox whose namespace the kernel has not yet taken
/// down: its slot is ours now, so it goes.
fn add_pair(spec: &SlotSpec, host_ns: BorrowedFd<'_>, inside: &mut Netlink, outside: &mut Netlink) -> io::Result<()> {
    let mut add = || inside.add_veth(INSIDE, &spec.host_link, host_ns, spec.mtu);
    match add() {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            match outside
                .link(&spec.host_link)
                .and_then(|left| outside.remove(left.index))
            {
                Err(error) if error.raw_os_error() != Some(libc::ENODEV) => return Err(error),
                _ => {}
            }
            add()
        }
        other => other,
    }
}

/// Turns IPv6 off for links that come after this in the namespace of the calling thread; lo is there already and keeps `::1`.
///
/// Sandboxes have no IPv6 way out, and the firewall drops it; this keeps the kernel from sending solicitations into the link and
/// programs from trying addresses that lead nowhere. Where it cannot be done, nothing breaks.
fn quiet_ipv6(link: &str) {
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
}
