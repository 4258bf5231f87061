//! Which datagrams were heard already, and which are too old to be heard at all.

use std::collections::HashMap;

/// Clocks of hosts may differ by this much, and no datagram travels for longer.
const WINDOW_MILLIS: u64 = 120_000;
/// Senders that are kept in mind: a daemon that starts again is a new one.
const SENDERS: usize = 256;
/// How far datagrams may overtake each other.
const BEHIND: u64 = 64;

/// The datagrams that were heard, for each sender.
#[derive(Debug, Default)]
pub(super) struct Heard {
    senders: HashMap<u64, Sender>,
}

#[derive(Debug, Clone, Copy)]
struct Sender {
    highest: u64,
    /// Bit n: `highest - n` was heard.
    below: u64,
    last: u64,
}

/// Why a datagram with a true signature is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Old {
    /// Its time is too far from ours.
    Stale,
    /// It was heard before.
    Repeated,
}

impl Heard {
    /// Whether this one is new; it counts as heard from then on.
    pub(super) fn is_new(&mut self, sender: u64, counter: u64, millis: u64, now: u64) -> Result<(), Old> {
        if millis.abs_diff(now) > WINDOW_MILLIS {
            return Err(Old::Stale);
        }
        self.make_room(sender, now);
        let known = self.senders.entry(sender).or_insert(Sender {
            highest: counter,
            below: 0,
            last: now,
        });
        known.last = now;
        if counter > known.highest {
            let ahead = counter - known.highest;
            known.below = if ahead >= BEHIND { 0 } else { known.below << ahead };
            known.highest = counter;
        }
        let back = known.highest - counter;
        if back >= BEHIND || known.below & (1 << back) != 0 {
            return Err(Old::Repeated);
        }
        known.below |= 1 << back;
        Ok(())
    }

    /// Forgets whoever was silent for so long that the time alone keeps old datagrams out; at the worst the most silent one.
    fn make_room(&mut self, sender: u64, now: u64) {
        if self.senders.len() < SENDERS || self.senders.contains_key(&sender) {
            return;
        }
        self.senders
            .retain(|_, known| now.saturating_sub(known.last) <= 2 * WINDOW_MILLIS);
        if self.senders.len() >= SENDERS
            && let Some(silent) = self.senders.iter().min_by_key(|(_, known)| known.last)
        {
            let silent = *silent.0;
            self.senders.remove(&silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_heard_once_and_in_any_order() {
        let mut heard = Heard::default();
        for counter in [5, 3, 4, 100, 99, 50] {
            assert_eq!(heard.is_new(1, counter, 1000, 1000), Ok(()), "{counter}");
            assert_eq!(heard.is_new(1, counter, 1000, 1000), Err(Old::Repeated), "{counter}");
        }
        assert_eq!(
            heard.is_new(1, 20, 1000, 1000),
            Err(Old::Repeated),
            "too far behind to tell"
        );
        assert_eq!(heard.is_new(2, 5, 1000, 1000), Ok(()), "another sender");
        assert_eq!(heard.is_new(1, u64::MAX, 1000, 1000), Ok(()));
    }

    #[test]
    fn an_old_datagram_is_never_heard() {
        let mut heard = Heard::default();
        let now = 10_000_000;
        assert_eq!(heard.is_new(1, 1, now - WINDOW_MILLIS - 1, now), Err(Old::Stale));
        assert_eq!(heard.is_new(1, 1, now + WINDOW_MILLIS + 1, now), Err(Old::Stale));
        assert_eq!(heard.is_new(1, 1, now - 1000, now), Ok(()));
    }

    #[test]
    fn senders_without_end_take_no_memory_without_end() {
        let mut heard = Heard::default();
        for sender in 0..10_000 {
            assert_eq!(heard.is_new(sender, 1, 1000, 1000 + sender), Ok(()));
        }
        assert!(heard.senders.len() <= SENDERS);
    }
}
