//! Patience with a server that cannot do it now, on top of the store's own three quick tries.

use std::time::Duration;

use berth_store::StoreError;
use tokio_util::sync::CancellationToken;

/// Tries of one request, each of which is up to three of the store's: some 10 s with the pauses.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Repeats what failed in passing.
///
/// # Errors
/// The last one, when it was in vain, or when trying again cannot help.
pub async fn patiently<T, W>(work: impl FnMut() -> W) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>>,
{
    repeated(FIRST_PAUSE, is_busy_or_gone, work).await
}

/// The same for the first requests of a run: nobody waits for a server that is not running, or for a wrong endpoint.
///
/// # Errors
/// As [`patiently`], and [`StoreError::Unreachable`] at once.
pub async fn at_first<T, W>(work: impl FnMut() -> W) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>>,
{
    repeated(FIRST_PAUSE, is_busy, work).await
}

fn is_busy(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. })
}

fn is_busy_or_gone(error: &StoreError) -> bool {
    is_busy(error) || matches!(error, StoreError::Unreachable { .. })
}

async fn repeated<T, W>(
    mut pause: Duration,
    is_passing: fn(&StoreError) -> bool,
    mut work: impl FnMut() -> W,
) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>>,
{
    for _ in 1..TRIES {
        match work().await {
            Err(error) if is_passing(&error) => {}
            other => return other,
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
    work().await
}

/// Why one file was not moved.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The transfer was called off.
    CalledOff,
    /// No other file would fare better.
    All(StoreError),
    /// This file alone.
    File(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { .. } => {
                Self::File("was changed by somebody else meanwhile; nothing was overwritten".into())
            }
            error if error.is_unavailable() => Self::All(error),
            StoreError::WrongKey { .. } | StoreError::Forbidden { .. } | StoreError::NoSuchBucket { .. } => {
                Self::All(error)
            }
            error => Self::File(berth_workspace::chain(&error)),
        }
    }
}

/// Work that can be dropped at any moment, until it is called off.
pub(crate) async fn until<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Trouble> {
    match cancel.run_until_cancelled(work).await {
        None => Err(Trouble::CalledOff),
        Some(done) => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::cell::Cell;

    use berth_store::Act;

    use super::*;

    fn busy() -> StoreError {
        StoreError::Unavailable {
            act: Act::Put,
            target: "s3://b/k".into(),
            endpoint: "e".into(),
            reason: "503".into(),
        }
    }

    #[tokio::test]
    async fn what_fails_in_passing_is_repeated_and_what_cannot_help_is_not() {
        let tries = Cell::new(0);
        let third = repeated(Duration::ZERO, is_busy_or_gone, || {
            tries.set(tries.get() + 1);
            let done = tries.get() == 3;
            async move { if done { Ok(7) } else { Err(busy()) } }
        });
        assert_eq!(third.await.unwrap(), 7);
        tries.set(0);
        let never = repeated(Duration::ZERO, is_busy_or_gone, || {
            tries.set(tries.get() + 1);
            async { Err::<(), _>(busy()) }
        });
        assert!(never.await.is_err());
        assert_eq!(tries.get(), TRIES);
        tries.set(0);
        let refused = repeated(Duration::ZERO, is_busy_or_gone, || {
            tries.set(tries.get() + 1);
            async {
                Err::<(), _>(StoreError::Conflict {
                    act: Act::Put,
                    bucket: "b".into(),
                    key: "k".into(),
                })
            }
        });
        assert!(refused.await.unwrap_err().is_conflict());
        assert_eq!(tries.get(), 1);
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_waited_for_only_once_it_was_there() {
        let gone = || StoreError::Unreachable {
            act: Act::Put,
            target: "s3://b/k".into(),
            endpoint: "e".into(),
            source: "refused".into(),
        };
        let tries = Cell::new(0);
        let ask = || {
            tries.set(tries.get() + 1);
            async { Err::<(), _>(gone()) }
        };
        assert!(repeated(Duration::ZERO, is_busy, ask).await.is_err());
        assert_eq!(tries.replace(0), 1);
        assert!(repeated(Duration::ZERO, is_busy_or_gone, ask).await.is_err());
        assert_eq!(tries.get(), TRIES);
    }
}
