//! How long to wait between two LISTs.

use std::time::Duration;

/// The shortest pause: who edits elsewhere mostly edits again soon.
const LEAST: Duration = Duration::from_millis(400);
/// So long after a change the pause stays the shortest.
const BUSY: Duration = Duration::from_secs(10);
/// A LIST may take this part of the time: ten times as long as it took is waited.
const SHARE: u32 = 10;

/// The pause is the shortest while others change things; then it grows by half each time, up to the configured interval.
#[derive(Debug)]
pub(super) struct Pace {
    least: Duration,
    most: Duration,
    pause: Duration,
    /// What was waited since the last change.
    quiet: Duration,
}

/// What a LIST has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nothing new.
    Nothing,
    /// Others have changed something.
    Changes,
    /// Whatever it was: an event stream tells of changes, and LIST is only there to miss none.
    Told,
}

impl Pace {
    pub(super) fn new(most: Duration) -> Self {
        let least = LEAST.min(most);
        Self {
            least,
            most,
            pause: least,
            quiet: BUSY,
        }
    }

    /// The pause after a LIST that took `took`.
    pub(super) fn after(&mut self, shown: Shown, took: Duration) -> Duration {
        self.pause = match shown {
            Shown::Nothing if self.quiet < BUSY => self.least,
            Shown::Nothing => (self.pause * 3 / 2).min(self.most),
            Shown::Changes => self.least,
            Shown::Told => self.most,
        };
        let pause = self.pause.max(took.saturating_mul(SHARE)).min(self.most);
        self.quiet = match shown {
            Shown::Changes => Duration::ZERO,
            Shown::Nothing | Shown::Told => self.quiet.saturating_add(pause),
        };
        pause
    }

    /// The longest pause.
    pub(super) fn most(&self) -> Duration {
        self.most
    }

    /// The shortest pause.
    pub(super) fn least(&self) -> Duration {
        self.least
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    #[test]
    fn a_quiet_bucket_is_listed_ever_more_rarely_and_a_busy_one_without_much_pause() {
        let most = Duration::from_secs(15);
        let mut pace = Pace::new(most);
        let pauses: Vec<_> = (0..12).map(|_| pace.after(Shown::Nothing, QUICK)).collect();
        assert!(pauses.is_sorted(), "{pauses:?}");
        assert_eq!(pauses[11], most);
        assert_eq!(pace.after(Shown::Changes, QUICK), LEAST);
        let busy = (0..100)
            .take_while(|_| pace.after(Shown::Nothing, QUICK) == LEAST)
            .count();
        let (busy, wanted) = (LEAST * busy as u32, BUSY);
        assert!(busy >= wanted && busy <= wanted + 2 * LEAST, "{busy:?}");
        assert!(pace.after(Shown::Nothing, QUICK) < Duration::from_secs(2));
        assert_eq!(pace.after(Shown::Told, QUICK), most);
    }

    #[test]
    fn a_list_that_takes_long_is_not_sent_all_the_time_and_never_later_than_configured() {
        let mut pace = Pace::new(Duration::from_secs(15));
        let slow = Duration::from_millis(500);
        assert_eq!(pace.after(Shown::Changes, slow), Duration::from_secs(5));
        assert_eq!(
            pace.after(Shown::Changes, Duration::from_secs(9)),
            Duration::from_secs(15)
        );
    }

    #[test]
    fn an_interval_below_a_second_is_kept() {
        let mut pace = Pace::new(Duration::from_millis(50));
        assert_eq!(pace.after(Shown::Nothing, QUICK), Duration::from_millis(50));
    }
}
