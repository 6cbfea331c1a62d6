//! Facts about update windows, above all when clocks change.

use proptest::prelude::*;

use super::*;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * MINUTE_MS;

/// Zones that change clocks in their own ways: by an hour, by half an hour, at midnight, by leaving a
/// whole day out, twice around a month of fasting, never.
const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "Pacific/Apia",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "UTC",
];

fn window(days: &[&str], start: &str, end: &str, zone: &str) -> ZonedWindow {
    let mut json = serde_json::json!({ "start": start, "end": end, "timezone": zone });
    if !days.is_empty() {
        json["days"] = serde_json::json!(days);
    }
    ZonedWindow {
        window: serde_json::from_value(json).unwrap(),
        zone: TimeZone::get(zone).unwrap(),
    }
}

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn is_open(window: &ZonedWindow, now: Timestamp) -> bool {
    opening(std::slice::from_ref(window), now, true) == Opening::Open
}

fn closed_until(window: &ZonedWindow, now: &str) -> String {
    match opening(std::slice::from_ref(window), time(now), true) {
        Opening::Closed { until: Some(until) } => until.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn no_window_is_always_open_even_without_a_clock() {
    assert_eq!(opening(&[], Timestamp::default(), false), Opening::Open);
    assert_eq!(
        opening(&[], time("2026-07-01T12:00:00Z"), true),
        Opening::Open
    );
}

#[test]
fn a_clock_that_cannot_be_right_opens_nothing() {
    let all_day = window(&[], "00:00", "00:00", "UTC");
    let judged = opening(
        std::slice::from_ref(&all_day),
        time("1970-01-02T00:00:00Z"),
        false,
    );
    assert_eq!(judged, Opening::WaitingForClock);
    assert_eq!(
        opening(&[all_day], Timestamp::from_millis(i64::MAX), true),
        Opening::WaitingForClock
    );
}

#[test]
fn a_window_across_midnight_belongs_to_the_day_it_begins_on() {
    // 2026-11-20 is a Friday.
    let nights = window(&["fri"], "22:00", "04:00", "Europe/Berlin");
    for (now, open) in [
        ("2026-11-20T20:59:59Z", false),
        ("2026-11-20T21:00:00Z", true),
        ("2026-11-21T02:59:59Z", true),
        ("2026-11-21T03:00:00Z", false),
        ("2026-11-21T21:30:00Z", false),
    ] {
        assert_eq!(is_open(&nights, time(now)), open, "{now}");
    }
    assert_eq!(
        closed_until(&nights, "2026-11-21T03:00:00Z"),
        "2026-11-27T21:00:00.000Z"
    );
}

#[test]
fn equal_start_and_end_are_a_whole_day() {
    let saturday = window(&["sat"], "00:00", "00:00", "UTC");
    assert!(is_open(&saturday, time("2026-11-21T00:00:00Z")));
    assert!(is_open(&saturday, time("2026-11-21T23:59:59Z")));
    assert!(!is_open(&saturday, time("2026-11-22T00:00:00Z")));
}

#[test]
fn the_earliest_of_several_windows_is_the_one_to_wait_for() {
    let windows = [
        window(&["mon"], "10:00", "11:00", "UTC"),
        window(&["sun"], "10:00", "11:00", "America/New_York"),
    ];
    let judged = opening(&windows, time("2026-11-21T12:00:00Z"), true);
    assert_eq!(
        judged,
        Opening::Closed {
            until: Some(time("2026-11-22T15:00:00Z"))
        }
    );
}

/// Berlin's clocks jump from 02:00 to 03:00 on 2027-03-28, at 01:00 UTC.
#[test]
fn a_window_in_the_skipped_hour_comes_right_after_it() {
    for (start, end, from, until) in [
        ("02:15", "02:45", "01:00", "01:30"),
        ("02:30", "03:00", "01:00", "01:30"),
        ("02:30", "03:30", "01:00", "01:30"),
        ("01:30", "02:30", "00:30", "01:30"),
        ("01:00", "04:00", "00:00", "02:00"),
    ] {
        let window = window(&["sun"], start, end, "Europe/Berlin");
        let (begins, ends) = window.on(Date::constant(2027, 3, 28)).unwrap();
        let utc = |text| format!("2027-03-28T{text}:00Z");
        assert_eq!(
            (begins.to_string(), ends.to_string()),
            (utc(from), utc(until)),
            "{start}-{end}"
        );
    }
}

/// Berlin's clocks go back from 03:00 to 02:00 on 2026-10-25, at 01:00 UTC.
#[test]
fn a_window_in_the_repeated_hour_opens_once() {
    for (start, end, from, until) in [
        ("02:15", "02:45", "00:15", "00:45"),
        ("01:00", "02:30", "23:00", "00:30"),
        ("02:30", "03:00", "00:30", "02:00"),
    ] {
        let window = window(&["sun"], start, end, "Europe/Berlin");
        let (begins, ends) = window.on(Date::constant(2026, 10, 25)).unwrap();
        let of = |time: jiff::Timestamp| time.strftime("%H:%M").to_string();
        assert_eq!(
            (of(begins), of(ends)),
            (from.to_owned(), until.to_owned()),
            "{start}-{end}"
        );
    }
}

#[test]
fn a_window_of_a_day_that_a_zone_left_out_opens_when_the_next_day_begins() {
    // Samoa had no 2011-12-30, a Friday.
    let fridays = window(&["fri"], "10:00", "11:00", "Pacific/Apia");
    let until = closed_until(&fridays, "2011-12-30T09:00:00Z");
    assert_eq!(until, "2011-12-30T10:00:00.000Z");
}

prop_compose! {
    fn a_window()(
        days in proptest::collection::vec(any::<bool>(), 7),
        start in 0..1_440_i32,
        end in 0..1_440_i32,
        zone in 0..ZONES.len(),
    ) -> ZonedWindow {
        let names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
        let days: Vec<&str> = names.into_iter().zip(days).filter_map(|(name, named)| named.then_some(name)).collect();
        let text = |minutes: i32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        window(&days, &text(start), &text(end), ZONES[zone])
    }
}

prop_compose! {
    /// Half of them within a day of a change of clocks.
    fn a_window_and_a_time()(
        window in a_window(),
        day in -15_000..30_000_i64,
        offset in -DAY_MS..DAY_MS,
        near in any::<bool>(),
    ) -> (ZonedWindow, Timestamp) {
        let anywhere = jiff::Timestamp::from_millisecond(day * DAY_MS).unwrap();
        let change = window.zone.following(anywhere).next().filter(|_| near);
        let around = change.map_or(anywhere, |change| change.timestamp());
        (window, Timestamp::from_millis(around.as_millisecond() + offset))
    }
}

/// How the wall clock alone would judge; right wherever no clock changes.
fn by_the_wall(window: &ZonedWindow, now: Timestamp) -> bool {
    let wall = window
        .zone
        .to_datetime(jiff::Timestamp::from_millisecond(now.as_millis()).unwrap());
    let minutes = |time: TimeOfDay| i64::from(time.hour()) * 60 + i64::from(time.minute());
    let (start, end) = (minutes(window.window.start), minutes(window.window.end));
    let minute = i64::from(wall.hour()) * 60 + i64::from(wall.minute());
    let day = usize::try_from(wall.weekday().to_monday_zero_offset()).unwrap();
    let days = window.window.days;
    let today = days.contains(day);
    let yesterday = days.contains((day + 6) % 7);
    if start < end {
        today && start <= minute && minute < end
    } else {
        (today && start <= minute) || (yesterday && minute < end)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

    #[test]
    fn away_from_changes_the_wall_clock_decides((window, now) in a_window_and_a_time()) {
        let instant = jiff::Timestamp::from_millisecond(now.as_millis()).unwrap();
        let around = instant.checked_sub(jiff::SignedDuration::from_hours(73)).unwrap();
        let next_change = window.zone.following(around).next();
        let changes = next_change.is_some_and(|change| {
            change.timestamp().duration_since(instant).as_hours() <= 25
        });
        // Rather more than half of the cases are away from changes.
        prop_assert!(changes || is_open(&window, now) == by_the_wall(&window, now));
    }

    #[test]
    fn it_is_closed_until_the_named_time_and_open_then(
        (window, now) in a_window_and_a_time(),
        part in 0.0..1.0_f64,
    ) {
        if let Opening::Closed { until } = opening(std::slice::from_ref(&window), now, true) {
            let until = until.expect("every window comes again");
            prop_assert!(is_open(&window, until));
            prop_assert!(!is_open(&window, until.plus_ms(-1)));
            #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a place in between")]
            let between = now.plus_ms((until.since_ms(now) as f64 * part) as i64);
            prop_assert!(between >= until || !is_open(&window, between));
            prop_assert!(until.since_ms(now) <= 9 * DAY_MS);
        }
    }

    #[test]
    fn every_date_has_its_window_once_and_no_longer_than_written(
        (window, now) in a_window_and_a_time(),
    ) {
        let instant = jiff::Timestamp::from_millisecond(now.as_millis()).unwrap();
        let date = window.zone.to_datetime(instant).date();
        let (from, until) = window.on(date).unwrap();
        let minutes = |time: TimeOfDay| i64::from(time.hour()) * 60 + i64::from(time.minute());
        let (start, end) = (minutes(window.window.start), minutes(window.window.end));
        let written = if end > start { end - start } else { end - start + 1_440 };
        let lasts = until.as_millisecond() - from.as_millisecond();
        prop_assert!(lasts > 0);
        // Clocks that go back lengthen it by what they go back.
        let offset = |at| i64::from(window.zone.to_offset(at).seconds());
        let back = (offset(from) - offset(until)).max(0) * 1_000;
        prop_assert!(lasts <= written * MINUTE_MS + back, "{} min, written {}", lasts / MINUTE_MS, written);
        let before = jiff::Timestamp::from_millisecond(from.as_millisecond()).unwrap();
        prop_assert!(window.zone.to_datetime(before) >= at(date, window.window.start).unwrap());
    }
}
