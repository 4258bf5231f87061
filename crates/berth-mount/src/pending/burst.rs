//! Standing back: while many changes come one after the other, nothing is sent for a moment.
//!
//! A checkout, an unpacking or a copy waits for the disk with each file, and sending takes the processor and the same disk
//! from it: on two cores `git clone` took nearly twice as long for it. All of it is in the journal meanwhile.

use std::time::{Duration, Instant};

/// A pause that ends a burst.
const PAUSE: Duration = Duration::from_millis(8);
/// Fewer batches than these are none: a save by hand, or by an editor, goes at once.
const MANY: u32 = 24;
/// For so long nothing is sent at most, however long the burst is.
const LONGEST: Duration = Duration::from_millis(400);

/// What waits already is sent rather than let grow.
const BACKLOG: usize = 2000;

/// Batches that came without a pause between them.
#[derive(Debug)]
pub(super) struct Burst {
    batches: u32,
    since: Instant,
    last: Instant,
}

impl Default for Burst {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            batches: 0,
            since: now,
            last: now,
        }
    }
}

impl Burst {
    /// A batch was entered.
    pub(super) fn goes_on(&mut self, now: Instant) {
        if now.duration_since(self.last) > PAUSE {
            self.batches = 0;
            self.since = now;
        }
        self.batches = self.batches.saturating_add(1);
        self.last = now;
    }

    /// Until when nothing is sent, if a batch comes no later; `None`: go on. `waiting`: how many keys wait to be sent.
    pub(super) fn stands_back(&self, now: Instant, waiting: usize) -> Option<Instant> {
        let end = (self.last + PAUSE).min(self.since + LONGEST);
        (self.batches >= MANY && now < end && waiting <= BACKLOG).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_stands_back_until_it_pauses_and_never_for_long() {
        let (mut burst, start) = (Burst::default(), Instant::now() + Duration::from_secs(1));
        let ms = |n| start + Duration::from_millis(n);
        burst.goes_on(ms(0));
        assert_eq!(burst.stands_back(ms(0), 100), None, "one save is no burst");
        for n in 1..=200 {
            burst.goes_on(ms(n));
        }
        assert_eq!(burst.stands_back(ms(200), 100), Some(ms(208)));
        assert_eq!(burst.stands_back(ms(200), BACKLOG + 1), None, "enough waits");
        assert_eq!(burst.stands_back(ms(208), 100), None, "it has paused");
        for n in 201..=500 {
            burst.goes_on(ms(n));
        }
        assert_eq!(burst.stands_back(ms(399), 100), Some(ms(400)));
        assert_eq!(burst.stands_back(ms(500), 100), None, "it lasts too long");
        burst.goes_on(ms(600));
        assert_eq!(burst.stands_back(ms(600), 100), None, "a new one");
    }
}
