//! Owns the login that a device gets to pull one image of its target: a token where the registry mints
//! one, else what its operator allows.
//!
//! Refuses every repository that the device's target does not name.

use std::time::Duration;

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_proto::image::Reference;
use holdfast_proto::pull::{PullLogin, PullLoginKind, PullLoginRequest};
use holdfast_proto::target::TargetState;
use holdfast_registry::PullAccess;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::app::{App, Shared};
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{DevicePath, Strict};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::logins::Login;
use crate::store::audit::{self, NewEntry};
use crate::store::events::{self, NewEvent};
use crate::store::{devices, targets};

/// Requests of one device in a window: hundreds of images each once, and a loop is stopped.
pub const MOST_REQUESTS: u32 = 300;
/// The window.
pub const WINDOW: Duration = Duration::from_mins(10);
/// For how long a device may use a password again before it asks anew, so that one that was changed or
/// withdrawn is known soon.
const PASSWORD_LIFETIME_S: u64 = 300;

/// The image whose repository a device asks for, as its target names it, and whose login counts.
struct Wanted {
    image: Reference,
    login: Login,
}

/// Gives the device a login to pull one image of its target with.
///
/// A token for that repository alone, minted by the registry, wherever it mints such; else, if the
/// operator allows it for these credentials, the user and the password; else 409.
#[utoipa::path(
    post, path = "/api/v1/devices/{uuid}/pull-tokens", tag = "devices",
    params(("uuid" = String, Path, description = "The device")),
    request_body = PullLoginRequest,
    responses((status = 200, description = "The login", body = PullLogin))
)]
pub async fn issue(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    DevicePath(uuid): DevicePath,
    Strict(request): Strict<PullLoginRequest>,
) -> Result<Json<PullLogin>, Refusal> {
    let asked: Reference = request
        .image
        .parse()
        .map_err(|_| Refusal::invalid_field("/image", "is not an image as a target names it"))?;
    let now = clock::now();
    if let Err(wait) = app.pull_limits.count(uuid, now) {
        app.metrics.pull_token("limited");
        return Err(Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            format!(
                "a device may ask {MOST_REQUESTS} times in {} s",
                WINDOW.as_secs()
            ),
        )
        .with_header(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1)));
    }
    let logins = app.logins.clone();
    let wanted = app
        .store
        .read(move |tx| -> Result<Option<Wanted>, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let Some(target) = targets::find(tx, device.id)? else {
                return Ok(None);
            };
            let Some(image) = named(&target.body, &asked) else {
                return Ok(None);
            };
            let login = logins.of_device(tx, image.repository().registry(), &device)?;
            Ok(Some(Wanted { image, login }))
        })
        .await?;
    let Some(Wanted { image, login }) = wanted else {
        app.metrics.pull_token("not_in_target");
        return Err(Refusal::new(
            StatusCode::FORBIDDEN,
            "not_in_target",
            "this device's target names no image of that repository",
        ));
    };
    let answer = access(&app, &image, login).await?;
    let repository = image.repository().clone();
    let by = actor(&principal, &request_id);
    let kind = answer.kind;
    if kind != PullLoginKind::Open {
        let expires_in = answer.expires_in_seconds;
        app.store
            .transact(move |tx| -> Result<(), Refusal> {
                let about = json!({"registry": repository.registry(), "repository": repository.path(),
                                   "kind": kind, "expires_in_seconds": expires_in});
                let entry = NewEntry {
                    action: "pull_login.issue",
                    subject_kind: "device",
                    subject: uuid.to_string(),
                    before: None,
                    after: Some(about.clone()),
                };
                audit::append(tx, &by, &entry, now)?;
                let event = NewEvent {
                    kind: "device.pull_login_issued",
                    device: Some(uuid),
                    subject: None,
                    detail: about,
                    delivery: None,
                };
                events::record(tx, &event, now)?;
                Ok(())
            })
            .await?;
    }
    app.metrics.pull_token(match kind {
        PullLoginKind::Token => "token",
        PullLoginKind::Password => "password",
        PullLoginKind::Open => "open",
    });
    Ok(Json(answer))
}

/// The image of that repository which a stored target names.
fn named(body: &str, asked: &Reference) -> Option<Reference> {
    let state: TargetState = serde_json::from_str(body).ok()?;
    let images = state
        .services()
        .filter_map(|(_, service)| service.image_name.parse::<Reference>().ok());
    let mut same = images.filter(|image| image.repository() == asked.repository());
    same.next()
}

/// What the registry and the operator's rules give.
async fn access(app: &App, image: &Reference, login: Login) -> Result<PullLogin, Refusal> {
    let repository = image.repository();
    let answer = |kind| PullLogin {
        registry: repository.registry().to_owned(),
        repository: repository.path().to_owned(),
        kind,
        token: None,
        username: None,
        password: None,
        expires_in_seconds: PASSWORD_LIFETIME_S,
    };
    let away = |why: String| {
        tracing::warn!(image.reference = %image, error = why, "no login for a pull could be had");
        app.metrics.pull_token("failed");
        Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "registry_unavailable",
            format!("no login for {repository} could be had now; the server's log says why"),
        )
    };
    let who = match &login.identity {
        None => None,
        Some(Ok(identity)) => Some(identity),
        Some(Err(failure)) => return Err(away(failure.why.clone())),
    };
    let access = app.resolver.registries().pull_access(image, who).await;
    match access.map_err(|failure| away(failure.why))? {
        PullAccess::Token(minted) => Ok(PullLogin {
            token: Some(minted.token.expose().to_owned()),
            expires_in_seconds: minted.expires_in.as_secs(),
            ..answer(PullLoginKind::Token)
        }),
        PullAccess::Open => Ok(answer(PullLoginKind::Open)),
        PullAccess::LoginOnly => {
            let (username, password) = login.hand_out.ok_or_else(|| {
                app.metrics.pull_token("refused");
                Refusal::new(
                    StatusCode::CONFLICT,
                    "no_pull_token",
                    format!(
                        "{} mints no tokens for one repository, and its credentials may not be \
                         handed to devices (hand_out)",
                        repository.registry()
                    ),
                )
            })?;
            Ok(PullLogin {
                username: Some(username),
                password: Some(password.expose().to_owned()),
                ..answer(PullLoginKind::Password)
            })
        }
    }
}
