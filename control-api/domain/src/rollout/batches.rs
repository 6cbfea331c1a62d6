//! Owns who goes when: devices in batches, the chosen ones first, the others in an order that nobody can steer.
//!
//! Refuses a batch without a device, and to leave one out.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Digest;

/// A device that the rollout is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which.
    pub device: DeviceId,
    /// Its labels when the rollout is made.
    pub labels: BTreeMap<String, String>,
}

/// How many devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All that are left.
    All,
    /// So many.
    Count(NonZeroU32),
    /// So many of a hundred of all devices of the rollout, rounded up; 1 to 100.
    Percent(u8),
}

impl Size {
    /// In devices, of a rollout over so many.
    fn of(self, all: usize) -> usize {
        match self {
            Self::All => all,
            Self::Count(count) => usize::try_from(count.get()).unwrap_or(usize::MAX),
            Self::Percent(percent) => (all * usize::from(percent)).div_ceil(100).max(1),
        }
    }
}

/// Devices that go before the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The labels they have; none means any device.
    pub selector: BTreeMap<String, String>,
    /// How many of them.
    pub size: Size,
}

/// How a fleet is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The first batches, one each.
    pub stages: Vec<Stage>,
    /// The size of every batch after them.
    pub rest: Size,
}

/// A shape that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Nobody to go first, though the policy wants somebody to.
    #[error("no device has the labels of stage {stage}{}", words(labels))]
    EmptyStage {
        /// Its number, from 1.
        stage: usize,
        /// The labels.
        labels: BTreeMap<String, String>,
    },
    /// No device at all.
    #[error("it is for no device")]
    Nobody,
}

fn words(labels: &BTreeMap<String, String>) -> String {
    let pairs = labels.iter().map(|(name, value)| format!("{name}={value}"));
    let pairs: Vec<_> = pairs.collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!(" ({})", pairs.join(", "))
    }
}

/// Cuts a fleet into batches. The order inside a stage is by a hash of rollout and device: no device is always
/// the first, and the same rollout is always cut alike.
///
/// # Errors
/// As [`ShapeError`] says. Stages whose devices all went in stages before them are left out.
pub fn cut(
    rollout: u64,
    members: &[Member],
    shape: &Shape,
) -> Result<Vec<Vec<DeviceId>>, ShapeError> {
    if members.is_empty() {
        return Err(ShapeError::Nobody);
    }
    let mut waiting: Vec<&Member> = members.iter().collect();
    waiting.sort_by_cached_key(|member| rank(rollout, member.device));
    let mut batches = Vec::new();
    for (at, stage) in shape.stages.iter().enumerate() {
        let fits = |member: &Member| {
            let mut wanted = stage.selector.iter();
            wanted.all(|(name, value)| member.labels.get(name) == Some(value))
        };
        if !members.iter().any(fits) {
            return Err(ShapeError::EmptyStage {
                stage: at + 1,
                labels: stage.selector.clone(),
            });
        }
        let mut room = stage.size.of(members.len());
        let batch: Vec<_> = waiting
            .extract_if(.., |member| {
                let goes = room > 0 && fits(member);
                room -= usize::from(goes);
                goes
            })
            .map(|member| member.device)
            .collect();
        if !batch.is_empty() {
            batches.push(batch);
        }
    }
    let size = shape.rest.of(members.len());
    let rest = waiting.chunks(size);
    batches.extend(rest.map(|batch| batch.iter().map(|member| member.device).collect()));
    Ok(batches)
}

fn rank(rollout: u64, device: DeviceId) -> Digest {
    Digest::of(format!("{rollout}/{device}").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(many: usize) -> Vec<Member> {
        let member = |n: usize| Member {
            device: format!("00000000-0000-4000-8000-{n:012}").parse().unwrap(),
            labels: BTreeMap::from([(
                "ring".to_owned(),
                if n.is_multiple_of(10) {
                    "canary"
                } else {
                    "wide"
                }
                .to_owned(),
            )]),
        };
        (0..many).map(member).collect()
    }

    fn canary(size: Size) -> Stage {
        Stage {
            selector: BTreeMap::from([("ring".to_owned(), "canary".to_owned())]),
            size,
        }
    }

    fn sizes(many: usize, stages: Vec<Stage>, rest: Size) -> Vec<usize> {
        let batches = cut(7, &members(many), &Shape { stages, rest }).unwrap();
        batches.iter().map(Vec::len).collect()
    }

    const TWO: Size = Size::Count(NonZeroU32::new(2).unwrap());

    #[test]
    fn batches_are_as_large_as_asked_for_and_the_last_takes_what_is_left() {
        assert_eq!(sizes(6, Vec::new(), TWO), [2, 2, 2]);
        assert_eq!(sizes(5, Vec::new(), TWO), [2, 2, 1]);
        assert_eq!(sizes(5, Vec::new(), Size::All), [5]);
        assert_eq!(sizes(30, Vec::new(), Size::Percent(25)), [8, 8, 8, 6]);
        assert_eq!(sizes(3, Vec::new(), Size::Percent(1)), [1, 1, 1]);
        let any = Stage {
            selector: BTreeMap::new(),
            size: Size::Percent(10),
        };
        assert_eq!(
            sizes(100, vec![canary(TWO), any], Size::Percent(50)),
            [2, 10, 50, 38]
        );
    }

    #[test]
    fn who_is_chosen_goes_first() {
        let shape = Shape {
            stages: vec![canary(Size::All)],
            rest: Size::All,
        };
        let all = members(30);
        let batches = cut(1, &all, &shape).unwrap();
        let first: BTreeSet<_> = batches[0].iter().copied().collect();
        let chosen = [0, 10, 20].map(|n| all[n].device);
        assert_eq!(first, BTreeSet::from(chosen));
    }

    #[test]
    fn a_stage_for_nobody_is_refused_and_one_whose_devices_went_is_left_out() {
        let error = cut(
            1,
            &members(1)[..1],
            &Shape {
                stages: vec![Stage {
                    selector: BTreeMap::from([("ring".to_owned(), "none".to_owned())]),
                    size: Size::All,
                }],
                rest: Size::All,
            },
        );
        assert_eq!(
            error.unwrap_err().to_string(),
            "no device has the labels of stage 1 (ring=none)"
        );
        let twice = vec![canary(Size::All), canary(Size::All)];
        assert_eq!(sizes(10, twice, Size::All), [1, 9]);
        let shape = Shape {
            stages: Vec::new(),
            rest: Size::All,
        };
        assert_eq!(cut(1, &[], &shape), Err(ShapeError::Nobody));
    }

    #[test]
    fn another_rollout_begins_with_others() {
        let shape = Shape {
            stages: Vec::new(),
            rest: TWO,
        };
        let all = members(50);
        let first = |rollout| cut(rollout, &all, &shape).unwrap()[0].clone();
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    fn size() -> impl Strategy<Value = Size> {
        prop_oneof![
            Just(Size::All),
            (1_u32..60).prop_map(|n| Size::Count(NonZeroU32::new(n).unwrap())),
            (1_u8..=100).prop_map(Size::Percent),
        ]
    }

    proptest! {
        #[test]
        fn batches_part_the_fleet(
            many in 1_usize..80,
            rollout: u64,
            stages in prop::collection::vec((any::<bool>(), size()), 0..4),
            rest in size(),
        ) {
            let stage = |(is_canary, size)| Stage {
                selector: if is_canary { canary(Size::All).selector } else { BTreeMap::new() },
                size,
            };
            let shape = Shape { stages: stages.into_iter().map(stage).collect(), rest };
            let all = members(many);
            let batches = cut(rollout, &all, &shape).unwrap();
            prop_assert!(batches.iter().all(|batch| !batch.is_empty()));
            let went: Vec<_> = batches.concat();
            prop_assert_eq!(went.len(), many);
            let once: BTreeSet<_> = went.into_iter().collect();
            prop_assert_eq!(once.len(), many);
        }
    }
}
