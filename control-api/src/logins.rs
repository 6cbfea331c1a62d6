//! Owns which credentials count for a device at a registry, and opening them for the registry client.
//!
//! Refuses to go on without those that count: credentials that cannot be opened are a failure that says
//! so, not a reason to ask as somebody else.

pub mod change;

use std::sync::Arc;

use holdfast_domain::resolution::Failure;
use holdfast_domain::scope::{FLEET_LABEL, Scope};
use holdfast_registry as registry;
use holdfast_registry::{Credentials, Identity};

use crate::resolver::Ask;
use crate::secret::{NoRandomness, Secret};
use crate::store::credentials::{self, New, Stored};
use crate::store::devices::Device;
use crate::store::{StoreError, Tx};
use crate::vault::Vault;

/// Stable name of the failure to open stored credentials.
const UNREADABLE: &str = "credentials_unreadable";

/// What kind of secret credentials are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A user's password, or an access token in its place.
    Password,
    /// A refresh token for the registry's token server.
    Identity,
    /// A token that the registry itself takes.
    Bearer,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Password, Self::Identity, Self::Bearer];

    /// Its word in the store and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Identity => "identity_token",
            Self::Bearer => "registry_token",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Who asks a registry for a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Whose credentials count.
    pub scope: Scope,
    /// What they are; none without stored ones, which leaves the configured ones.
    pub identity: Option<Result<Identity, Failure>>,
    /// Whether there is a login at all, stored or configured.
    pub is_known: bool,
    /// What the device may be given when the registry mints no tokens: a user and a password.
    pub hand_out: Option<(String, Secret)>,
}

/// Opens and chooses credentials; cheap to clone.
#[derive(Debug, Clone)]
pub struct Logins {
    vault: Vault,
    registries: Arc<dyn Ask>,
}

/// Where a secret is sealed for: it opens in the row of this registry, scope, kind and user alone.
fn place(registry: &str, scope: &Scope, kind: &str, username: Option<&str>) -> String {
    // Lengths first: no two rows make one text.
    let parts = [registry, &scope.to_string(), kind, username.unwrap_or("")];
    let counted = parts.map(|part| format!("{}:{part}", part.len()));
    counted.join(";")
}

/// Seals credentials and puts them together as they are stored.
///
/// # Errors
/// When the system has no randomness.
pub fn sealed(vault: &Vault, plain: Plain) -> Result<New, NoRandomness> {
    let Plain {
        registry,
        scope,
        kind,
        username,
        secret,
        hand_out,
    } = plain;
    let place = place(&registry, &scope, kind.name(), username.as_deref());
    let sealed = vault.seal(&place, &secret)?;
    Ok(New {
        registry,
        scope,
        kind: kind.name(),
        username,
        sealed,
        hand_out,
    })
}

/// Credentials before they are sealed.
#[derive(Debug)]
pub struct Plain {
    /// The registry's canonical name.
    pub registry: String,
    /// Whom they are for.
    pub scope: Scope,
    /// What kind they are.
    pub kind: Kind,
    /// The user of a password.
    pub username: Option<String>,
    /// The secret.
    pub secret: Secret,
    /// Whether devices may be given them.
    pub hand_out: bool,
}

/// Opens stored credentials: what they are, and the secret in them.
fn open(vault: &Vault, stored: &Stored) -> Result<(Identity, Secret), Failure> {
    let Stored {
        registry,
        scope,
        kind,
        username,
        sealed,
        ..
    } = stored;
    let unreadable = |why: String| {
        let whose = match scope {
            Scope::Registry => String::new(),
            Scope::Fleet(name) => format!(" of fleet {name}"),
            Scope::Device(uuid) => format!(" of device {uuid}"),
        };
        Failure::new(
            UNREADABLE,
            format!("the credentials{whose} for {registry} cannot be used: {why}"),
        )
    };
    let secret = vault
        .open_sealed(&place(registry, scope, kind, username.as_deref()), sealed)
        .map_err(|error| unreadable(error.to_string()))?;
    let token = registry::Secret::new(secret.expose().to_owned());
    let credentials = match (Kind::named(kind), username) {
        (Some(Kind::Password), Some(username)) => Credentials::Password {
            username: username.clone(),
            password: token,
        },
        (Some(Kind::Identity), _) => Credentials::Identity { token },
        (Some(Kind::Bearer), _) => Credentials::Bearer { token },
        (Some(Kind::Password) | None, _) => {
            return Err(unreadable("this version does not know their kind".into()));
        }
    };
    let identity = Identity {
        // Changes with the credentials: a login with the old ones is not used for the new ones.
        id: format!("{}.{}", stored.id, stored.version),
        credentials,
    };
    Ok((identity, secret))
}

/// The fleet of a device, if it has one.
pub fn fleet(device: &Device) -> Option<&str> {
    device.labels.get(FLEET_LABEL).map(String::as_str)
}

impl Logins {
    /// Credentials of the store, opened with this key, beside those that the registry client has.
    pub fn new(vault: Vault, registries: Arc<dyn Ask>) -> Self {
        Self { vault, registries }
    }

    /// What credentials are sealed with.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Why stored credentials cannot be used, if they cannot.
    pub fn fault(&self, stored: &Stored) -> Option<Failure> {
        open(&self.vault, stored).err()
    }

    /// The login that counts for a device at a registry.
    pub fn of_device(
        &self,
        tx: &mut Tx<'_>,
        registry: &str,
        device: &Device,
    ) -> Result<Login, StoreError> {
        let found = credentials::of_device(tx, registry, device.uuid, fleet(device))?;
        Ok(self.login(registry, found))
    }

    /// The login that counts for a whole fleet at a registry: its own, or everybody's.
    pub fn of_fleet(
        &self,
        tx: &mut Tx<'_>,
        registry: &str,
        fleet: &str,
    ) -> Result<Login, StoreError> {
        let own = Scope::fleet(fleet).ok();
        for scope in own.into_iter().chain([Scope::Registry]) {
            if let Some(found) = credentials::find(tx, registry, &scope)? {
                return Ok(self.login(registry, Some(found)));
            }
        }
        Ok(self.login(registry, None))
    }

    /// The login of one scope.
    pub fn of_scope(
        &self,
        tx: &mut Tx<'_>,
        registry: &str,
        scope: &Scope,
    ) -> Result<Login, StoreError> {
        let found = credentials::find(tx, registry, scope)?;
        Ok(Login {
            scope: scope.clone(),
            ..self.login(registry, found)
        })
    }

    fn login(&self, registry: &str, found: Option<Stored>) -> Login {
        let Some(stored) = found else {
            return Login {
                scope: Scope::Registry,
                identity: None,
                is_known: self.registries.has_login(registry),
                hand_out: self.registries.hand_out(registry),
            };
        };
        let opened = open(&self.vault, &stored);
        let hand_out = match (&opened, &stored.username) {
            (Ok((_, secret)), Some(username)) if stored.hand_out => {
                Some((username.clone(), secret.clone()))
            }
            (Ok(_) | Err(_), _) => None,
        };
        Login {
            scope: stored.scope,
            identity: Some(opened.map(|(identity, _)| identity)),
            is_known: true,
            hand_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_rows_are_one_place() {
        let fleet = Scope::fleet("a").unwrap();
        let all = [
            place("r", &Scope::Registry, "password", Some("u")),
            place("r", &Scope::Registry, "password", None),
            place("r", &Scope::Registry, "identity_token", Some("u")),
            place("r", &fleet, "password", Some("u")),
            place("r2", &Scope::Registry, "password", Some("u")),
            place("r", &Scope::Registry, "password", Some("u;1:x")),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn kinds_read_back_by_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(kind.name()), Some(kind));
        }
        assert_eq!(Kind::named("other"), None);
    }
}
