//! Owns operator tokens: made, listed, revoked; shown once.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::{Principal, Role, role_name};
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::devices::check_name;
use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::secret::{self, Kind};
use crate::store::audit::{self, NewEntry};
use crate::store::events::{self, NewEvent};
use crate::store::tokens;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageParams {
    /// At most so many items, 1 to 200; 50 by default.
    pub limit: Option<u32>,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// An operator token without the token itself.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenSummary {
    /// Number by which it is revoked.
    id: i64,
    /// Who or what uses it.
    name: String,
    /// What it may do.
    role: Role,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it stops working.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

impl From<tokens::Token> for TokenSummary {
    fn from(token: tokens::Token) -> Self {
        Self {
            id: token.id,
            name: token.name,
            role: token.role,
            created_at: token.created_at,
            expires_at: token.expires_at,
        }
    }
}

/// A token to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Who or what will use it.
    name: String,
    /// What it may do.
    role: Role,
    /// When it stops working; never when absent.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// A new token: the only answer that shows it.
#[derive(Serialize, ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    summary: TokenSummary,
    /// The token itself.
    token: String,
}

/// What is wrong with an expiry, if anything.
pub(super) fn check_expiry(
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> Option<holdfast_proto::problem::FieldError> {
    expires_at
        .filter(|at| *at <= now)
        .map(|_| holdfast_proto::problem::FieldError {
            pointer: "/expires_at".to_owned(),
            detail: "must lie in the future".to_owned(),
        })
}

/// Makes an operator token and shows it, once.
#[utoipa::path(
    post, path = "/api/v1/tokens", tag = "access", request_body = NewToken,
    responses((status = 201, description = "The token", body = CreatedToken))
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), Refusal> {
    let now = clock::now();
    let errors: Vec<_> = check_name("/name", &new.name)
        .into_iter()
        .chain(check_expiry(new.expires_at, now))
        .collect();
    if !errors.is_empty() {
        return Err(Refusal::invalid(errors));
    }
    let token = secret::token(Kind::Operator)?;
    let hash = token.hash();
    let by = actor(&principal, &request_id);
    let summary = app
        .store
        .transact(move |tx| -> Result<TokenSummary, Refusal> {
            let id = tokens::insert(tx, &new.name, new.role, &hash, now, new.expires_at)?;
            let about = json!({"name": new.name, "role": role_name(new.role)});
            let entry = NewEntry {
                action: "token.create",
                subject_kind: "token",
                subject: id.to_string(),
                before: None,
                after: Some(about.clone()),
            };
            audit::append(tx, &by, &entry, now)?;
            events::record(
                tx,
                &NewEvent::about("token.created", &id.to_string(), about),
                now,
            )?;
            Ok(TokenSummary {
                id,
                name: new.name.clone(),
                role: new.role,
                created_at: now,
                expires_at: new.expires_at,
            })
        })
        .await?;
    let created = CreatedToken {
        summary,
        token: token.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Lists operator tokens, without the tokens themselves.
#[utoipa::path(
    get, path = "/api/v1/tokens", tag = "access", params(PageParams),
    responses((status = 200, description = "One page of tokens", body = Page<TokenSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<TokenSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(tokens::list(tx, after, size)?))
        .await?;
    Ok(Json(page(found, size, |token| token.id)))
}

/// Revokes an operator token at once; the last admin token that works cannot go.
#[utoipa::path(
    delete, path = "/api/v1/tokens/{id}", tag = "access",
    params(("id" = i64, Path, description = "Number of the token")),
    responses((status = 204, description = "Revoked"))
)]
pub async fn revoke(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<StatusCode, Refusal> {
    let now = clock::now();
    let by = actor(&principal, &request_id);
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let token = tokens::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            tokens::remove(tx, id)?;
            if token.role == Role::Admin && tokens::count_valid(tx, Role::Admin, now)? == 0 {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "last_admin",
                    "this is the last admin token that works: make another one first",
                ));
            }
            let about = json!({"name": token.name, "role": role_name(token.role)});
            let entry = NewEntry {
                action: "token.revoke",
                subject_kind: "token",
                subject: id.to_string(),
                before: Some(about.clone()),
                after: None,
            };
            audit::append(tx, &by, &entry, now)?;
            events::record(
                tx,
                &NewEvent::about("token.revoked", &id.to_string(), about),
                now,
            )?;
            Ok(())
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
