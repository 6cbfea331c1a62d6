//! Owns the image update policy of a device or a fleet, as operators write and see it.
//!
//! Logins in it go where all logins for registries are, encrypted; refuses to give them back, or to quote them in an
//! error: what is shown is for which registries there are some.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain::image_updates::{self, LONGEST_TTL_S, effective, follows_latest, resolves};
use holdfast_domain::principal::{Permission, Principal, Verdict, judge};
use holdfast_domain::scope::Scope;
use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::problem::{FieldError, Pointer};
use holdfast_proto::time::Timestamp;
use holdfast_proto::window::UpdateWindow;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::credentials::{fault_of_secret, fault_of_username, registry_named};
use crate::http::problem::Refusal;
use crate::logins::change::{self, By};
use crate::logins::{self, Kind, Logins, Plain};
use crate::rollouts;
use crate::secret::Secret;
use crate::store::audit::Actor;
use crate::store::devices::Device;
use crate::store::fleets::Fleet;
use crate::store::{StoreError, Tx, credentials as stored};

/// Registries in one change: a device pulls from a few.
const MOST_LOGINS: usize = 32;
/// Registries shown, and removed at once: `PUT /registries/{host}/credentials` may have made more than one change can.
const MOST_SHOWN: i64 = 1_000;
const LOGINS: &str = "registryCredentials";

/// What becomes of a member: nothing while it is absent, gone with null, else set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Stays,
    /// It is said no more.
    Gone,
    /// It is this from now on.
    Set(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = Option::<T>::deserialize(deserializer)?;
        Ok(given.map_or(Self::Gone, Self::Set))
    }
}

impl<T: Clone> Change<T> {
    fn over(&self, before: Option<&T>) -> Option<T> {
        match self {
            Self::Stays => before.cloned(),
            Self::Gone => None,
            Self::Set(value) => Some(value.clone()),
        }
    }
}

/// JSON that may hold passwords: read by hand, because errors of serde quote what they refuse.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Unquoted(Value);

impl std::fmt::Debug for Unquoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unquoted(…)")
    }
}

/// A login for a registry; nothing gives it back.
#[derive(Debug, ToSchema)]
#[expect(
    dead_code,
    reason = "it describes what `Unquoted` is read as, member by member"
)]
pub struct RegistryLogin {
    /// The user.
    username: String,
    /// The password, or an access token in its place.
    #[schema(format = Password, write_only)]
    password: String,
}

/// A login to be set, or null to remove it.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "it describes what `Unquoted` is read as")]
pub struct RegistryLoginChange(Option<RegistryLogin>);

/// What is to change about an image update policy; what is absent stays, null is said no more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageUpdatePolicyChange {
    /// Whether tags are resolved anew by themselves. When false, pushes begin nothing here and a service keeps the digest
    /// that its reference was pinned to, until somebody asks: a rollout by hand, or a target with `resolve_digests`.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    auto_resolve_digests: Change<bool>,
    /// For so many seconds, 0 to 3600, what a registry said of a tag is taken for good.
    #[serde(default, rename = "digestCacheTTL")]
    #[schema(value_type = Option<u32>, maximum = 3600)]
    digest_cache_ttl_s: Change<u32>,
    /// Whether a push of a tag that names no version, such as `latest`, is rolled out here by itself.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    auto_update_latest: Change<bool>,
    /// When rollouts may begin to update here; `00:00` to `00:00` is always.
    #[serde(default)]
    #[schema(value_type = Option<UpdateWindow>)]
    update_window: Change<UpdateWindow>,
    /// Logins by registry, for role admin: set, or removed with null. All others stay; all are removed with null for the
    /// whole.
    #[serde(default)]
    #[schema(value_type = Option<BTreeMap<String, RegistryLoginChange>>, write_only)]
    registry_credentials: Change<Unquoted>,
}

/// That there is a login for a registry.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoginShown {
    /// Always true: what the login is, nothing tells.
    has_login: bool,
}

/// An image update policy without what is secret.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUpdatePolicyShown {
    /// Whether tags are resolved anew by themselves.
    auto_resolve_digests: Option<bool>,
    /// For so many seconds what a registry said of a tag is taken for good.
    #[serde(rename = "digestCacheTTL")]
    digest_cache_ttl_s: Option<u32>,
    /// Whether a push of a tag that names no version is rolled out here by itself.
    auto_update_latest: Option<bool>,
    /// When rollouts may begin to update here; always without.
    update_window: Option<UpdateWindow>,
    /// For which registries there are logins.
    registry_credentials: BTreeMap<String, LoginShown>,
}

/// What is said of image updates here, and what counts.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageUpdatePolicies {
    /// What is said here; null where nothing is.
    image_update_policy: ImageUpdatePolicyShown,
    /// What counts, member by member: this, else what the fleet says, else what holds for all.
    effective_image_update_policy: ImageUpdatePolicyShown,
}

impl ImageUpdatePolicyShown {
    fn of(policy: ImageUpdatePolicy, registries: impl IntoIterator<Item = String>) -> Self {
        let shown = |registry| (registry, LoginShown { has_login: true });
        Self {
            auto_resolve_digests: policy.auto_resolve_digests,
            digest_cache_ttl_s: policy.digest_cache_ttl_s,
            auto_update_latest: policy.auto_update_latest,
            update_window: policy.update_window,
            registry_credentials: registries.into_iter().map(shown).collect(),
        }
    }
}

impl ImageUpdatePolicies {
    /// Those of a device; `ttl_s` holds where nobody says otherwise.
    pub(super) fn of_device(
        tx: &mut Tx<'_>,
        device: &Device,
        ttl_s: u32,
    ) -> Result<Self, StoreError> {
        let own = stored::registries(tx, &Scope::Device(device.uuid), MOST_SHOWN)?;
        let mut all: BTreeSet<String> = own.iter().cloned().collect();
        if let Some(scope) = logins::fleet(device).and_then(|name| Scope::fleet(name).ok()) {
            all.extend(stored::registries(tx, &scope, MOST_SHOWN)?);
        }
        let counts = filled(&device.effective_updates(), ttl_s);
        Ok(Self {
            image_update_policy: ImageUpdatePolicyShown::of(device.image_updates.clone(), own),
            effective_image_update_policy: ImageUpdatePolicyShown::of(counts, all),
        })
    }

    /// Those of a fleet, as they count for a device that says nothing itself.
    pub(super) fn of_fleet(tx: &mut Tx<'_>, fleet: &Fleet, ttl_s: u32) -> Result<Self, StoreError> {
        let own = match Scope::fleet(&fleet.name) {
            Ok(scope) => stored::registries(tx, &scope, MOST_SHOWN)?,
            Err(_) => Vec::new(),
        };
        let said = fleet.image_updates.clone();
        let counts = filled(&said, ttl_s);
        Ok(Self {
            image_update_policy: ImageUpdatePolicyShown::of(said, own.iter().cloned()),
            effective_image_update_policy: ImageUpdatePolicyShown::of(counts, own),
        })
    }
}

/// A policy with what holds where nobody says otherwise.
fn filled(policy: &ImageUpdatePolicy, ttl_s: u32) -> ImageUpdatePolicy {
    let rest = ImageUpdatePolicy {
        auto_resolve_digests: Some(resolves(policy)),
        digest_cache_ttl_s: Some(ttl_s.min(LONGEST_TTL_S)),
        auto_update_latest: Some(follows_latest(policy)),
        update_window: None,
    };
    effective(policy, &rest)
}

/// A change that was read and can be carried out.
#[derive(Debug, Clone, Default)]
pub(super) struct Wanted {
    change: Change<ImageUpdatePolicyChange>,
    /// By canonical name; those that are to go are none.
    logins: BTreeMap<String, Option<(String, Secret)>>,
}

/// Whose logins are changed, and by whom.
pub(super) struct Owner<'a> {
    /// The device or the fleet.
    pub scope: Scope,
    /// The device's row.
    pub row: Option<i64>,
    /// Who wants it.
    pub principal: &'a Principal,
    /// The same, for the audit log.
    pub actor: &'a Actor,
}

impl Wanted {
    /// Reads the member `imageUpdatePolicy` of a change.
    ///
    /// # Errors
    /// Everything that is wrong with it, by member.
    pub(super) fn read(change: Change<ImageUpdatePolicyChange>) -> Result<Self, Vec<FieldError>> {
        let at = Pointer::default().member("imageUpdatePolicy");
        let mut wanted = Self {
            change,
            ..Self::default()
        };
        let Change::Set(change) = &wanted.change else {
            return Ok(wanted);
        };
        let policy = wanted.settings(&ImageUpdatePolicy::default());
        let mut errors: Vec<FieldError> = image_updates::check(&policy, &at).into_iter().collect();
        if let Some(window) = &policy.update_window
            && rollouts::zone(&window.timezone).is_none()
        {
            let detail = format!("there is no time zone {}", window.timezone);
            let at = at.member("updateWindow").member("timezone");
            errors.push(at.error(detail));
        }
        if let Change::Set(Unquoted(given)) = &change.registry_credentials {
            let (logins, faults) = read_logins(given, &at.member(LOGINS));
            wanted.logins = logins;
            errors.extend(faults);
        }
        if errors.is_empty() {
            Ok(wanted)
        } else {
            Err(errors)
        }
    }

    /// What is said from now on.
    pub(super) fn settings(&self, before: &ImageUpdatePolicy) -> ImageUpdatePolicy {
        match &self.change {
            Change::Stays => before.clone(),
            Change::Gone => ImageUpdatePolicy::default(),
            Change::Set(change) => ImageUpdatePolicy {
                auto_resolve_digests: change
                    .auto_resolve_digests
                    .over(before.auto_resolve_digests.as_ref()),
                digest_cache_ttl_s: change
                    .digest_cache_ttl_s
                    .over(before.digest_cache_ttl_s.as_ref()),
                auto_update_latest: change
                    .auto_update_latest
                    .over(before.auto_update_latest.as_ref()),
                update_window: change.update_window.over(before.update_window.as_ref()),
            },
        }
    }

    /// Whether it names logins.
    pub(super) fn sets_logins(&self) -> bool {
        !self.logins.is_empty()
    }

    fn drops_logins(&self) -> bool {
        match &self.change {
            Change::Stays => false,
            Change::Gone => true,
            Change::Set(change) => change.registry_credentials == Change::Gone,
        }
    }

    /// Stores and removes logins.
    ///
    /// # Errors
    /// 403 for whoever may not administer; nothing is stored then.
    pub(super) fn store_logins(
        &self,
        tx: &mut Tx<'_>,
        logins: &Logins,
        owner: &Owner<'_>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut wanted = self.logins.clone();
        if self.drops_logins() {
            let there = stored::registries(tx, &owner.scope, MOST_SHOWN)?;
            wanted.extend(there.into_iter().map(|registry| (registry, None)));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        // As for the credentials of registries themselves.
        if judge(owner.principal, Permission::Administer, None) != Verdict::Allowed {
            return Err(Refusal::forbidden(format!(
                "/imageUpdatePolicy/{LOGINS}: only the role admin may set and remove logins"
            )));
        }
        let by = By {
            actor: owner.actor,
            names_user: false,
            now,
        };
        for (registry, login) in wanted {
            let Some((username, secret)) = login else {
                change::remove(tx, &registry, &owner.scope, by)?;
                continue;
            };
            // Whether devices may be given it is said elsewhere, and stays.
            let before = stored::find(tx, &registry, &owner.scope)?;
            let plain = Plain {
                registry,
                scope: owner.scope.clone(),
                kind: Kind::Password,
                username: Some(username),
                secret,
                hand_out: before.is_some_and(|before| before.hand_out),
            };
            let new = logins::sealed(logins.vault(), plain)?;
            change::set(tx, &new, owner.row, by)?;
        }
        Ok(())
    }
}

type Read = BTreeMap<String, Option<(String, Secret)>>;

/// The logins by canonical registry, and everything that is wrong with them; no error quotes a value.
fn read_logins(given: &Value, at: &Pointer) -> (Read, Vec<FieldError>) {
    let mut errors = Vec::new();
    let mut found = BTreeMap::new();
    let Some(given) = given.as_object() else {
        let detail = "must be an object: each registry's host with its username and password";
        return (found, vec![at.error(detail)]);
    };
    if given.len() > MOST_LOGINS {
        errors.push(at.error(format!("may name at most {MOST_LOGINS} registries at once")));
    }
    for (host, login) in given {
        let at = at.member(host);
        let Some(registry) = registry_named(host) else {
            let detail = "must be a host such as registry.example:5000, without scheme and path";
            errors.push(at.error(detail));
            continue;
        };
        let login = match login {
            Value::Null => None,
            other => read_login(other, &at, &mut errors),
        };
        if found.insert(registry, login).is_some() {
            errors.push(at.error("is another name of a registry that is here already"));
        }
    }
    (found, errors)
}

fn read_login(
    given: &Value,
    at: &Pointer,
    errors: &mut Vec<FieldError>,
) -> Option<(String, Secret)> {
    let Some(members) = given.as_object() else {
        errors.push(at.error("must be an object with username and password, or null"));
        return None;
    };
    let known = ["username", "password"];
    let unknown = members
        .keys()
        .filter(|name| !known.contains(&name.as_str()));
    errors.extend(unknown.map(|name| {
        at.member(name)
            .error("is not known: write username and password")
    }));
    let mut text = |name: &str, fault: fn(&str) -> Option<String>| {
        let Some(text) = members.get(name).and_then(Value::as_str) else {
            errors.push(at.member(name).error("is missing: must be a text"));
            return None;
        };
        if let Some(fault) = fault(text) {
            errors.push(at.member(name).error(fault));
        }
        Some(text.to_owned())
    };
    let username = text("username", fault_of_username);
    let password = text("password", fault_of_secret);
    Some((username?, Secret::new(password?)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(policy: Value) -> Result<Wanted, Vec<String>> {
        let change = serde_json::from_value(policy).unwrap();
        Wanted::read(change).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn what_is_absent_stays_and_null_is_said_no_more() {
        let before: ImageUpdatePolicy =
            serde_json::from_value(json!({"digestCacheTTL": 5, "autoUpdateLatest": false}))
                .unwrap();
        let after = |policy: Value| read(policy).unwrap().settings(&before);
        assert_eq!(after(json!({})), before);
        assert_eq!(after(json!(null)), ImageUpdatePolicy::default());
        let changed = after(json!({"digestCacheTTL": null, "autoResolveDigests": false}));
        assert_eq!(
            serde_json::to_value(changed).unwrap(),
            json!({"autoResolveDigests": false, "autoUpdateLatest": false})
        );
    }

    #[test]
    fn no_error_and_no_debug_text_quotes_a_password() {
        for logins in [
            json!("canary"),
            json!(["canary"]),
            json!({"reg.example": "canary"}),
            json!({"reg.example": {"username": "u"}, "other.example": {"password": "canary"}}),
            json!({"reg.example": {"username": "u", "password": ["canary"]}}),
            json!({"reg.example": {"username": "u", "password": "canary\n"}}),
            json!({"reg.example": {"username": "u:", "password": "canary"}}),
            json!({"reg.example": {"username": "u", "password": "canary", "token": "canary"}}),
            json!({"http://reg.example/x": {"username": "u", "password": "canary"}}),
            json!({"docker.io": null, "index.docker.io": {"username": "u", "password": "canary"}}),
        ] {
            let errors = read(json!({"registryCredentials": logins})).unwrap_err();
            assert!(
                !errors.is_empty() && !errors.concat().contains("canary"),
                "{errors:?}"
            );
            let at = "/imageUpdatePolicy/registryCredentials";
            assert!(
                errors.iter().all(|error| error.starts_with(at)),
                "{errors:?}"
            );
        }
        let good = json!({"registryCredentials": {"reg.example": {"username": "u", "password": "canary"}}});
        let good = read(good).unwrap();
        assert!(!format!("{good:?}").contains("canary"), "{good:?}");
    }
}
