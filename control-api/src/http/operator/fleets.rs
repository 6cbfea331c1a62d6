//! Owns fleets, as operators see them: made, described, counted, removed.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_domain::scope::Scope;
use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::operator::Page;
use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::image_updates::{Change, ImageUpdatePolicies, ImageUpdatePolicyChange, Owner, Wanted};
use super::tokens::PageParams;
use crate::app::Shared;
use crate::clock;
use crate::fleets::{self, LONGEST_NAME, release};
use crate::http::auth::actor;
use crate::http::extract::{FleetPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::logins::Logins;
use crate::store::audit::Actor;
use crate::store::fleets::{self as stored, Fleet, Settings};
use crate::store::{StoreError, Tx};

/// Longest description of a fleet, in characters.
const LONGEST_DESCRIPTION: usize = 1_000;

/// A fleet.
#[derive(Debug, Serialize, ToSchema)]
pub struct FleetSummary {
    /// Its name: devices whose label `fleet` says so are in it.
    name: String,
    /// What people say of it.
    description: String,
    /// The policy that its releases travel by, where nobody names another.
    policy: Option<i64>,
    /// How many devices are in it.
    devices: u64,
    /// How many of these have targets of their own, which count before the fleet's.
    own_targets: u64,
    /// How many of them are kept at one release.
    pinned: u64,
    /// The release that was rolled out completely last: devices that join get it.
    release: Option<i64>,
    /// The newest release.
    newest_release: Option<i64>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it changed last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Fleet> for FleetSummary {
    fn from(fleet: Fleet) -> Self {
        Self {
            name: fleet.name,
            description: fleet.description,
            policy: fleet.policy_id,
            devices: fleet.devices,
            own_targets: fleet.own_targets,
            pinned: fleet.pinned,
            release: fleet.release,
            newest_release: fleet.newest,
            created_at: fleet.created_at,
            updated_at: fleet.updated_at,
        }
    }
}

/// A fleet, and what counts for the image updates of its devices.
#[derive(Debug, Serialize, ToSchema)]
pub struct FleetDetail {
    #[serde(flatten)]
    summary: FleetSummary,
    #[serde(flatten)]
    policies: ImageUpdatePolicies,
}

impl FleetDetail {
    fn of(tx: &mut Tx<'_>, fleet: Fleet, ttl_s: u32) -> Result<Self, StoreError> {
        Ok(Self {
            policies: ImageUpdatePolicies::of_fleet(tx, &fleet, ttl_s)?,
            summary: fleet.into(),
        })
    }
}

/// A fleet to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFleet {
    /// Its name, which cannot be changed: devices and keys carry it.
    name: String,
    /// What people say of it.
    #[serde(default)]
    description: String,
    /// The policy that its releases travel by.
    policy: Option<i64>,
    /// How its devices' images are updated, where they say nothing themselves.
    #[serde(default, rename = "imageUpdatePolicy")]
    #[schema(value_type = Option<ImageUpdatePolicyChange>)]
    image_update_policy: Change<ImageUpdatePolicyChange>,
}

/// What an operator may change about a fleet; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetChange {
    /// What people say of it.
    description: Option<String>,
    /// The policy that its releases travel by; null for none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    #[expect(
        clippy::option_option,
        reason = "absent, null and a number are three things"
    )]
    policy: Option<Option<i64>>,
    /// How its devices' images are updated, where they say nothing themselves, member by member.
    #[serde(default, rename = "imageUpdatePolicy")]
    #[schema(value_type = Option<ImageUpdatePolicyChange>)]
    image_update_policy: Change<ImageUpdatePolicyChange>,
}

/// Tells a member that is null from one that is absent.
#[expect(
    clippy::option_option,
    reason = "absent, null and a number are three things"
)]
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<i64>>, D::Error> {
    Option::<i64>::deserialize(deserializer).map(Some)
}

fn check_description(description: &str) -> Option<FieldError> {
    let fault = if description.chars().count() > LONGEST_DESCRIPTION {
        format!("may have at most {LONGEST_DESCRIPTION} characters")
    } else if description.contains('\0') {
        "must not contain the NUL character".to_owned()
    } else {
        return None;
    };
    Some(FieldError {
        pointer: "/description".to_owned(),
        detail: fault,
    })
}

fn about(fleet: &Fleet) -> Value {
    json!({"description": fleet.description, "policy": fleet.policy_id,
           "image_update_policy": fleet.image_updates})
}

/// Stores and removes the logins that a fleet's policy names.
fn store_logins(
    tx: &mut Tx<'_>,
    logins: &Logins,
    (updates, name): (&Wanted, &str),
    (principal, actor): (&Principal, &Actor),
    now: Timestamp,
) -> Result<(), Refusal> {
    let Ok(scope) = Scope::fleet(name) else {
        // A name may have more bytes than a scope: such a fleet has no logins to lose.
        if updates.sets_logins() {
            let at = "/imageUpdatePolicy/registryCredentials";
            let detail = "the fleet's name is too long to have logins";
            return Err(Refusal::invalid_field(at, detail));
        }
        return Ok(());
    };
    let owner = Owner {
        scope,
        row: None,
        principal,
        actor,
    };
    updates.store_logins(tx, logins, &owner, now)
}

/// Lists fleets in the order they were made.
#[utoipa::path(
    get, path = "/api/v1/fleets", tag = "fleets", params(PageParams),
    responses((status = 200, description = "One page of fleets", body = Page<FleetSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<FleetSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, after, size)?))
        .await?;
    Ok(Json(page(found, size, |fleet| fleet.id)))
}

/// Makes a fleet. One that a device or an enrolment key names by the label `fleet` comes into being by itself.
#[utoipa::path(
    post, path = "/api/v1/fleets", tag = "fleets", request_body = NewFleet,
    responses((status = 201, description = "Made", body = FleetDetail))
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewFleet>,
) -> Result<(StatusCode, Json<FleetDetail>), Refusal> {
    let mut errors: Vec<FieldError> = check_description(&new.description).into_iter().collect();
    if !fleets::is_name(&new.name) {
        errors.push(FieldError {
            pointer: "/name".to_owned(),
            detail: format!("must have 1 to {LONGEST_NAME} characters, no control characters"),
        });
    }
    let updates = Wanted::read(new.image_update_policy.clone()).unwrap_or_else(|faults| {
        errors.extend(faults);
        Wanted::default()
    });
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let (logins, ttl_s) = (app.logins.clone(), app.resolver.ttl_s());
    let made = app
        .store
        .transact(move |tx| -> Result<FleetDetail, Refusal> {
            release::check_policy(tx, "/policy", new.policy)?;
            let image_updates = updates.settings(&ImageUpdatePolicy::default());
            let settings = Settings {
                description: &new.description,
                policy_id: new.policy,
                image_updates: Some(&image_updates),
            };
            if stored::insert(tx, &new.name, settings, now)?.is_none() {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "known_fleet",
                    format!("there is a fleet called {} already", new.name),
                ));
            }
            store_logins(tx, &logins, (&updates, &new.name), (&principal, &by), now)?;
            let made = stored::find(tx, &new.name)?.ok_or_else(Refusal::internal)?;
            let what = ("fleet.create", "fleet.created");
            fleets::note(tx, &by, what, &new.name, (None, Some(about(&made))), now)?;
            Ok(FleetDetail::of(tx, made, ttl_s)?)
        })
        .await?;
    app.resolve_soon.notify_one();
    Ok((StatusCode::CREATED, Json(made)))
}

/// Shows a fleet.
#[utoipa::path(
    get, path = "/api/v1/fleets/{name}", tag = "fleets",
    params(("name" = String, Path, description = "The fleet")),
    responses((status = 200, description = "The fleet", body = FleetDetail))
)]
pub async fn show(
    State(app): State<Shared>,
    FleetPath(name): FleetPath,
) -> Result<Json<FleetDetail>, Refusal> {
    let ttl_s = app.resolver.ttl_s();
    let found = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let fleet = stored::find(tx, &name)?.ok_or_else(Refusal::not_found)?;
            Ok(FleetDetail::of(tx, fleet, ttl_s)?)
        })
        .await?;
    Ok(Json(found))
}

/// Describes a fleet, says how its releases travel, or how its devices' images are updated.
#[utoipa::path(
    patch, path = "/api/v1/fleets/{name}", tag = "fleets", request_body = FleetChange,
    params(("name" = String, Path, description = "The fleet")),
    responses((status = 200, description = "As it is now", body = FleetDetail))
)]
pub async fn change(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    FleetPath(name): FleetPath,
    Strict(change): Strict<FleetChange>,
) -> Result<Json<FleetDetail>, Refusal> {
    let fault = change.description.as_deref().and_then(check_description);
    let mut errors: Vec<FieldError> = fault.into_iter().collect();
    let updates = Wanted::read(change.image_update_policy.clone()).unwrap_or_else(|faults| {
        errors.extend(faults);
        Wanted::default()
    });
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let (logins, ttl_s) = (app.logins.clone(), app.resolver.ttl_s());
    let found = app
        .store
        .transact(move |tx| -> Result<FleetDetail, Refusal> {
            let before = stored::find(tx, &name)?.ok_or_else(Refusal::not_found)?;
            release::check_policy(tx, "/policy", change.policy.flatten())?;
            store_logins(tx, &logins, (&updates, &name), (&principal, &by), now)?;
            let image_updates = updates.settings(&before.image_updates);
            let settings = Settings {
                description: change.description.as_deref().unwrap_or(&before.description),
                policy_id: change.policy.unwrap_or(before.policy_id),
                image_updates: Some(&image_updates),
            };
            let is_same = settings.description == before.description
                && settings.policy_id == before.policy_id
                && image_updates == before.image_updates;
            if is_same {
                return Ok(FleetDetail::of(tx, before, ttl_s)?);
            }
            stored::update(tx, before.id, settings, now)?;
            let after = stored::find(tx, &name)?.ok_or_else(Refusal::internal)?;
            let both = (Some(about(&before)), Some(about(&after)));
            fleets::note(tx, &by, ("fleet.change", "fleet.changed"), &name, both, now)?;
            Ok(FleetDetail::of(tx, after, ttl_s)?)
        })
        .await?;
    // Its devices may have other logins, or another window.
    app.resolve_soon.notify_one();
    app.rollouts_soon.notify_one();
    Ok(Json(found))
}

/// Removes a fleet with its releases. Refused while devices are in it.
#[utoipa::path(
    delete, path = "/api/v1/fleets/{name}", tag = "fleets",
    params(("name" = String, Path, description = "The fleet")),
    responses((status = 204, description = "Gone"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    FleetPath(name): FleetPath,
) -> Result<StatusCode, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let fleet = stored::find(tx, &name)?.ok_or_else(Refusal::not_found)?;
            if fleet.devices > 0 {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "fleet_not_empty",
                    format!(
                        "{} devices are in this fleet: label them otherwise",
                        fleet.devices
                    ),
                ));
            }
            stored::remove(tx, fleet.id)?;
            let what = ("fleet.remove", "fleet.removed");
            Ok(fleets::note(
                tx,
                &by,
                what,
                &name,
                (Some(about(&fleet)), None),
                now,
            )?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
