//! A sandbox on its way up: how far it has come and how long it may take for the rest.

use crate::failure::{FailKind, FailReason};
use crate::snapshot::AppState;

use super::{Limits, Moment, RunId, State, Wanted};

/// How far a sandbox on its way up has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Climb {
    /// Waits for its turn, because many start at once. Has no limit of its own: those before it have.
    Queued,
    /// Is being made.
    Creating,
    /// Copies its source.
    Copying,
    /// Installs its dependencies.
    Installing,
    /// Runs its start command.
    Starting,
    /// Listens, but its health path does not answer well yet.
    Unhealthy,
}

/// A sandbox on its way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rising {
    /// Which.
    pub run: RunId,
    /// What it will serve.
    pub wanted: Wanted,
    /// How far it has come.
    pub climb: Climb,
    /// When it is given up.
    pub deadline: Option<Moment>,
    /// When it was begun.
    pub since: Moment,
}

impl Rising {
    pub(super) fn new(run: RunId, wanted: Wanted, now: Moment) -> Self {
        Self {
            run,
            wanted,
            climb: Climb::Queued,
            deadline: None,
            since: now,
        }
    }

    /// The state's word for people.
    pub(super) fn phase(&self) -> AppState {
        match self.climb {
            Climb::Installing => AppState::Installing,
            Climb::Queued | Climb::Creating | Climb::Copying | Climb::Starting | Climb::Unhealthy => AppState::Starting,
        }
    }

    /// Why it is given up when its deadline passes.
    pub(super) fn too_late(&self, limits: &Limits) -> FailReason {
        match self.climb {
            Climb::Queued | Climb::Creating => {
                let seconds = limits.create.as_secs();
                FailReason::new(
                    FailKind::Sandbox,
                    format!("the sandbox was not made within {seconds} s"),
                )
            }
            Climb::Copying => {
                let seconds = limits.install.as_secs();
                FailReason::new(
                    FailKind::InstallTimeout,
                    format!("copying the source took longer than {seconds} s"),
                )
            }
            Climb::Installing => {
                let seconds = limits.install.as_secs();
                FailReason::new(
                    FailKind::InstallTimeout,
                    format!("the installation took longer than {seconds} s"),
                )
            }
            Climb::Starting => {
                let seconds = limits.start.as_secs();
                let text = format!("the app listened on no port within {seconds} s; it should listen on $PORT");
                FailReason::new(FailKind::NeverListened, text)
            }
            Climb::Unhealthy => {
                let seconds = limits.start.as_secs();
                let text = format!("the app listens, but its health path gave no good answer within {seconds} s");
                FailReason::new(FailKind::Unhealthy, text)
            }
        }
    }
}

impl State {
    pub(super) fn climbed(&mut self, now: Moment, run: RunId, climb: Climb) {
        let limits = self.limits;
        let rising = match &mut self.front {
            super::Front::Rising(rising) => rising,
            super::Front::Ready {
                successor: Some(rising),
                ..
            } => rising,
            _ => return,
        };
        if rising.run != run || climb <= rising.climb {
            return;
        }
        rising.deadline = match climb {
            Climb::Queued => None,
            Climb::Creating => Some(now + limits.create),
            Climb::Copying | Climb::Installing => Some(now + limits.install),
            Climb::Starting => Some(now + limits.start),
            // Same limit as starting: it listens early and is healthy in time, or it is not.
            Climb::Unhealthy => rising.deadline,
        };
        rising.climb = climb;
    }
}
