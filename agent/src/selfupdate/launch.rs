//! Owns which of the agent's programs is started. Pure: what is remembered and what is seen in, a choice out.
//!
//! Whatever is remembered, the installed program is the last resort, and it is reached in a bounded number
//! of starts.

use holdfast_proto::time::Timestamp;

use super::slots::{Begun, Came, Package, Place, Slots};

/// How long a release has to prove itself before the kernel ends it.
pub const TRIAL_SECONDS: u32 = 40;
/// A trial that a power cut ended is begun again; so often that it is no power cut is too often.
pub const MAX_TRIES: u32 = 3;
/// A confirmed release that was started so often and not once seen to work is given up.
pub const MAX_STARTS: u32 = 5;

/// What is seen at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// The installed program, if it is not the remembered one any more.
    pub installed: Option<Package>,
    /// The kernel's name for this start of the machine, and how long ago that was.
    pub moment: Begun,
    /// The wall clock.
    pub now: Timestamp,
    /// Why the kernel could not end a release that hangs, if it could not.
    pub lacks_deadline: Option<String>,
}

/// What is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The installed program.
    Package,
    /// A confirmed release.
    Slot(Place),
    /// A release on trial: what is remembered must be on the disk before it is started.
    Trial(Place),
}

/// Chooses, and says what is to be remembered.
pub fn choose(before: &Slots, start: &Start) -> (Slots, Choice) {
    let mut slots = before.clone();
    if let Some(installed) = &start.installed {
        supersede(&mut slots, installed, start.now);
        return (slots, Choice::Package);
    }
    if let Some(mut trial) = slots.trial.take() {
        let Some(reason) = verdict(trial.begun.as_ref(), trial.tries, start) else {
            trial.begun = Some(start.moment.clone());
            trial.tries += 1;
            let place = trial.place;
            slots.trial = Some(trial);
            return (slots, Choice::Trial(place));
        };
        slots.fail(&trial.release, reason, start.now);
    }
    let choice = confirmed(&mut slots, start.now);
    (slots, choice)
}

/// What is started when the choice could not be, and what is remembered then.
pub fn after_failure(before: &Slots, choice: Choice, why: &str, now: Timestamp) -> (Slots, Choice) {
    let mut slots = before.clone();
    let reason = format!("it could not be executed: {why}");
    match choice {
        Choice::Package => (slots, Choice::Package),
        Choice::Trial(_) => {
            if let Some(trial) = slots.trial.take() {
                slots.fail(&trial.release, reason, now);
            }
            let choice = confirmed(&mut slots, now);
            (slots, choice)
        }
        Choice::Slot(_) => {
            if let Some(current) = slots.current.take() {
                slots.fail(&current.release, reason, now);
            }
            (slots, Choice::Package)
        }
    }
}

/// What is started when a trial cannot be written down: it is begun another time.
pub fn without_trial(before: &Slots) -> Choice {
    match &before.current {
        Some(current) if current.place != Place::Package => Choice::Slot(current.place),
        Some(_) | None => Choice::Package,
    }
}

/// Why a trial is not begun; none if it is.
fn verdict(begun: Option<&Begun>, tries: u32, start: &Start) -> Option<String> {
    if let Some(begun) = begun
        && begun.boot == start.moment.boot
    {
        let lived_ms = start.moment.uptime_ms.saturating_sub(begun.uptime_ms);
        // It is ended at its last second, and started again some seconds later.
        let was_ended = lived_ms >= u64::from(TRIAL_SECONDS - 1) * 1_000;
        return Some(if was_ended {
            format!("it was not ready within {TRIAL_SECONDS} s")
        } else {
            "it died before it was ready".to_owned()
        });
    }
    if tries >= MAX_TRIES {
        return Some(format!("its trial was cut off {tries} times"));
    }
    start.lacks_deadline.clone()
}

fn confirmed(slots: &mut Slots, now: Timestamp) -> Choice {
    let Some(mut current) = slots.current.take() else {
        return Choice::Package;
    };
    if current.place == Place::Package {
        slots.current = Some(current);
        return Choice::Package;
    }
    if current.starts >= MAX_STARTS {
        let reason = format!(
            "it was started {} times and not seen to work",
            current.starts
        );
        slots.fail(&current.release, reason, now);
        return Choice::Package;
    }
    current.starts += 1;
    let place = current.place;
    slots.current = Some(current);
    Choice::Slot(place)
}

/// Somebody installed another program: it counts from now on, until the target names another release.
fn supersede(slots: &mut Slots, installed: &Package, now: Timestamp) {
    slots.package = Some(installed.clone());
    slots.trial = None;
    if let Some(current) = slots.current.take() {
        let reason = "another program was installed on the device";
        slots.note(&current.release, Came::Superseded, Some(reason), now);
        slots.superseded = Some(current.release);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::slots::tests::release;
    use super::super::slots::{Current, Stamp, Trial};
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn moment(boot: &str, seconds: u64) -> Begun {
        Begun {
            boot: boot.to_owned(),
            uptime_ms: seconds * 1_000,
        }
    }

    fn start(boot: &str, seconds: u64) -> Start {
        Start {
            installed: None,
            moment: moment(boot, seconds),
            now: NOW,
            lacks_deadline: None,
        }
    }

    fn package(inode: u64) -> Package {
        Package {
            stamp: Stamp {
                device: 1,
                inode,
                size: 3,
                modified: (4, 5),
            },
            sha256: inode.to_string(),
        }
    }

    fn with_trial(begun: Option<Begun>, tries: u32) -> Slots {
        Slots {
            package: Some(package(1)),
            current: Some(Current {
                place: Place::A,
                release: release("1"),
                starts: 0,
            }),
            trial: Some(Trial {
                place: Place::B,
                release: release("2"),
                tries,
                begun,
            }),
            ..Slots::default()
        }
    }

    fn reason(slots: &Slots) -> &str {
        let failed = slots.failed.as_ref().expect("it failed");
        assert_eq!(failed.identity, release("2").identity);
        &failed.reason
    }

    #[test]
    fn with_nothing_remembered_the_installed_program_runs() {
        let (slots, choice) = choose(&Slots::default(), &start("boot", 9));
        assert_eq!((slots, choice), (Slots::default(), Choice::Package));
    }

    #[test]
    fn a_new_trial_is_marked_as_begun() {
        let (slots, choice) = choose(&with_trial(None, 0), &start("boot", 9));
        assert_eq!(choice, Choice::Trial(Place::B));
        let trial = slots.trial.expect("it goes on");
        assert_eq!((trial.tries, trial.begun), (1, Some(moment("boot", 9))));
        assert_eq!(slots.failed, None);
    }

    #[test]
    fn a_trial_that_was_begun_and_did_not_end_failed() {
        let before = with_trial(Some(moment("boot", 9)), 1);
        let (slots, choice) = choose(&before, &start("boot", 12));
        assert_eq!(choice, Choice::Slot(Place::A));
        assert_eq!(reason(&slots), "it died before it was ready");
        assert_eq!(slots.trial, None);
        let (slots, _) = choose(&before, &start("boot", 54));
        assert_eq!(reason(&slots), "it was not ready within 40 s");
    }

    #[test]
    fn a_trial_that_a_power_cut_ended_is_begun_again_a_bounded_number_of_times() {
        let mut slots = with_trial(None, 0);
        for boot in 0..MAX_TRIES {
            let (after, choice) = choose(&slots, &start(&boot.to_string(), 9));
            assert_eq!(choice, Choice::Trial(Place::B));
            slots = after;
        }
        let (slots, choice) = choose(&slots, &start("last", 9));
        assert_eq!(choice, Choice::Slot(Place::A));
        assert_eq!(reason(&slots), "its trial was cut off 3 times");
    }

    #[test]
    fn without_a_deadline_no_trial_is_begun() {
        let deaf = Start {
            lacks_deadline: Some("SIGALRM is blocked".to_owned()),
            ..start("boot", 9)
        };
        let (slots, choice) = choose(&with_trial(None, 0), &deaf);
        assert_eq!(choice, Choice::Slot(Place::A));
        assert_eq!(reason(&slots), "SIGALRM is blocked");
    }

    #[test]
    fn a_confirmed_release_that_is_never_seen_to_work_is_given_up() {
        let mut slots = with_trial(None, 0);
        slots.trial = None;
        for _ in 0..MAX_STARTS {
            let (after, choice) = choose(&slots, &start("boot", 9));
            assert_eq!(choice, Choice::Slot(Place::A));
            slots = after;
        }
        let (slots, choice) = choose(&slots, &start("boot", 9));
        assert_eq!(choice, Choice::Package);
        let failed = slots.failed.expect("it was given up");
        assert_eq!(failed.identity, release("1").identity);
        assert_eq!(slots.current, None);
    }

    #[test]
    fn another_installed_program_wins_over_every_release() {
        for trial in [None, Some(moment("boot", 9))] {
            let before = with_trial(trial, 1);
            let changed = Start {
                installed: Some(package(2)),
                ..start("boot", 12)
            };
            let (slots, choice) = choose(&before, &changed);
            assert_eq!(choice, Choice::Package);
            assert_eq!((slots.trial, slots.current), (None, None));
            assert_eq!(slots.failed, None, "nobody knows how it would have ended");
            assert_eq!(slots.superseded, Some(release("1")));
            assert_eq!(slots.package, Some(package(2)));
        }
    }

    #[test]
    fn what_cannot_be_executed_gives_way_to_the_one_before_it() {
        let before = with_trial(Some(moment("boot", 9)), 1);
        let why = "Exec format error";
        let (slots, choice) = after_failure(&before, Choice::Trial(Place::B), why, NOW);
        assert_eq!(choice, Choice::Slot(Place::A));
        assert_eq!(
            reason(&slots),
            "it could not be executed: Exec format error"
        );
        let (slots, choice) = after_failure(&slots, choice, why, NOW);
        assert_eq!(choice, Choice::Package);
        assert_eq!((slots.current, slots.trial), (None, None));
        let again = after_failure(&Slots::default(), Choice::Package, why, NOW);
        assert_eq!(again, (Slots::default(), Choice::Package));
    }

    fn any_place() -> impl Strategy<Value = Place> {
        prop_oneof![Just(Place::Package), Just(Place::A), Just(Place::B)]
    }

    prop_compose! {
        fn any_slots()(
            current in prop::option::of((any_place(), 0_u32..9)),
            trial in prop::option::of((any_place(), 0_u32..9, prop::option::of(0_u64..3))),
        ) -> Slots {
            Slots {
                package: Some(package(1)),
                current: current.map(|(place, starts)| Current { place, release: release("1"), starts }),
                trial: trial.map(|(place, tries, boot)| Trial {
                    place,
                    release: release("2"),
                    tries,
                    begun: boot.map(|boot| moment(&boot.to_string(), 9)),
                }),
                ..Slots::default()
            }
        }
    }

    proptest! {
        /// Programs that always die: after a bounded number of starts the installed one runs, each start on
        /// the same boot or another one, executed or not.
        #[test]
        fn the_installed_program_is_always_reached(
            first in any_slots(),
            starts in prop::collection::vec((0_u64..3, any::<bool>()), 12),
        ) {
            let mut slots = first;
            let mut reached = false;
            for (boot, executes) in starts {
                let (after, choice) = choose(&slots, &start(&boot.to_string(), 20));
                slots = after;
                match choice {
                    Choice::Package => { reached = true; break; }
                    _ if executes => {}
                    choice => slots = after_failure(&slots, choice, "no", NOW).0,
                }
            }
            prop_assert!(reached, "{slots:?}");
        }

        /// A release that failed is never chosen again by itself, and one on trial was marked as begun.
        #[test]
        fn a_trial_is_never_begun_twice_on_one_boot(slots in any_slots(), boot in 0_u64..3) {
            let start = start(&boot.to_string(), 20);
            let (after, choice) = choose(&slots, &start);
            if let Choice::Trial(place) = choice {
                let trial = after.trial.as_ref().expect("it is remembered");
                prop_assert_eq!(trial.place, place);
                prop_assert_eq!(trial.begun.as_ref(), Some(&start.moment));
                let (last, choice) = choose(&after, &start);
                prop_assert!(!matches!(choice, Choice::Trial(_)));
                prop_assert!(last.failed.is_some());
            } else {
                prop_assert_eq!(after.trial, None);
            }
        }
    }
}
