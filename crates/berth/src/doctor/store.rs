//! Whether S3 answers, and whether its clock and ours agree: a signature older than 15 minutes is refused by every server.

use std::time::{Duration, SystemTime};

use time::{OffsetDateTime, PrimitiveDateTime, macros::format_description};

use super::{Check, StoreAnswer};

/// S3 servers refuse requests from a clock that is further off.
const REFUSED: Duration = Duration::from_secs(15 * 60);
/// From here on, times of files seen on the mount begin to confuse tools such as make and rsync.
const CONFUSING: Duration = Duration::from_secs(30);
/// An answer slower than this makes the mount feel slow.
const SLOW: Duration = Duration::from_millis(500);

pub(super) fn checks(ask: &dyn Fn() -> Result<StoreAnswer, String>) -> Vec<Check> {
    match ask() {
        Err(error) => vec![Check::fail(
            "S3",
            error,
            "see that the endpoint is right and reachable; the embedded server answers only while `berth serve` runs",
        )],
        Ok(answer) => vec![reachable(answer.took), clock(answer.date.as_deref(), answer.received)],
    }
}

fn reachable(took: Duration) -> Check {
    let found = format!("answers in {} ms", took.as_millis());
    if took > SLOW {
        Check::warn("S3", found, "use a server or region that is nearer")
    } else {
        Check::ok("S3", found)
    }
}

fn clock(date: Option<&str>, received: SystemTime) -> Check {
    let Some(theirs) = date.and_then(http_date) else {
        return Check::warn(
            "clock",
            "S3 does not say what time it is",
            "compare `date -u` with a clock you trust",
        );
    };
    let ahead = received.duration_since(theirs);
    let off = ahead.clone().unwrap_or_else(|error| error.duration());
    let direction = if ahead.is_ok() { "ahead of" } else { "behind" };
    let found = format!("{} s {direction} that of S3", off.as_secs());
    let mend = "let the host keep time: timedatectl set-ntp true, or install chrony";
    if off >= REFUSED {
        Check::fail("clock", format!("{found}: requests are refused"), mend)
    } else if off >= CONFUSING {
        Check::warn("clock", found, mend)
    } else {
        Check::ok("clock", "agrees with that of S3")
    }
}

/// A date as HTTP writes it, `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    let parsed: OffsetDateTime = PrimitiveDateTime::parse(text.trim(), &format).ok()?.assume_utc();
    Some(parsed.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::Status;
    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const SECONDS: u64 = 784_111_777;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        let at = |seconds| clock(Some(DATE), SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(SECONDS + 2).status, Status::Ok);
        assert_eq!(
            (at(SECONDS + 60).status, at(SECONDS + 60).found),
            (Status::Warn, "60 s ahead of that of S3".into())
        );
        assert_eq!(at(SECONDS - 1000).status, Status::Fail);
        assert!(at(SECONDS - 1000).found.starts_with("1000 s behind"));
    }

    #[test]
    fn a_missing_or_odd_date_is_no_reason_to_fail() {
        for date in [None, Some(""), Some("yesterday"), Some("1994-11-06T08:49:37Z")] {
            assert_eq!(clock(date, SystemTime::now()).status, Status::Warn);
        }
    }

    #[test]
    fn a_server_that_does_not_answer_is_a_failure_with_what_it_said() {
        let checks = checks(&|| Err("connection refused".into()));
        assert_eq!((checks.len(), checks[0].found.as_str()), (1, "connection refused"));
        assert_eq!(reachable(Duration::from_secs(2)).status, Status::Warn);
    }
}
