//! Owns the states of a rollout and what each event does in each of them: one table, without a gap.

use serde::{Deserialize, Serialize};

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its window or for somebody to start it; no device was touched.
    Pending,
    /// Batches are opened one after the other.
    Running,
    /// No further device is touched until somebody decides.
    Paused,
    /// Every device that it touched goes back.
    RollingBack,
    /// Every batch is done.
    Succeeded,
    /// Every device that it touched is back.
    RolledBack,
    /// Devices were to go back, and not all of them came.
    Failed,
    /// Somebody ended it, or nobody came for too long; devices stay where they are.
    Cancelled,
    /// A newer version of the image took its place.
    Superseded,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Running,
        Self::Paused,
        Self::RollingBack,
        Self::Succeeded,
        Self::RolledBack,
        Self::Failed,
        Self::Cancelled,
        Self::Superseded,
    ];

    /// Whether it holds its place: no other rollout of the image may begin.
    pub fn is_active(self) -> bool {
        match self {
            Self::Pending | Self::Running | Self::Paused | Self::RollingBack => true,
            Self::Succeeded
            | Self::RolledBack
            | Self::Failed
            | Self::Cancelled
            | Self::Superseded => false,
        }
    }
}

/// What may happen to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its window opened, or somebody started it.
    Start,
    /// Somebody wants no further device touched, or the monitor needs somebody to decide.
    Pause,
    /// Somebody lets it go on.
    Resume,
    /// Somebody ends it where it is.
    Cancel,
    /// Somebody, or the policy after failures, wants devices back where they were.
    RollBack,
    /// Somebody wants failed and lost devices tried again.
    Retry,
    /// A newer version of the image is to be rolled out.
    Supersede,
    /// The last batch is done.
    Complete,
    /// Every device is back.
    AllBack,
    /// The time for going back is over, and some are not back.
    NotAllBack,
    /// It was paused, or waited for its start, for longer than anybody may think.
    Expire,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Pause,
        Self::Resume,
        Self::Cancel,
        Self::RollBack,
        Self::Retry,
        Self::Supersede,
        Self::Complete,
        Self::AllBack,
        Self::NotAllBack,
        Self::Expire,
    ];
}

/// An event that means nothing in a state: what to say to whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Meaningless(pub &'static str);

/// The table.
///
/// # Errors
/// [`Meaningless`], with what is so instead.
pub fn next(state: State, event: Event) -> Result<State, Meaningless> {
    use Event as E;
    use State as S;
    let no = |why| Err(Meaningless(why));
    match (state, event) {
        (S::Pending, E::Start) | (S::Paused, E::Resume | E::Retry) | (S::Succeeded, E::Retry) => {
            Ok(S::Running)
        }
        (S::Pending | S::Running, E::Pause) => Ok(S::Paused),
        (S::Pending | S::Running | S::Paused | S::RollingBack, E::Cancel)
        | (S::Pending | S::Paused, E::Expire) => Ok(S::Cancelled),
        (S::Running | S::Paused | S::Succeeded | S::Cancelled, E::RollBack)
        | (S::Failed, E::Retry) => Ok(S::RollingBack),
        (S::Pending | S::Running | S::Paused | S::RollingBack, E::Supersede) => Ok(S::Superseded),
        (S::Pending | S::Running, E::Complete) => Ok(S::Succeeded),
        (S::RollingBack, E::AllBack) => Ok(S::RolledBack),
        (S::RollingBack, E::NotAllBack) => Ok(S::Failed),

        (S::Pending, E::RollBack) => no("no device was touched yet: cancel it"),
        (S::Pending, E::Resume | E::Retry) => no("it has not begun: start it"),
        (S::Running, E::Start | E::Resume | E::Retry) => no("it runs already"),
        (S::Paused, E::Start) => no("it is paused: resume it"),
        (S::Paused, E::Pause) => no("it is paused already"),
        (S::RollingBack, E::RollBack) => no("it is rolled back already"),
        (S::RollingBack, E::Start | E::Pause | E::Resume | E::Retry) => {
            no("it is being rolled back: cancelling it leaves devices where they are")
        }
        (S::Succeeded, E::Start | E::Pause | E::Resume | E::Cancel) => {
            no("it is over: it may be rolled back")
        }
        (S::RolledBack, _) => no("it is over: every device is back"),
        (S::Superseded, _) => no("it is over: a newer one took its place"),
        (S::Failed, _) => no("it is over, and devices are not back: retry"),
        (S::Cancelled, _) => no("it was cancelled: it may be rolled back"),
        (S::Pending | S::Running | S::Paused, E::AllBack | E::NotAllBack)
        | (S::Running | S::RollingBack | S::Succeeded, E::Expire)
        | (S::Paused | S::RollingBack, E::Complete)
        | (S::Succeeded, E::Supersede | E::Complete | E::AllBack | E::NotAllBack) => {
            no("this does not happen to it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_touches_no_device_again_unless_somebody_asks_for_it() {
        for state in State::ALL.into_iter().filter(|state| !state.is_active()) {
            for event in Event::ALL {
                let asked_for = matches!(event, Event::Retry | Event::RollBack);
                if let Ok(then) = next(state, event) {
                    assert!(
                        asked_for && then.is_active(),
                        "{state:?} {event:?} {then:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn whatever_is_active_can_be_ended() {
        for state in State::ALL.into_iter().filter(|state| state.is_active()) {
            assert_eq!(
                next(state, Event::Cancel),
                Ok(State::Cancelled),
                "{state:?}"
            );
            assert_eq!(next(state, Event::Supersede), Ok(State::Superseded));
        }
    }

    #[test]
    fn devices_go_back_only_from_where_some_may_have_gone() {
        let back = |state| next(state, Event::RollBack);
        assert!(back(State::Pending).is_err());
        for state in [
            State::Running,
            State::Paused,
            State::Succeeded,
            State::Cancelled,
        ] {
            assert_eq!(back(state), Ok(State::RollingBack));
        }
    }
}
