//! Owns whom credentials for a registry are for, and which of several count for one device.

use std::fmt;
use std::str::FromStr;

use holdfast_proto::id::DeviceId;

/// The label that says which fleet a device belongs to.
pub const FLEET_LABEL: &str = "fleet";
/// Longest name of a fleet: labels' values have this bound, too.
const LONGEST_FLEET: usize = 256;
const FLEET: &str = "fleet:";
const DEVICE: &str = "device:";

/// Whom credentials are for; the empty text, `fleet:NAME` or `device:UUID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Every device without more special ones.
    Registry,
    /// Devices whose label `fleet` has this value.
    Fleet(String),
    /// One device.
    Device(DeviceId),
}

/// The text is no scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a scope: write nothing, fleet:NAME or device:UUID")]
pub struct ScopeError;

impl Scope {
    /// The scope of a fleet, unless its name cannot be one.
    pub fn fleet(name: &str) -> Result<Self, ScopeError> {
        let fits = !name.is_empty() && name.len() <= LONGEST_FLEET && !name.contains('\0');
        fits.then(|| Self::Fleet(name.to_owned())).ok_or(ScopeError)
    }

    /// The scopes that hold for a device, the most special first.
    pub fn of_device(device: DeviceId, fleet: Option<&str>) -> impl Iterator<Item = Self> {
        [
            Some(Self::Device(device)),
            fleet.and_then(|name| Self::fleet(name).ok()),
            Some(Self::Registry),
        ]
        .into_iter()
        .flatten()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => Ok(()),
            Self::Fleet(name) => write!(f, "{FLEET}{name}"),
            Self::Device(uuid) => write!(f, "{DEVICE}{uuid}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        if text.is_empty() {
            return Ok(Self::Registry);
        }
        if let Some(name) = text.strip_prefix(FLEET) {
            return Self::fleet(name);
        }
        let uuid = text.strip_prefix(DEVICE).ok_or(ScopeError)?;
        uuid.parse().map(Self::Device).map_err(|_| ScopeError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reads_back_as_it_is_written() {
        let device = DeviceId::from_random([7; 16]);
        for scope in [
            Scope::Registry,
            Scope::fleet("north: 1").unwrap(),
            Scope::Device(device),
        ] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for bad in ["fleet:", "device:", "device:x", "north", "fleet:\0"] {
            assert_eq!(bad.parse::<Scope>(), Err(ScopeError), "{bad}");
        }
    }

    #[test]
    fn the_device_counts_before_its_fleet_and_that_before_the_registry() {
        let device = DeviceId::from_random([7; 16]);
        let all: Vec<Scope> = Scope::of_device(device, Some("north")).collect();
        let north = Scope::Fleet("north".into());
        assert_eq!(all, [Scope::Device(device), north, Scope::Registry]);
        let all: Vec<Scope> = Scope::of_device(device, None).collect();
        assert_eq!(all, [Scope::Device(device), Scope::Registry]);
    }
}
