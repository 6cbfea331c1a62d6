//! Facts about what holds updates back.

use std::path::PathBuf;

use super::*;
use crate::lease::Lease;

const NOON: &str = "2027-01-06T12:00:00Z";

struct Device {
    folder: tempfile::TempDir,
    permission: Permission,
}

fn device(windows: &[&str]) -> Device {
    let folder = tempfile::tempdir().unwrap();
    let settings = UpdateSettings {
        windows: windows.iter().map(|text| window(text)).collect(),
        lock_dir: folder.path().join("locks"),
    };
    let permission = Permission::new(&settings, Orders::load(folder.path()));
    Device { folder, permission }
}

/// `22:00-04:00 Europe/Berlin`
fn window(text: &str) -> UpdateWindow {
    let (times, timezone) = text.split_once(' ').unwrap();
    let (start, end) = times.split_once('-').unwrap();
    let json = serde_json::json!({ "start": start, "end": end, "timezone": timezone });
    serde_json::from_value(json).unwrap()
}

fn key(service: &str) -> ServiceKey {
    ServiceKey {
        app: "1".parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

impl Device {
    /// What is closed of `web`, which has these windows, and of `db`, which has none: `code until`.
    fn closed(&self, web: &[UpdateWindow], now: &str, now_ms: u64) -> (String, String) {
        let services = BTreeMap::from([(key("web"), web), (key("db"), &[][..])]);
        let closed = self
            .permission
            .closed_of(&services, now.parse().unwrap(), now_ms);
        let of = |service: &str| {
            closed.get(&key(service)).map_or_else(
                || "open".to_owned(),
                |closed| match closed.until {
                    Some(until) => format!("{} until {until}", closed.code),
                    None => closed.code.to_owned(),
                },
            )
        };
        (of("web"), of("db"))
    }

    fn both(&self, now: &str, now_ms: u64) -> String {
        let (web, db) = self.closed(&[], now, now_ms);
        assert_eq!(web, db);
        web
    }

    fn write(&self, place: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join("locks").join(place);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }
}

#[test]
fn nothing_is_closed_without_orders_locks_and_windows() {
    assert_eq!(device(&[]).both("1970-01-01T00:01:00Z", 0), "open");
}

#[test]
fn a_service_waits_for_its_own_window_and_the_devices() {
    let device = device(&["09:00-17:00 UTC"]);
    assert_eq!(device.both(NOON, 0), "open");
    let evening = "2027-01-06T20:00:00Z";
    let opens = "window until 2027-01-07T09:00:00.000Z".to_owned();
    assert_eq!(device.both(evening, 0), opens);
    let own = [window("10:00-11:00 UTC")];
    let (web, db) = device.closed(&own, evening, 0);
    assert_eq!(web, "window until 2027-01-07T10:00:00.000Z");
    assert_eq!(db, opens);
    let (web, db) = device.closed(&own, NOON, 0);
    assert_eq!(web, "window until 2027-01-07T10:00:00.000Z");
    assert_eq!(db, "open");
    let night = [window("19:00-21:00 UTC")];
    assert_eq!(device.closed(&night, evening, 0).0, opens);
}

#[test]
fn a_clock_before_this_build_waits_and_says_so() {
    let device = device(&["00:00-00:00 UTC"]);
    assert_eq!(device.both("1970-01-01T12:00:00Z", 0), "clock");
    assert_eq!(device.both(NOON, 0), "open");
}

#[test]
fn a_zone_that_the_device_does_not_know_is_closed() {
    let own = [window("00:00-00:00 Mars/Olympus")];
    assert_eq!(device(&[]).closed(&own, NOON, 0).0, "window");
}

#[test]
fn locks_of_files_and_orders_close_the_device_or_one_service() {
    let device = device(&[]);
    let file = device.write("1/web/update.lock", r#"{"ttl_seconds":60}"#);
    let until = "locked until 2027-01-06T12:01:00.000Z".to_owned();
    assert_eq!(device.closed(&[], NOON, 0), (until, "open".to_owned()));
    assert_eq!(device.both(NOON, 60_000), "open");
    std::fs::remove_file(file).unwrap();

    let orders = device.permission.orders();
    orders.lock(Some(&key("db")), Lease::default(), 0).unwrap();
    let closed = device.closed(&[], NOON, 0);
    assert_eq!(closed, ("open".to_owned(), "locked".to_owned()));
    orders.unlock(Some(&key("db"))).unwrap();

    let file = device.write("update.lock", "");
    assert_eq!(device.both(NOON, 0), "locked");
    std::fs::remove_file(file).unwrap();
    orders.lock(None, Lease::default(), 0).unwrap();
    assert_eq!(device.both(NOON, 0), "locked");
}

#[test]
fn force_overrides_locks_and_windows_for_an_hour_at_most_but_no_pause() {
    let device = device(&["09:00-10:00 UTC"]);
    device.write("update.lock", "{");
    assert_eq!(device.both(NOON, 0), "locked");
    let orders = device.permission.orders();
    orders.force(0).unwrap();
    assert_eq!(device.both(NOON, 3_599_999), "open");
    assert_eq!(device.both(NOON, 3_600_000), "locked");
    orders.force(0).unwrap();
    orders.end_force();
    assert_eq!(device.both(NOON, 0), "locked");
    orders.force(0).unwrap();
    orders.pause(Some("audit"), NOON.parse().unwrap()).unwrap();
    assert_eq!(device.both(NOON, 0), "paused");
    orders.resume().unwrap();
    assert_eq!(device.both(NOON, 0), "locked");
}

#[test]
fn the_reason_is_in_words() {
    let device = device(&[]);
    let own = [window("10:00-11:00 Europe/Berlin")];
    let services = BTreeMap::from([(key("web"), &own[..])]);
    let detail = |device: &Device| {
        let closed = device
            .permission
            .closed_of(&services, NOON.parse().unwrap(), 0);
        closed[&key("web")].detail.clone()
    };
    assert_eq!(
        detail(&device),
        "outside the update window, opens 2027-01-07T09:00:00.000Z (daily 10:00-11:00 Europe/Berlin)"
    );
    device.write("1/web/update.lock", r#"{"owner":"till"}"#);
    assert_eq!(detail(&device), "locked by till");
    device.write("update.lock", r#"{"reason":"inventory"}"#);
    assert_eq!(detail(&device), "the device is locked: inventory");
    let orders = device.permission.orders();
    orders.pause(Some("audit"), NOON.parse().unwrap()).unwrap();
    assert_eq!(detail(&device), "paused on the device: audit");
}
