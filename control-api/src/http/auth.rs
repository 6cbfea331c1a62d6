//! Owns finding out who asks, and judging every route by the permission beside it in the list.

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_domain::principal::{Permission, Principal, Verdict, judge};
use http::{HeaderMap, header};

use super::finish::RequestId;
use super::problem::Refusal;
use crate::app::{App, Shared};
use crate::clock;
use crate::secret::{self, Kind};
use crate::store::audit::Actor;
use crate::store::{devices, tokens};

/// Longest credential that is looked at: ours have 68 characters.
const LONGEST_TOKEN: usize = 256;

/// The bearer token in the headers, if there is exactly one that could be a token.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.len() <= LONGEST_TOKEN)
        .then_some(token)
}

/// Who presents these headers.
pub async fn principal(app: &App, headers: &HeaderMap) -> Result<Principal, Refusal> {
    let Some(token) = bearer(headers) else {
        return Ok(Principal::Anonymous);
    };
    // Looked up by hash: what is compared tells nothing about the tokens themselves.
    let hash = secret::hash(token);
    if token.starts_with(Kind::Device.prefix()) {
        if let Some(uuid) = app.live.by_token(&hash) {
            return Ok(Principal::Device(uuid));
        }
        // Another replica may have enrolled it a moment ago.
        let found = app
            .store
            .read(move |tx| devices::by_token_hash(tx, &hash))
            .await?;
        if let Some(uuid) = found {
            app.live.refresh(&app.store, uuid).await?;
            return Ok(Principal::Device(uuid));
        }
    } else if token.starts_with(Kind::Operator.prefix()) {
        let now = clock::now();
        let found = app
            .store
            .read(move |tx| tokens::valid(tx, &hash, now))
            .await?;
        if let Some(token) = found {
            return Ok(Principal::Operator {
                token: token.id,
                name: token.name,
                role: token.role,
            });
        }
    }
    Ok(Principal::Anonymous)
}

/// Lets a request through to its handler, or refuses it before its body is read.
pub async fn guard(permission: Permission, mut request: Request, next: Next) -> Response {
    let Some(app) = request.extensions().get::<Shared>().map(Arc::clone) else {
        return Refusal::internal().into_response();
    };
    if matches!(permission, Permission::Public | Permission::OwnCredential) {
        return next.run(request).await;
    }
    let principal = match principal(&app, request.headers()).await {
        Ok(principal) => principal,
        Err(refusal) => return refusal.into_response(),
    };
    let refusal = match judge(&principal, permission, device_in(request.uri().path())) {
        Verdict::Allowed => {
            // Before anything of it counts: nobody can tell who speaks.
            if is_quarantined(&app, permission, &principal) {
                return Refusal::quarantined().into_response();
            }
            request.extensions_mut().insert(principal);
            return next.run(request).await;
        }
        Verdict::Unauthenticated => Refusal::unauthenticated(),
        Verdict::Forbidden => Refusal::forbidden(match permission {
            Permission::OwnDevice => "only the device itself may do this",
            Permission::Public
            | Permission::OwnCredential
            | Permission::Read
            | Permission::Operate
            | Permission::Administer => "this token's role does not allow it",
        }),
        Verdict::Hidden => Refusal::not_found(),
    };
    app.metrics.auth_failure();
    tracing::debug!(
        status = refusal.status().as_u16(),
        "refused a request for its credential"
    );
    refusal.into_response()
}

fn is_quarantined(app: &App, permission: Permission, principal: &Principal) -> bool {
    let Principal::Device(uuid) = principal else {
        return false;
    };
    let slot = app.live.get(*uuid);
    permission == Permission::OwnDevice && slot.is_some_and(|slot| slot.is_quarantined())
}

/// The device in a path of the form `/api/v1/devices/{uuid}/…`.
fn device_in(path: &str) -> Option<holdfast_proto::id::DeviceId> {
    let (uuid, _) = path.strip_prefix("/api/v1/devices/")?.split_once('/')?;
    uuid.parse().ok()
}

/// Who to name in the audit log for a request of `principal`.
pub fn actor(principal: &Principal, request_id: &RequestId) -> Actor {
    let (kind, name) = match principal {
        Principal::Anonymous => ("anonymous", String::new()),
        Principal::Device(uuid) => ("device", uuid.to_string()),
        Principal::Operator { name, token, .. } => ("operator", format!("{name} (token {token})")),
    };
    Actor {
        kind,
        name,
        request_id: request_id.0.to_string(),
    }
}
