//! Owns the tags of images that may run, as operators see them: added, recommended, deprecated, forgotten.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_proto::image::{Digest, Reference};
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tokens::PageParams;
use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, NumberPaths, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::images::{self as notes, TagChange};
use crate::store::db::Tx;
use crate::store::images::{self as stored, AboutTag, Image, Tag};
use crate::store::targets;

/// Devices that an answer names; it counts them all.
const DEVICES_NAMED: i64 = 100;

/// A tag to be known.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTag {
    /// Its text.
    tag: String,
    /// Whether people are to choose it.
    #[serde(default)]
    is_recommended: bool,
    /// Whether it is not to be rolled out any more.
    #[serde(default)]
    is_deprecated: bool,
    /// For which machines alone, such as `arm64` or `arm/v7`; for all without.
    architecture: Option<String>,
}

/// What is to be said of a tag from now on.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TagUpdate {
    /// Its text, which stays.
    tag: Option<String>,
    /// Whether people are to choose it; as it is without.
    is_recommended: Option<bool>,
    /// Whether it is not to be rolled out any more; as it is without.
    is_deprecated: Option<bool>,
    /// For which machines alone; as it is without, for all when it is empty.
    architecture: Option<String>,
}

/// A tag of an image.
#[derive(Debug, Serialize, ToSchema)]
pub struct TagSummary {
    /// Its number.
    id: i64,
    /// Its text.
    tag: String,
    /// Whether people are to choose it.
    is_recommended: bool,
    /// Whether it is not to be rolled out any more.
    is_deprecated: bool,
    /// For which machines alone.
    architecture: Option<String>,
    /// What it meant when it was seen last.
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When anything of it changed last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Tag> for TagSummary {
    fn from(tag: Tag) -> Self {
        Self {
            id: tag.id,
            tag: tag.tag,
            is_recommended: tag.is_recommended,
            is_deprecated: tag.is_deprecated,
            architecture: tag.architecture,
            digest: tag.digest,
            created_at: tag.created_at,
            updated_at: tag.updated_at,
        }
    }
}

/// Devices whose target names a tag.
#[derive(Debug, Serialize, ToSchema)]
pub struct DevicesOn {
    /// How many.
    count: u64,
    /// The names of the first hundred.
    names: Vec<String>,
}

/// A tag as it is now.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChangedTag {
    #[serde(flatten)]
    tag: TagSummary,
    /// Of a tag that is deprecated: the devices whose target names it.
    devices_still_on_it: Option<DevicesOn>,
}

fn check_tag(text: &str) -> Result<(), Refusal> {
    let reference = format!("x:{text}").parse::<Reference>();
    // The grammar of tags is the reference's; `1@sha256:…` would be more than a tag.
    if reference.is_ok_and(|reference| reference.tag() == Some(text)) {
        return Ok(());
    }
    let detail = "it is no tag: a letter, digit or `_`, then up to 127 of these, `.` and `-`";
    Err(Refusal::invalid_field("/tag", detail))
}

fn check_architecture(text: Option<&str>) -> Result<(), Refusal> {
    let is_plain = |text: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/_-".contains(c);
        (1..=32).contains(&text.len()) && text.chars().all(fits)
    };
    if text.is_none_or(is_plain) {
        return Ok(());
    }
    let detail = "write it as platforms do: `amd64`, `arm64`, `arm/v7`";
    Err(Refusal::invalid_field("/architecture", detail))
}

fn about(tag: &Tag) -> AboutTag {
    AboutTag {
        is_recommended: tag.is_recommended,
        is_deprecated: tag.is_deprecated,
        architecture: tag.architecture.clone(),
    }
}

fn found(tx: &mut Tx<'_>, image_id: i64, id: i64) -> Result<(Image, Tag), Refusal> {
    let image = stored::find(tx, image_id)?.ok_or_else(Refusal::not_found)?;
    let tag = stored::find_tag(tx, image_id, id)?.ok_or_else(Refusal::not_found)?;
    Ok((image, tag))
}

fn changed(tx: &mut Tx<'_>, image: &Image, tag: Tag) -> Result<ChangedTag, Refusal> {
    let repository = notes::subject(image).parse();
    let devices_still_on_it = match repository {
        Ok(repository) if tag.is_deprecated => Some(DevicesOn {
            count: targets::count_naming(tx, &repository, &tag.tag)?,
            names: targets::names_naming(tx, &repository, &tag.tag, DEVICES_NAMED)?,
        }),
        Ok(_) | Err(_) => None,
    };
    Ok(ChangedTag {
        tag: tag.into(),
        devices_still_on_it,
    })
}

/// Lists the tags of an image, in the order they were added.
#[utoipa::path(
    get, path = "/api/v1/images/{id}/tags", tag = "images",
    params(("id" = i64, Path, description = "Number of the image"), PageParams),
    responses((status = 200, description = "One page of tags", body = Page<TagSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<TagSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| {
            stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(stored::tags(tx, id, after, size)?)
        })
        .await?;
    Ok(Json(page(found, size, |tag| tag.id)))
}

/// Adds a tag to an image. One that is known already is a conflict.
#[utoipa::path(
    post, path = "/api/v1/images/{id}/tags", tag = "images", request_body = NewTag,
    params(("id" = i64, Path, description = "Number of the image")),
    responses((status = 201, description = "Added", body = ChangedTag))
)]
pub async fn add(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(new): Strict<NewTag>,
) -> Result<(StatusCode, Json<ChangedTag>), Refusal> {
    check_tag(&new.tag)?;
    check_architecture(new.architecture.as_deref())?;
    let about = AboutTag {
        is_recommended: new.is_recommended,
        is_deprecated: new.is_deprecated,
        architecture: new.architecture,
    };
    let (now, by, text) = (clock::now(), actor(&principal, &request_id), new.tag);
    let added = app
        .store
        .transact(move |tx| -> Result<ChangedTag, Refusal> {
            let image = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            let added = stored::insert_tag(tx, id, &text, &about, None, now)?;
            let tag_id = added.ok_or_else(|| {
                let detail = format!("the tag {text} is known already");
                Refusal::new(StatusCode::CONFLICT, "known_tag", detail)
            })?;
            let change = TagChange {
                image: &image,
                tag: &text,
                before: None,
                after: Some(&about),
            };
            notes::note_tag(tx, &by, &change, now)?;
            let (image, tag) = found(tx, id, tag_id)?;
            changed(tx, &image, tag)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(added)))
}

/// Changes what is said of a tag. One that is deprecated is not rolled out any more; the answer says which devices
/// still have it in their targets, where it stays.
#[utoipa::path(
    put, path = "/api/v1/images/{id}/tags/{tag_id}", tag = "images", request_body = TagUpdate,
    params(
        ("id" = i64, Path, description = "Number of the image"),
        ("tag_id" = i64, Path, description = "Number of the tag"),
    ),
    responses((status = 200, description = "As it is now", body = ChangedTag))
)]
pub async fn change(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPaths(id, tag_id): NumberPaths,
    Strict(new): Strict<TagUpdate>,
) -> Result<Json<ChangedTag>, Refusal> {
    let given = new.architecture.as_deref().filter(|text| !text.is_empty());
    check_architecture(given)?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let answer = app
        .store
        .transact(move |tx| -> Result<ChangedTag, Refusal> {
            let (image, before) = found(tx, id, tag_id)?;
            if new.tag.as_ref().is_some_and(|text| *text != before.tag) {
                let detail = "a tag's text stays: add the other one, and forget this one";
                return Err(Refusal::invalid_field("/tag", detail));
            }
            let was = about(&before);
            let is = AboutTag {
                is_recommended: new.is_recommended.unwrap_or(was.is_recommended),
                is_deprecated: new.is_deprecated.unwrap_or(was.is_deprecated),
                architecture: match &new.architecture {
                    None => was.architecture.clone(),
                    Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
                },
            };
            if is != was {
                stored::describe_tag(tx, id, tag_id, &is, now)?;
                let change = TagChange {
                    image: &image,
                    tag: &before.tag,
                    before: Some(&was),
                    after: Some(&is),
                };
                notes::note_tag(tx, &by, &change, now)?;
            }
            let (image, tag) = found(tx, id, tag_id)?;
            changed(tx, &image, tag)
        })
        .await?;
    Ok(Json(answer))
}

/// Forgets a tag: a push of it adds it again.
#[utoipa::path(
    delete, path = "/api/v1/images/{id}/tags/{tag_id}", tag = "images",
    params(
        ("id" = i64, Path, description = "Number of the image"),
        ("tag_id" = i64, Path, description = "Number of the tag"),
    ),
    responses((status = 204, description = "Forgotten"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPaths(id, tag_id): NumberPaths,
) -> Result<StatusCode, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let (image, before) = found(tx, id, tag_id)?;
            stored::remove_tag(tx, id, tag_id)?;
            let change = TagChange {
                image: &image,
                tag: &before.tag,
                before: Some(&about(&before)),
                after: None,
            };
            Ok(notes::note_tag(tx, &by, &change, now)?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
