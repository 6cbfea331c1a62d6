//! Rollouts over fleets that behave as fleets do, from the first tick to the end.

use proptest::prelude::*;

use super::super::state::next;
use super::*;

const MINUTE: i64 = 60_000;

fn rules() -> Rules {
    Rules {
        health_timeout_ms: 30 * MINUTE,
        soak_ms: 5 * MINUTE,
        max_failure_percent: 20,
        min_failures: 2,
        min_success_percent: 90,
        auto_rollback: true,
        approve_batches: false,
        manual_start: false,
        skip_offline: false,
        budget: None,
        abandon_ms: 24 * 60 * MINUTE,
    }
}

/// What a device does once it is told to run the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// It is healthy after so many minutes.
    Good(i64),
    /// It rejects the version after so many minutes.
    Bad(i64),
    /// It is never heard of.
    Silent,
    /// It comes back after so many minutes, and is good.
    Late(i64),
    /// It is healthy in every other report.
    Flapping,
    /// It reports, and never gets there.
    Stuck,
    /// Somebody gives it another target.
    Leaves,
}

/// A fleet and its rollout in virtual time.
struct World {
    rollout: Rollout,
    natures: Vec<Nature>,
    /// When each was told last, and whether to go back.
    told: Vec<Option<(i64, bool)>>,
    /// The minute in which each one's own window opens.
    opens: Vec<i64>,
    now: i64,
    decisions: Vec<String>,
}

impl World {
    fn new(rules: Rules, batches: &[&[Nature]]) -> Self {
        let mut devices = Vec::new();
        let mut natures = Vec::new();
        for (batch, members) in batches.iter().enumerate() {
            for nature in *members {
                let id = format!("00000000-0000-4000-8000-{:012}", devices.len());
                devices.push(Device {
                    id: id.parse().unwrap(),
                    batch,
                    standing: Standing::Waiting,
                    sight: Sight::OnItsWay("it was not told".to_owned()),
                    reported_at: None,
                    is_online: !matches!(nature, Nature::Silent | Nature::Late(_)),
                    window: Window::Open,
                    group: None,
                });
                natures.push(*nature);
            }
        }
        let start = Timestamp::from_millis(0);
        Self {
            told: vec![None; natures.len()],
            opens: vec![0; natures.len()],
            rollout: Rollout {
                state: State::Pending,
                since: start,
                progressed_at: start,
                rules,
                devices,
                opened: 0,
                approved: 1,
                window: Window::Open,
                unavailable: BTreeMap::new(),
                forbidden: None,
            },
            natures,
            now: 0,
            decisions: Vec::new(),
        }
    }

    fn at(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    /// Every device reports once a minute, as it is.
    fn report(&mut self) {
        let now = self.at();
        for (n, device) in self.rollout.devices.iter_mut().enumerate() {
            let opens = Timestamp::from_millis(self.opens[n] * MINUTE);
            device.window = if now < opens {
                Window::Closed(Some(opens))
            } else {
                Window::Open
            };
            let Some((since, goes_back)) = self.told[n] else {
                continue;
            };
            let minutes = (self.now - since) / MINUTE;
            let (is_heard, sight) = match self.natures[n] {
                Nature::Silent => (false, Sight::Healthy),
                Nature::Late(after) => (minutes >= after, Sight::Healthy),
                _ if goes_back => (true, Sight::Healthy),
                Nature::Good(after) if minutes >= after => (true, Sight::Healthy),
                Nature::Bad(after) if minutes >= after => {
                    (true, Sight::Failed("it is bad".to_owned()))
                }
                Nature::Flapping if minutes % 2 == 0 => (true, Sight::Healthy),
                Nature::Leaves => (true, Sight::Elsewhere),
                Nature::Good(_) | Nature::Bad(_) | Nature::Flapping | Nature::Stuck => {
                    (true, Sight::OnItsWay("it pulls".to_owned()))
                }
            };
            device.is_online = is_heard;
            if is_heard {
                device.sight = sight;
                device.reported_at = Some(now);
            }
        }
    }

    fn exposed(&self) -> usize {
        let devices = self.rollout.devices.iter();
        devices
            .filter(|device| device.standing.is_exposed())
            .count()
    }

    /// Decides until there is nothing to do now.
    fn tick(&mut self) {
        for _ in 0..10_000 {
            let decision = decide(&self.rollout, self.at());
            self.decisions
                .push(format!("{} min: {decision:?}", self.now / MINUTE));
            let now = self.at();
            match decision {
                Decision::Wait(until, _) => {
                    let is_later = until.is_none_or(|until| until > now);
                    assert!(is_later, "it waits for what was: {}", self.story());
                    return;
                }
                Decision::Note(notes) => {
                    for (id, standing, _) in notes {
                        self.device(id).standing = standing;
                    }
                }
                Decision::OpenBatch => {
                    self.proved(self.rollout.opened);
                    self.rollout.opened += 1;
                }
                Decision::Update(devices) => self.tell(&devices, false),
                Decision::Return(devices) => self.tell(&devices, true),
                Decision::Turn(event, _) => {
                    self.rollout.state = next(self.rollout.state, event).unwrap();
                    self.rollout.since = now;
                }
            }
            self.rollout.progressed_at = now;
        }
        panic!("it never rests: {}", self.story());
    }

    fn tell(&mut self, devices: &[DeviceId], goes_back: bool) {
        assert!(!devices.is_empty());
        let (since, now) = (self.at(), self.now);
        for id in devices {
            let device = self.device(*id);
            if goes_back {
                assert!(device.standing.was_touched());
                device.standing = Standing::Returning { since };
            } else {
                let may = [Standing::Waiting, Standing::Skipped];
                assert!(may.contains(&device.standing), "told twice");
                assert_eq!(device.window, Window::Open, "told out of its window");
                device.standing = Standing::Updating {
                    since,
                    healthy_since: None,
                };
            }
            device.sight = Sight::OnItsWay("it was told".to_owned());
            device.reported_at = None;
            let n = self
                .rollout
                .devices
                .iter()
                .position(|device| device.id == *id);
            self.told[n.unwrap()] = Some((now, goes_back));
        }
    }

    /// Has failed and lost devices tried again, as people may ask; how many.
    fn retry(&mut self) -> usize {
        let now = self.at();
        let (state, opened) = (self.rollout.state, self.rollout.opened);
        let again = |device: &Device| retried(state, opened, (device.batch, &device.standing), now);
        let again: Vec<_> = self.rollout.devices.iter().map(again).collect();
        let mut many = 0;
        for (n, again) in again.into_iter().enumerate() {
            let Some((batch, standing)) = again else {
                continue;
            };
            many += 1;
            let device = &mut self.rollout.devices[n];
            device.batch = batch;
            if matches!(standing, Standing::Readying { .. }) {
                device.sight = Sight::OnItsWay("it was told".to_owned());
                device.reported_at = None;
                self.told[n] = Some((self.now, true));
                self.natures[n] = Good(1);
            }
            device.standing = standing;
        }
        many
    }

    fn device(&mut self, id: DeviceId) -> &mut Device {
        let mut devices = self.rollout.devices.iter_mut();
        devices.find(|device| device.id == id).unwrap()
    }

    /// Before a batch is opened, every one before it has proved itself.
    fn proved(&self, next: usize) {
        for batch in 0..next {
            let devices = self.rollout.devices.iter();
            let of_batch: Vec<_> = devices.filter(|device| device.batch == batch).collect();
            let verified = |device: &&&Device| device.standing == Standing::Verified;
            let many = of_batch.iter().filter(verified).count();
            let part = of_batch
                .iter()
                .filter(|device| device.standing.was_touched());
            let (part, percent) = (
                part.count(),
                usize::from(self.rollout.rules.min_success_percent),
            );
            assert!(
                part == 0 || (many > 0 && many * 100 >= part * percent),
                "batch {batch} proved nothing: {}",
                self.story()
            );
        }
    }

    /// Runs to the end, at most so many days.
    fn run(&mut self, days: i64) -> State {
        let end = self.now + days * 24 * 60 * MINUTE;
        let largest = self.rollout.devices.iter().map(|device| device.batch);
        let largest = largest.fold(BTreeMap::new(), |mut sizes, batch| {
            *sizes.entry(batch).or_insert(0) += 1;
            sizes
        });
        let most = largest.values().copied().max().unwrap_or(0);
        while self.now < end {
            self.report();
            self.tick();
            let lost = self.rollout.devices.iter();
            let lost = lost
                .filter(|device| device.standing == Standing::Lost)
                .count();
            assert!(self.exposed() <= most + lost, "{}", self.story());
            if !self.rollout.state.is_active() {
                return self.rollout.state;
            }
            self.now += MINUTE;
        }
        panic!("it never ends: {}", self.story());
    }

    fn many(&self, wanted: &Standing) -> usize {
        let devices = self.rollout.devices.iter();
        devices.filter(|device| device.standing == *wanted).count()
    }

    fn story(&self) -> String {
        let last = self.decisions.iter().rev().take(12).rev();
        last.cloned().collect::<Vec<_>>().join("\n")
    }
}

use Nature::{Bad, Flapping, Good, Late, Leaves, Silent, Stuck};

#[test]
fn a_good_version_goes_through_all_batches() {
    let mut world = World::new(rules(), &[&[Good(1)], &[Good(2), Good(3)], &[Good(1); 4]]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Verified), 7);
    // Three soaks at least: a batch waits for the one before it.
    assert!(world.now >= 3 * 5 * MINUTE, "{}", world.story());
}

#[test]
fn a_bad_version_ends_in_its_first_batch_and_everybody_goes_back() {
    let mut world = World::new(rules(), &[&[Bad(1)], &[Bad(1); 9]]);
    assert_eq!(world.run(1), State::RolledBack);
    assert_eq!(world.many(&Standing::Returned), 1);
    assert_eq!(world.many(&Standing::Waiting), 9);
}

#[test]
fn without_leave_to_go_back_it_waits_for_people_and_then_ends() {
    let rules = Rules {
        auto_rollback: false,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Bad(1), Bad(1), Good(1)]]);
    assert_eq!(world.run(3), State::Cancelled);
    assert_eq!(world.many(&Standing::Failed), 2);
}

#[test]
fn c26_one_device_of_many_does_not_turn_a_fleet_back() {
    let mut batch = vec![Good(1); 12];
    batch[5] = Flapping;
    let mut world = World::new(rules(), &[&batch, &[Good(1); 2]]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Failed), 1);
    assert_eq!(world.many(&Standing::Verified), 13);
}

#[test]
fn c25_a_batch_in_which_nobody_answers_is_no_success() {
    let mut world = World::new(rules(), &[&[Silent, Silent], &[Good(1)]]);
    assert_eq!(world.run(3), State::Cancelled);
    assert_eq!(world.many(&Standing::Lost), 2);
    assert_eq!(world.many(&Standing::Waiting), 1);
    // Also where devices that are offline are left out.
    let rules = Rules {
        skip_offline: true,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Silent, Silent], &[Good(1)]]);
    assert_eq!(world.run(3), State::Cancelled);
    assert_eq!(world.many(&Standing::Skipped), 2);
}

#[test]
fn c24_half_a_fleet_that_is_offline_is_left_out_where_the_policy_says_so() {
    let rules = Rules {
        skip_offline: true,
        ..rules()
    };
    let half = [Good(1), Silent, Good(1), Silent];
    let mut world = World::new(rules, &[&half, &half]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Skipped), 4);
    assert_eq!(world.many(&Standing::Verified), 4);
}

#[test]
fn c23_one_that_never_gets_there_fails_and_one_that_comes_late_gets_its_answer() {
    let rules = Rules {
        min_success_percent: 50,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Good(1), Good(1), Stuck, Late(45)], &[Good(1)]]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Failed), 1);
    assert_eq!(world.many(&Standing::Lost), 1);
    world.now += 60 * MINUTE;
    world.report();
    world.tick();
    assert_eq!(world.many(&Standing::Lost), 0);
    assert_eq!(world.many(&Standing::Verified), 4);
}

#[test]
fn one_that_has_just_gone_is_lost_and_turns_no_fleet_back() {
    let rules = || Rules {
        health_timeout_ms: MINUTE,
        soak_ms: 0,
        min_failures: 1,
        ..rules()
    };
    // It reports once that it is on its way. When its time is over, it still counts as online.
    let told = || {
        let mut world = World::new(rules(), &[&[Stuck], &[Good(1)]]);
        world.tick();
        world.now += MINUTE / 2;
        world.report();
        world.now += MINUTE;
        world.tick();
        assert_eq!(world.exposed(), 1, "{}", world.story());
        assert_eq!(world.rollout.state, State::Running);
        world
    };
    let mut gone = told();
    gone.now += 2 * MINUTE;
    gone.rollout.devices[0].is_online = false;
    gone.tick();
    assert_eq!(gone.many(&Standing::Lost), 1);
    assert_eq!(gone.rollout.state, State::Paused);
    // One that says after its time that it is not there failed, and so has one that only polls.
    let mut stuck = told();
    stuck.report();
    stuck.tick();
    assert_eq!(stuck.rollout.state, State::RollingBack);
    let mut mute = told();
    mute.now += 11 * MINUTE;
    mute.tick();
    assert_eq!(mute.rollout.state, State::RollingBack);
}

#[test]
fn c31_who_leaves_is_not_waited_for() {
    let mut world = World::new(rules(), &[&[Leaves, Good(1)], &[Leaves]]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Gone), 2);
}

#[test]
fn a_budget_holds_devices_of_an_open_batch_back() {
    let rules = Rules {
        budget: Some(Budget {
            label: "site".to_owned(),
            most: 1,
        }),
        ..rules()
    };
    let mut world = World::new(rules, &[&[Good(1); 4]]);
    for _ in 0..200 {
        world.report();
        world.tick();
        assert!(world.exposed() <= 1, "{}", world.story());
        world.now += MINUTE;
    }
    assert_eq!(world.rollout.state, State::Succeeded);
    // One that others use up never gets its turn, and ends all the same.
    let mut world = World::new(world.rollout.rules.clone(), &[&[Good(1)]]);
    world.rollout.unavailable = BTreeMap::from([(None, 1)]);
    assert_eq!(world.run(3), State::Cancelled);
}

#[test]
fn a_devices_own_window_keeps_it_waiting_and_its_batch_with_it() {
    let mut world = World::new(rules(), &[&[Good(1), Good(1)], &[Good(1)]]);
    world.opens[1] = 60;
    world.report();
    world.tick();
    assert_eq!(world.many(&Standing::Waiting), 2, "{}", world.story());
    // The one that is on its way answers before the window of the other opens.
    let Decision::Wait(Some(until), why) = decide(&world.rollout, world.at()) else {
        panic!("{}", world.story());
    };
    assert_eq!(why, "the windows of its devices are closed");
    assert_eq!(until.as_millis(), 30 * MINUTE);
    for minute in 1..60 {
        world.now = minute * MINUTE;
        world.report();
        world.tick();
    }
    assert_eq!(world.rollout.opened, 1, "{}", world.story());
    let Decision::Wait(Some(until), _) = decide(&world.rollout, world.at()) else {
        panic!("{}", world.story());
    };
    assert_eq!(until.as_millis(), 60 * MINUTE);
    assert_eq!(world.run(1), State::Succeeded);
    assert!(world.now >= 60 * MINUTE);
}

#[test]
fn a_window_that_never_opens_is_for_people_to_decide() {
    let mut world = World::new(rules(), &[&[Good(1)]]);
    world.rollout.state = State::Running;
    world.rollout.opened = 1;
    world.rollout.devices[0].window = Window::Closed(None);
    let Decision::Wait(Some(patience), why) = decide(&world.rollout, world.at()) else {
        panic!("it does not wait");
    };
    assert_eq!(why, "the windows of its devices never open");
    let late = decide(&world.rollout, patience);
    assert_eq!(late, Decision::Turn(Event::Pause, why));
}

#[test]
fn one_that_was_offline_catches_up_in_its_own_window() {
    let rules = Rules {
        skip_offline: true,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Good(1), Late(0)]]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Skipped), 1);
    world.rollout.devices[1].is_online = true;
    world.rollout.devices[1].window = Window::Closed(None);
    let over = decide(&world.rollout, world.at());
    assert!(matches!(over, Decision::Wait(..)), "{over:?}");
    world.rollout.devices[1].window = Window::Open;
    let late = world.rollout.devices[1].id;
    assert_eq!(
        decide(&world.rollout, world.at()),
        Decision::Update(vec![late])
    );
}

#[test]
fn a_closed_window_touches_nobody_and_batches_may_need_leave() {
    let mut world = World::new(rules(), &[&[Good(1)], &[Good(1)]]);
    world.rollout.window = Window::Closed(Some(Timestamp::from_millis(MINUTE)));
    world.tick();
    assert_eq!(world.rollout.state, State::Pending);
    let rules = Rules {
        approve_batches: true,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Good(1)], &[Good(1)]]);
    for _ in 0..60 {
        world.report();
        world.tick();
        world.now += MINUTE;
    }
    assert_eq!(world.rollout.opened, 1);
    world.rollout.approved = 2;
    assert_eq!(world.run(1), State::Succeeded);
}

#[test]
fn retrying_takes_failed_and_lost_devices_along_with_the_open_batch() {
    let mut world = World::new(rules(), &[&[Good(1); 12], &[Bad(1), Good(1)]]);
    world.natures[0] = Bad(1);
    assert_eq!(world.run(1), State::RolledBack, "{}", world.story());
    let mut world = World::new(rules(), &[&[Good(1); 12]]);
    world.natures[0] = Bad(1);
    assert_eq!(world.run(1), State::Succeeded);
    world.natures[0] = Good(1);
    assert_eq!(world.retry(), 1);
    world.rollout.state = next(State::Succeeded, Event::Retry).unwrap();
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Verified), 12);
}

#[test]
fn who_was_left_out_catches_up_and_never_more_than_a_batch_at_a_time() {
    let rules = Rules {
        skip_offline: true,
        ..rules()
    };
    let away = [Good(1), Good(1), Late(200), Late(200)];
    let mut world = World::new(rules, &[&away, &away, &away]);
    assert_eq!(world.run(1), State::Succeeded);
    assert_eq!(world.many(&Standing::Skipped), 6);
    for device in &mut world.rollout.devices {
        device.is_online = true;
    }
    world.tick();
    assert_eq!(world.exposed(), 4);
    for _ in 0..30 {
        world.natures.fill(Good(1));
        world.report();
        world.tick();
        assert!(world.exposed() <= 4);
        world.now += MINUTE;
    }
    assert_eq!(world.many(&Standing::Verified), 12, "{}", world.story());
    assert_eq!(world.rollout.state, State::Succeeded);
}

#[test]
fn who_was_left_out_stays_out_once_a_newer_version_is_there() {
    let rules = Rules {
        skip_offline: true,
        ..rules()
    };
    let mut world = World::new(rules, &[&[Good(1), Silent]]);
    assert_eq!(world.run(1), State::Succeeded);
    world.rollout.forbidden = Some("a newer one took its place".to_owned());
    world.natures.fill(Good(1));
    world.rollout.devices[1].is_online = true;
    world.tick();
    assert_eq!(world.many(&Standing::Skipped), 1);
}

#[test]
fn c45_an_approval_that_is_taken_back_stops_before_the_next_batch() {
    let mut world = World::new(rules(), &[&[Good(1)], &[Good(1)]]);
    world.tick();
    assert_eq!(world.rollout.opened, 1);
    world.rollout.forbidden = Some("it may not run any more".to_owned());
    world.tick();
    assert_eq!(world.rollout.state, State::Paused);
    assert_eq!(world.many(&Standing::Waiting), 1);
}

fn nature() -> impl Strategy<Value = Nature> {
    prop_oneof![
        6 => (0_i64..20).prop_map(Good),
        2 => (0_i64..20).prop_map(Bad),
        1 => Just(Silent),
        1 => (0_i64..200).prop_map(Late),
        1 => Just(Flapping),
        1 => Just(Stuck),
        1 => Just(Leaves),
    ]
}

prop_compose! {
    fn any_rules()(
        max_failure_percent in 0_u8..=100,
        min_failures in 0_usize..4,
        min_success_percent in 0_u8..=100,
        (auto_rollback, approve_batches, manual_start, skip_offline) in any::<(bool, bool, bool, bool)>(),
        budget in prop::option::of(1_usize..4),
    ) -> Rules {
        Rules {
            max_failure_percent, min_failures, min_success_percent, auto_rollback, approve_batches,
            manual_start, skip_offline,
            budget: budget.map(|most| Budget { label: "site".to_owned(), most }),
            ..rules()
        }
    }
}

proptest! {
    #[test]
    fn every_rollout_ends_and_never_exposes_more_than_its_open_batch(
        rules in any_rules(),
        batches in prop::collection::vec(prop::collection::vec(nature(), 1..6), 1..5),
        opens in prop::collection::vec(prop_oneof![2 => Just(0_i64), 1 => 0_i64..3_000], 20),
    ) {
        let batches: Vec<&[Nature]> = batches.iter().map(Vec::as_slice).collect();
        let mut world = World::new(rules, &batches);
        world.opens.copy_from_slice(&opens[..world.natures.len()]);
        let end = world.run(20);
        // What is rolled back left nobody with the new version.
        let touched = world.rollout.devices.iter().filter(|device| device.standing.was_touched());
        if end == State::RolledBack {
            prop_assert_eq!(touched.count(), 0, "{}", world.story());
        }
    }

    #[test]
    fn whatever_people_do_in_between_every_state_goes_on(
        rules in any_rules(),
        batches in prop::collection::vec(prop::collection::vec(nature(), 1..5), 1..4),
        events in prop::collection::vec((0_i64..90, 0_usize..Event::ALL.len()), 0..8),
    ) {
        let batches: Vec<&[Nature]> = batches.iter().map(Vec::as_slice).collect();
        let mut world = World::new(rules, &batches);
        for (minutes, event) in events {
            for _ in 0..minutes {
                world.report();
                world.tick();
                world.now += MINUTE;
            }
            // People cannot say that something is done.
            let event = Event::ALL[event];
            let is_fact = matches!(
                event,
                Event::Complete | Event::AllBack | Event::NotAllBack | Event::Expire
            );
            if !is_fact && let Ok(state) = next(world.rollout.state, event) {
                if event == Event::Retry {
                    world.retry();
                }
                world.rollout.state = state;
                world.rollout.since = world.at();
                world.rollout.progressed_at = world.at();
            }
        }
        world.run(20);
    }
}
