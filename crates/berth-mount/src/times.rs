//! The times of an inode, and how a tree keeps them.

use std::time::SystemTime;

use berth_workspace::index::{from_nanos, to_nanos};

/// The times of one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) atime: SystemTime,
    pub(crate) mtime: SystemTime,
    pub(crate) ctime: SystemTime,
    /// Whether a person or tool set `mtime` (`touch -d`, `cp -a`): then the index keeps it.
    pub(crate) explicit: bool,
}

impl Times {
    pub(crate) fn at(time: SystemTime) -> Self {
        Self {
            atime: time,
            mtime: time,
            ctime: time,
            explicit: false,
        }
    }

    pub(crate) fn changed_now(&mut self) {
        let now = SystemTime::now();
        self.mtime = now;
        self.ctime = now;
        self.explicit = false;
    }
}

/// The same in half the space: nanoseconds since 1970, which is what the index can say too (1677 to 2262).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamps {
    atime: i64,
    mtime: i64,
    ctime: i64,
    explicit: bool,
}

impl From<Times> for Stamps {
    fn from(times: Times) -> Self {
        Self {
            atime: to_nanos(times.atime),
            mtime: to_nanos(times.mtime),
            ctime: to_nanos(times.ctime),
            explicit: times.explicit,
        }
    }
}

impl Stamps {
    pub(crate) fn get(&self) -> Times {
        Times {
            atime: from_nanos(self.atime),
            mtime: from_nanos(self.mtime),
            ctime: from_nanos(self.ctime),
            explicit: self.explicit,
        }
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Times)) {
        let mut times = self.get();
        change(&mut times);
        *self = times.into();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_come_back_to_the_nanosecond() {
        let before = UNIX_EPOCH - Duration::new(5, 7);
        let times = Times {
            atime: before,
            mtime: UNIX_EPOCH + Duration::new(4_102_444_800, 999_999_999),
            ctime: UNIX_EPOCH,
            explicit: true,
        };
        assert_eq!(Stamps::from(times).get(), times);
    }
}
