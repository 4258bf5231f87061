//! IPv4 ranges, and what every sandbox of a subnet has its addresses from.
//!
//! ```text
//! subnet 10.213.0.0/16
//!   10.213.0.1        the gateway's address: DNS for every sandbox, on lo of the host
//!   10.213.0.2-.0.255 reserved
//!   10.213.1.0/31     slot 0: .0 the host's end of the link, .1 the sandbox's
//!   10.213.1.2/31     slot 1
//!   ...
//! ```

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Addresses kept out of the slots at the start of a subnet: a whole /24, so that a slot's address never looks like a gateway's.
const RESERVED: u32 = 256;
/// Beyond this many slots the user ids of the last ones would pass 2^31, which file systems and tools still trip over.
const MOST_SLOTS: u32 = 32_640;

/// A range of IPv4 addresses, `ADDRESS/PREFIX`. The address is the range's first: host bits are refused when parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    first: Ipv4Addr,
    prefix: u8,
}

/// Why a text is no [`Ipv4Net`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not of the form `ADDRESS/PREFIX`.
    #[error("`{0}` is not an IPv4 range; write it like 10.0.0.0/8 (one address: 10.0.0.7/32)")]
    Form(String),
    /// Bits are set behind the prefix.
    #[error("`{given}` has bits set behind its prefix; did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: String,
        /// The range that contains it.
        meant: Ipv4Net,
    },
}

impl Ipv4Net {
    /// The range of `prefix` bits that contains `address`.
    #[must_use]
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            first: Ipv4Addr::from(u32::from(address) & mask(prefix)),
            prefix,
        }
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    /// The number of leading bits that all addresses share.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in the range.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == u32::from(self.first)
    }

    /// Whether all its addresses can be those of hosts: not this network's, loopback, multicast or reserved.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        let last = self.nth(u32::try_from(self.size() - 1).unwrap_or(u32::MAX));
        let usable = |address: Ipv4Addr| (1..224).contains(&address.octets()[0]);
        let loopback = Self::containing(Ipv4Addr::LOCALHOST, 8);
        usable(self.first) && usable(last) && !loopback.contains(self.first) && !self.contains(Ipv4Addr::LOCALHOST)
    }

    /// How many addresses the range has.
    #[must_use]
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The address that all sandboxes of this subnet ask for DNS.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.nth(1)
    }

    /// How many slots the subnet has room for.
    #[must_use]
    pub fn slots(self) -> u32 {
        let pairs = self.size().saturating_sub(u64::from(RESERVED)) / 2;
        u32::try_from(pairs).unwrap_or(MOST_SLOTS).min(MOST_SLOTS)
    }

    /// The host's and the sandbox's end of the link of slot `index`, or `None` behind the last slot.
    #[must_use]
    pub fn slot(self, index: u32) -> Option<(Ipv4Addr, Ipv4Addr)> {
        (index < self.slots()).then(|| (self.nth(RESERVED + 2 * index), self.nth(RESERVED + 2 * index + 1)))
    }

    fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first).wrapping_add(offset))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Ipv4Net {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let form = || RangeError::Form(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if prefix > 32 {
            return Err(form());
        }
        let meant = Self::containing(address, prefix);
        if meant.first != address {
            return Err(RangeError::HostBits {
                given: text.to_owned(),
                meant,
            });
        }
        Ok(meant)
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = RangeError;

    fn try_from(text: String) -> Result<Self, RangeError> {
        text.parse()
    }
}

impl From<Ipv4Net> for String {
    fn from(net: Ipv4Net) -> Self {
        net.to_string()
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slots_start_behind_the_reserved_addresses_and_never_overlap() {
        let subnet: Ipv4Net = "10.213.0.0/16".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 213, 0, 1));
        assert_eq!(
            subnet.slot(0),
            Some((Ipv4Addr::new(10, 213, 1, 0), Ipv4Addr::new(10, 213, 1, 1)))
        );
        assert_eq!(subnet.slots(), 32_640);
        let (_, last) = subnet.slot(subnet.slots() - 1).unwrap();
        assert_eq!(last, Ipv4Addr::new(10, 213, 255, 255));
        assert_eq!(subnet.slot(subnet.slots()), None);
    }

    #[test]
    fn hosts_are_only_where_hosts_can_be() {
        for (range, hosts) in [
            ("10.213.0.0/16", true),
            ("198.18.0.0/15", true),
            ("127.0.0.0/16", false),
            ("126.0.0.0/7", false),
            ("0.0.0.0/0", false),
            ("0.1.0.0/16", false),
            ("224.1.0.0/16", false),
            ("255.255.0.0/16", false),
        ] {
            assert_eq!(range.parse::<Ipv4Net>().unwrap().is_unicast(), hosts, "{range}");
        }
    }

    #[test]
    fn a_mistake_is_answered_with_what_was_meant() {
        let said = "10.1.2.3/8".parse::<Ipv4Net>().unwrap_err().to_string();
        assert!(said.contains("10.0.0.0/8"), "{said}");
        for wrong in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "x/8", "10.0.0.0/-1"] {
            assert!(matches!(wrong.parse::<Ipv4Net>(), Err(RangeError::Form(_))), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_parsed_back(address: u32, prefix in 0u8..=32) {
            let net = Ipv4Net::containing(Ipv4Addr::from(address), prefix);
            prop_assert_eq!(net.to_string().parse::<Ipv4Net>().unwrap(), net);
            prop_assert!(net.contains(Ipv4Addr::from(address)));
        }

        #[test]
        fn every_slot_lies_in_its_subnet(address: u32, prefix in 8u8..=32, index: u32) {
            let net = Ipv4Net::containing(Ipv4Addr::from(address), prefix);
            if let Some((host, sandbox)) = net.slot(index) {
                prop_assert!(net.contains(host) && net.contains(sandbox));
                prop_assert_eq!(u32::from(host) + 1, u32::from(sandbox));
                prop_assert_eq!(u32::from(host) % 2, 0);
            }
        }
    }
}
