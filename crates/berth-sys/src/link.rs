//! Network links: the one thing about them that rtnetlink cannot ask.
//!
//! When the second end of a veth pair is brought up, the first one's carrier comes on, but the kernel lets it send only after a
//! work item of its own (`linkwatch`) has run; until then its packets are dropped without a word. That is mostly a matter of
//! microseconds, yet while the kernel takes a namespace down it can be half a second, and a first SYN lost costs an app a whole
//! one. Asking the link's state by ethtool makes the kernel do that work at once, before it answers.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `ETHTOOL_GLINK` of linux/ethtool.h: get the link's state.
const ETHTOOL_GLINK: u32 = 0x0000_000a;
/// `SIOCETHTOOL` of linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Has the kernel finish what is pending about link `name` of the calling thread's network namespace; whether it has a carrier.
///
/// # Errors
/// `ENODEV` if there is no such link; `EOPNOTSUPP` for kinds that cannot be asked; `EINVAL` for a name that is too long.
pub fn settle(name: &str) -> io::Result<bool> {
    // SAFETY: ifreq is plain data for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let mut value = EthtoolValue {
        cmd: ETHTOOL_GLINK,
        data: 0,
    };
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let asked = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the socket is open, the name ends in a zero byte (it is shorter than its place, which was zeroed), and ETHTOOL_GLINK
    // reads and writes exactly one ethtool_value behind ifru_data, which lives until after the call.
    let done = unsafe { libc::ioctl(asked.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if done == 0 {
        Ok(value.data != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        assert_eq!(
            settle("no-such-link").map_err(|error| error.raw_os_error()),
            Err(Some(libc::ENODEV))
        );
        assert_eq!(
            settle(&"x".repeat(16)).map_err(|error| error.raw_os_error()),
            Err(Some(libc::EINVAL))
        );
    }
}
