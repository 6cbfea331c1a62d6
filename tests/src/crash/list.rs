//! The list of all points: always in the same order for the same recordings, so that a run can be
//! filtered, sampled and taken up again in the middle.

use std::collections::BTreeMap;

use super::point::{Kind, Moment, Place, Point};
use super::run::Recording;
use super::scenario::Scenario;

/// Every point that a recording shows.
pub fn of(scenario: Scenario, recording: &Recording) -> Vec<Point> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places = Vec::new();
    for shape in &recording.calls {
        let nth = seen.entry(shape).or_default();
        *nth += 1;
        let mut moments = vec![Moment::Before, Moment::After];
        if shape == "POST /images/create" {
            moments.push(Moment::Done);
        }
        for moment in moments {
            let (shape, nth) = (shape.clone(), *nth);
            places.push(Place::Call { shape, nth, moment });
        }
    }
    let mut points = Vec::new();
    for kind in [Kind::Agent, Kind::Engine, Kind::Power] {
        points.extend(places.iter().cloned().map(|place| Point {
            scenario,
            kind,
            place,
        }));
    }
    for (name, count) in &recording.syscalls {
        points.extend((1..=*count).map(|nth| Point {
            scenario,
            kind: Kind::Syscall,
            place: Place::Syscall {
                name: name.clone(),
                nth,
            },
        }));
    }
    points
}

/// At most so many points, the same number of each kind where it has that many, evenly spread.
pub fn sample(points: &[Point], most: usize) -> Vec<Point> {
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| points.iter().any(|point| point.kind == *kind))
        .collect();
    let mut chosen = Vec::new();
    let mut left = most;
    for (index, kind) in kinds.iter().enumerate() {
        let of_kind: Vec<&Point> = points.iter().filter(|point| point.kind == *kind).collect();
        let share = (left / (kinds.len() - index)).min(of_kind.len());
        left -= share;
        // The middle of each part: the ends of a list are the least telling.
        let places = (0..share).map(|part| (2 * part + 1) * of_kind.len() / (2 * share));
        chosen.extend(places.map(|place| of_kind[place].clone()));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        let calls = [
            "POST /images/create",
            "POST /containers/*/stop",
            "POST /containers/*/stop",
        ];
        Recording {
            calls: calls.map(str::to_owned).to_vec(),
            syscalls: BTreeMap::from([("pwrite64".to_owned(), 30)]),
            ..Recording::default()
        }
    }

    #[test]
    fn each_call_is_a_point_before_and_after_and_each_syscall_one() {
        let points = of(Scenario::Swap, &recording());
        let names: Vec<String> = points.iter().map(ToString::to_string).collect();
        assert_eq!(points.len(), 3 * 7 + 30);
        assert_eq!(
            names[..7],
            [
                "swap/agent/pull#1.before",
                "swap/agent/pull#1.after",
                "swap/agent/pull#1.done",
                "swap/agent/stop#1.before",
                "swap/agent/stop#1.after",
                "swap/agent/stop#2.before",
                "swap/agent/stop#2.after",
            ]
        );
        assert_eq!(names[50], "swap/syscall/pwrite64#30");
    }

    #[test]
    fn a_sample_has_every_kind() {
        let points = of(Scenario::Swap, &recording());
        let chosen = sample(&points, 12);
        assert_eq!(chosen.len(), 12);
        for kind in Kind::ALL {
            assert_eq!(chosen.iter().filter(|point| point.kind == kind).count(), 3);
        }
        assert_eq!(sample(&points, 1_000).len(), points.len());
    }
}
