//! Owns credentials for registries: set, listed without what is secret, removed. Nothing gives them back.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_domain::scope::Scope;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::Reference;
use holdfast_proto::operator::Page;
use holdfast_proto::problem::FieldError;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::{IntoParams, ToSchema};

use super::tokens::PageParams;
use crate::app::{App, Shared};
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{Params, Strict, cursor, next_cursor, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::logins::change::{self, By, split};
use crate::logins::{self, Kind, Plain};
use crate::secret::Secret;
use crate::store::credentials::{self as stored, New, Stored};
use crate::store::devices;

/// Longest user name taken.
const LONGEST_USERNAME: usize = 256;
/// Longest secret taken: tokens of clouds have some kilobytes.
const LONGEST_SECRET: usize = 16 * 1024;

/// A text whose errors do not quote it.
#[derive(Clone)]
pub(super) struct SecretText(pub(super) Secret);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer);
        let text = text.map_err(|_| de::Error::custom("must be a text"))?;
        Ok(Self(Secret::new(text)))
    }
}

/// Credentials to be set: a user with a password, or one of the tokens.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCredentials {
    /// The user, beside a password.
    username: Option<String>,
    /// The password, or an access token in its place.
    #[schema(value_type = Option<String>, format = Password, write_only)]
    password: Option<SecretText>,
    /// A refresh token for the registry's token server.
    #[schema(value_type = Option<String>, format = Password, write_only)]
    identity_token: Option<SecretText>,
    /// A token that the registry itself takes.
    #[schema(value_type = Option<String>, format = Password, write_only)]
    registry_token: Option<SecretText>,
    /// Only for devices whose label `fleet` has this value.
    fleet: Option<String>,
    /// Only for this device.
    #[schema(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// Whether devices may be given the credentials themselves when the registry mints no pull tokens.
    #[serde(default)]
    hand_out: bool,
}

impl std::fmt::Debug for NewCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Credentials without what is secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct CredentialsSummary {
    /// The registry's canonical name.
    registry: String,
    /// The fleet they are for; null for everybody or one device.
    fleet: Option<String>,
    /// The device they are for.
    #[schema(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// `password`, `identity_token` or `registry_token`.
    kind: String,
    /// The user of a password.
    username: Option<String>,
    /// Whether devices may be given them.
    hand_out: bool,
    /// Why they cannot be used, such as another key file; null when they can.
    error: Option<String>,
    /// When they were first set.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When they were last set.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// Whose credentials are meant; everybody's without.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ScopeParams {
    /// Those of this fleet.
    fleet: Option<String>,
    /// Those of this device.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
}

fn summary(app: &App, stored: Stored) -> CredentialsSummary {
    let error = app.logins.fault(&stored);
    let (fleet, device) = split(&stored.scope);
    CredentialsSummary {
        registry: stored.registry,
        fleet,
        device,
        kind: stored.kind,
        username: stored.username,
        hand_out: stored.hand_out,
        error: error.map(|failure| failure.why),
        created_at: stored.created_at,
        updated_at: stored.updated_at,
    }
}

fn field(pointer: &str, detail: impl Into<String>) -> FieldError {
    FieldError {
        pointer: pointer.to_owned(),
        detail: detail.into(),
    }
}

/// The canonical name of a registry that a path names.
fn registry(host: &str) -> Result<String, Refusal> {
    let malformed = || {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "malformed_id",
            "the path's registry must be a host such as registry.example:5000, without scheme and path",
        )
    };
    registry_named(host).ok_or_else(malformed)
}

/// The canonical name of a registry, if the text is a host.
pub(super) fn registry_named(host: &str) -> Option<String> {
    let reference: Reference = format!("{host}/any/image").parse().ok()?;
    let repository = reference.repository();
    // A word without a dot or a port is the first part of a path on Docker Hub.
    let is_host = repository.path() == "any/image" && reference.tag().is_none();
    is_host.then(|| repository.registry().to_owned())
}

/// What is wrong with a secret, if anything; it is not quoted.
pub(super) fn fault_of_secret(text: &str) -> Option<String> {
    let fits =
        !text.is_empty() && text.len() <= LONGEST_SECRET && !text.chars().any(char::is_control);
    (!fits).then(|| format!("must have 1 to {LONGEST_SECRET} bytes without control characters"))
}

/// What is wrong with a user's name, if anything.
pub(super) fn fault_of_username(name: &str) -> Option<String> {
    let fits = !name.is_empty()
        && name.len() <= LONGEST_USERNAME
        && !name.contains(':')
        && !name.chars().any(char::is_control);
    (!fits).then(|| {
        format!("must have 1 to {LONGEST_USERNAME} bytes without `:` and control characters")
    })
}

fn scope(fleet: Option<&str>, device: Option<DeviceId>) -> Result<Scope, FieldError> {
    match (fleet, device) {
        (None, None) => Ok(Scope::Registry),
        (None, Some(uuid)) => Ok(Scope::Device(uuid)),
        (Some(name), None) => {
            Scope::fleet(name).map_err(|_| field("/fleet", "is not the value of a label"))
        }
        (Some(_), Some(_)) => Err(field(
            "/device",
            "give either a fleet or a device, not both",
        )),
    }
}

fn plain(registry: String, new: NewCredentials) -> Result<Plain, Refusal> {
    let mut errors = Vec::new();
    let scope = scope(new.fleet.as_deref(), new.device).unwrap_or_else(|error| {
        errors.push(error);
        Scope::Registry
    });
    let given = [
        (Kind::Password, "/password", new.password),
        (Kind::Identity, "/identity_token", new.identity_token),
        (Kind::Bearer, "/registry_token", new.registry_token),
    ];
    let mut given = given
        .into_iter()
        .filter_map(|(kind, at, secret)| Some((kind, at, secret?.0)));
    let (kind, at, secret) = given.next().ok_or_else(|| {
        Refusal::invalid_field(
            "/password",
            "is missing: give a password or one of the tokens",
        )
    })?;
    if let Some((_, other, _)) = given.next() {
        errors.push(field(other, "give one secret only"));
    }
    errors.extend(fault_of_secret(secret.expose()).map(|fault| field(at, fault)));
    match (&new.username, kind) {
        (None, Kind::Password) => errors.push(field("/username", "is missing beside password")),
        (Some(_), Kind::Identity | Kind::Bearer) => {
            errors.push(field("/username", "goes with a password only"));
        }
        (Some(name), Kind::Password) => {
            let fault = fault_of_username(name);
            errors.extend(fault.map(|fault| field("/username", fault)));
        }
        (None, Kind::Identity | Kind::Bearer) => {}
    }
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    Ok(Plain {
        registry,
        scope,
        kind,
        username: new.username,
        secret,
        hand_out: new.hand_out,
    })
}

/// Sets credentials for a registry, in place of those that the same devices had.
///
/// The most special count: a device's own, then its fleet's, then everybody's, then those of the server's
/// configuration. They are stored encrypted and never given back.
#[utoipa::path(
    put, path = "/api/v1/registries/{host}/credentials", tag = "registries",
    params(("host" = String, Path, description = "The registry, such as `docker.io` or `registry.example:5000`")),
    request_body = NewCredentials,
    responses((status = 200, description = "Set", body = CredentialsSummary))
)]
pub async fn put(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Path(host): Path<String>,
    Strict(new): Strict<NewCredentials>,
) -> Result<Json<CredentialsSummary>, Refusal> {
    let plain = plain(registry(&host)?, new)?;
    let new: New = logins::sealed(app.logins.vault(), plain)?;
    let now = clock::now();
    let by = actor(&principal, &request_id);
    let set = app
        .store
        .transact(move |tx| -> Result<Stored, Refusal> {
            let row = match new.scope {
                Scope::Device(uuid) => {
                    let device = devices::find(tx, uuid)?.ok_or_else(|| {
                        Refusal::invalid_field("/device", "there is no such device")
                    })?;
                    Some(device.id)
                }
                Scope::Registry | Scope::Fleet(_) => None,
            };
            let by = By {
                actor: &by,
                names_user: true,
                now,
            };
            change::set(tx, &new, row, by)?;
            stored::find(tx, &new.registry, &new.scope)?.ok_or_else(Refusal::internal)
        })
        .await?;
    app.resolve_soon.notify_one();
    Ok(Json(summary(&app, set)))
}

async fn page(
    app: &App,
    registry: Option<String>,
    params: PageParams,
) -> Result<Json<Page<CredentialsSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, registry.as_deref(), after, size)?))
        .await?;
    let next_cursor = next_cursor(&found, size, |stored| stored.id);
    let items = found
        .into_iter()
        .map(|stored| summary(app, stored))
        .collect();
    Ok(Json(Page { items, next_cursor }))
}

/// Lists the credentials for a registry, without what is secret.
#[utoipa::path(
    get, path = "/api/v1/registries/{host}/credentials", tag = "registries",
    params(("host" = String, Path, description = "The registry"), PageParams),
    responses((status = 200, description = "One page of credentials", body = Page<CredentialsSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Path(host): Path<String>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<CredentialsSummary>>, Refusal> {
    page(&app, Some(registry(&host)?), params).await
}

/// Lists the credentials for all registries, without what is secret.
#[utoipa::path(
    get, path = "/api/v1/registries/credentials", tag = "registries", params(PageParams),
    responses((status = 200, description = "One page of credentials", body = Page<CredentialsSummary>))
)]
pub async fn list_all(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<CredentialsSummary>>, Refusal> {
    page(&app, None, params).await
}

/// Removes credentials for a registry: everybody's, a fleet's or a device's.
#[utoipa::path(
    delete, path = "/api/v1/registries/{host}/credentials", tag = "registries",
    params(("host" = String, Path, description = "The registry"), ScopeParams),
    responses((status = 204, description = "Removed"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Path(host): Path<String>,
    Params(params): Params<ScopeParams>,
) -> Result<StatusCode, Refusal> {
    let registry = registry(&host)?;
    let scope = scope(params.fleet.as_deref(), params.device)
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "malformed_query", error.detail))?;
    let now = clock::now();
    let by = actor(&principal, &request_id);
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let by = By {
                actor: &by,
                names_user: true,
                now,
            };
            let was_there = change::remove(tx, &registry, &scope, by)?;
            was_there.then_some(()).ok_or_else(Refusal::not_found)
        })
        .await?;
    app.resolve_soon.notify_one();
    Ok(StatusCode::NO_CONTENT)
}
