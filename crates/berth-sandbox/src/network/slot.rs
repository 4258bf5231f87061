//! Slots: the place in the network that one sandbox has for its life.
//!
//! A slot is a number. From it follow the sandbox's address, the name of the link's end in the host, and the range of user ids
//! that the sandbox's own ids are mapped to, so that two sandboxes never share one of them while both live. Free slots are
//! handed out oldest first: the link of a sandbox that ended disappears a little after its last process (the kernel takes
//! network namespaces down in the background), and its name is not wanted again before many others were used.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::addresses::Ipv4Net;
use super::{Instance, NetworkError};

/// Between two sandboxes' user ids: each gets a whole 16-bit range, as container tools do.
const UIDS_PER_SLOT: u32 = 65_536;
/// The first user id given to a sandbox. `/etc/subuid` hands out ranges from 100 000 up, 65 536 for each person; a million
/// leaves room for the first thirteen people of a host, and the last slot ends below 2^31.
const FIRST_UID: u32 = 1_000_000;

/// What a keeper needs to know to wire its namespace: everything is decided here, so that the keeper only carries it out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotSpec {
    /// The slot's number.
    pub index: u32,
    /// `false`: the sandbox gets loopback only.
    pub enabled: bool,
    /// The sandbox's address, on `eth0`.
    pub address: Ipv4Addr,
    /// The host's end of the link: the sandbox's default route.
    pub gateway: Ipv4Addr,
    /// Where the sandbox asks for names.
    pub dns: Ipv4Addr,
    /// Name of the link's end in the host.
    pub host_link: String,
    /// Largest packet, as on the host's way out.
    pub mtu: u32,
}

/// A slot in use. Dropping it frees the number: keep it until the sandbox is gone.
#[derive(Debug)]
pub struct Slot {
    /// The slot's number.
    pub index: u32,
    /// The sandbox's address.
    pub address: Ipv4Addr,
    /// The host's end of the link.
    pub gateway: Ipv4Addr,
    spec: SlotSpec,
    table: Arc<SlotTable>,
}

impl Slot {
    /// What the keeper needs.
    #[must_use]
    pub fn spec(&self) -> SlotSpec {
        self.spec.clone()
    }

    /// The host's user id that the sandbox's 0 is mapped to; the sandbox has this one and the 65 535 after it.
    #[must_use]
    pub fn uid_base(&self) -> u32 {
        uid_base(self.index)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.table.free(self.index);
    }
}

/// The first of the 65 536 host user ids of slot `index`. Other slots' ranges do not touch it.
#[must_use]
pub fn uid_base(index: u32) -> u32 {
    FIRST_UID.saturating_add(index.saturating_mul(UIDS_PER_SLOT))
}

/// Which numbers are in use.
#[derive(Debug)]
pub(super) struct SlotTable {
    instance: Instance,
    subnet: Ipv4Net,
    enabled: bool,
    mtu: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: BTreeSet<u32>,
    /// Freed numbers, oldest first.
    freed: VecDeque<u32>,
    /// Numbers from here on were never used.
    fresh: u32,
}

impl SlotTable {
    pub(super) fn new(instance: Instance, subnet: Ipv4Net, enabled: bool, mtu: u32) -> Arc<Self> {
        Arc::new(Self {
            instance,
            subnet,
            enabled,
            mtu,
            state: Mutex::default(),
        })
    }

    /// Takes a number that nobody uses.
    pub(super) fn lease(self: &Arc<Self>) -> Result<Slot, NetworkError> {
        let index = {
            let mut state = self.state.lock();
            let index = state.next(self.subnet.slots());
            let index = index.ok_or(NetworkError::Full {
                subnet: self.subnet,
                slots: self.subnet.slots(),
            })?;
            state.used.insert(index);
            index
        };
        self.slot(index)
    }

    /// Takes the number that a sandbox found alive already has.
    pub(super) fn adopt(self: &Arc<Self>, index: u32) -> Result<Slot, NetworkError> {
        if index >= self.subnet.slots() {
            return Err(NetworkError::Foreign {
                index,
                subnet: self.subnet,
            });
        }
        if !self.state.lock().used.insert(index) {
            return Err(NetworkError::InUse { index });
        }
        self.slot(index)
    }

    /// The host ends of all slots in use.
    pub(super) fn links(&self) -> BTreeSet<String> {
        self.state
            .lock()
            .used
            .iter()
            .map(|&index| self.instance.link(index))
            .collect()
    }

    fn slot(self: &Arc<Self>, index: u32) -> Result<Slot, NetworkError> {
        let (gateway, address) = self.subnet.slot(index).ok_or(NetworkError::Foreign {
            index,
            subnet: self.subnet,
        })?;
        let spec = SlotSpec {
            index,
            enabled: self.enabled,
            address,
            gateway,
            dns: self.subnet.gateway(),
            host_link: self.instance.link(index),
            mtu: self.mtu,
        };
        Ok(Slot {
            index,
            address,
            gateway,
            spec,
            table: Arc::clone(self),
        })
    }

    fn free(&self, index: u32) {
        let mut state = self.state.lock();
        if state.used.remove(&index) {
            state.freed.push_back(index);
        }
    }
}

impl State {
    /// The next number: one never used while there is any, else the one free for longest. Numbers taken by adoption are stepped over.
    fn next(&mut self, slots: u32) -> Option<u32> {
        while self.fresh < slots {
            self.fresh += 1;
            if !self.used.contains(&(self.fresh - 1)) && !self.freed.contains(&(self.fresh - 1)) {
                return Some(self.fresh - 1);
            }
        }
        while let Some(index) = self.freed.pop_front() {
            if !self.used.contains(&index) {
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    fn table(subnet: &str) -> Arc<SlotTable> {
        SlotTable::new("t".parse().unwrap(), subnet.parse().unwrap(), true, 1500)
    }

    #[test]
    fn a_slot_says_its_addresses_and_its_link() {
        let table = table("10.213.0.0/16");
        let _first = table.lease().unwrap();
        let slot = table.lease().unwrap();
        let spec = slot.spec();
        assert_eq!((slot.index, spec.host_link.as_str()), (1, "t_0001"));
        assert_eq!(
            (spec.gateway, spec.address),
            (Ipv4Addr::new(10, 213, 1, 2), Ipv4Addr::new(10, 213, 1, 3))
        );
        assert_eq!(spec.dns, Ipv4Addr::new(10, 213, 0, 1));
        assert_eq!(slot.uid_base(), 1_065_536);
    }

    #[test]
    fn a_full_subnet_is_an_error_that_names_it_until_a_slot_is_freed() {
        let table = table("10.9.0.0/23");
        let mut held: Vec<_> = (0..128).map(|_| table.lease().unwrap()).collect();
        assert!(table.lease().unwrap_err().to_string().contains("10.9.0.0/23"));
        let freed = held.swap_remove(5).index;
        assert_eq!(table.lease().unwrap().index, freed);
    }

    #[test]
    fn an_adopted_slot_is_not_handed_out() {
        let table = table("10.213.0.0/16");
        let adopted = table.adopt(1).unwrap();
        assert!(matches!(table.adopt(1), Err(NetworkError::InUse { index: 1 })));
        let got: Vec<_> = (0..3).map(|_| table.lease().unwrap()).collect();
        assert_eq!(got.iter().map(|slot| slot.index).collect::<Vec<_>>(), [0, 2, 3]);
        drop(adopted);
        assert!(table.adopt(1).is_ok());
        assert!(matches!(table.adopt(40_000), Err(NetworkError::Foreign { .. })));
    }

    #[test]
    fn the_last_slots_user_ids_stay_below_two_to_the_31() {
        let last = "10.0.0.0/8".parse::<Ipv4Net>().unwrap().slots() - 1;
        assert!(uid_base(last) + (UIDS_PER_SLOT - 1) < 1 << 31);
    }

    proptest! {
        #[test]
        fn no_slot_is_ever_in_use_twice(acts in proptest::collection::vec((0u8..3, 0u32..130), 1..400)) {
            let table = table("10.9.0.0/23");
            let mut held: Vec<Slot> = Vec::new();
            for (act, which) in acts {
                match act {
                    0 => held.extend(table.lease().ok()),
                    1 => held.extend(table.adopt(which).ok()),
                    _ if held.is_empty() => {}
                    _ => { held.swap_remove(which as usize % held.len()); }
                }
                let distinct: BTreeSet<u32> = held.iter().map(|slot| slot.index).collect();
                prop_assert_eq!(distinct.len(), held.len());
                prop_assert_eq!(table.links().len(), held.len());
            }
            let free = 128 - held.len();
            let rest: Vec<_> = (0..free).map(|_| table.lease().unwrap()).collect();
            prop_assert_eq!(rest.len(), free);
            prop_assert!(table.lease().is_err());
        }
    }
}
