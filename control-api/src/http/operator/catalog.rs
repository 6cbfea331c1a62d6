//! Owns the images that may run, as operators see them: added, searched, decided about, with their tags.
//!
//! Refuses two names for one image, and to forget an image whose rollout is on its way.

use axum::extract::State;
use axum::{Extension, Json};
use holdfast_domain::approval::Approval;
use holdfast_domain::principal::Principal;
use holdfast_proto::image::{Reference, Repository};
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tags::TagSummary;
use crate::app::{App, Shared};
use crate::approvals;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::images::{note, subject};
use crate::store::Tx;
use crate::store::images::{self as stored, About, Filter, Image, approval_name, approval_named};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
/// Tags in an image's answer; the whole list has pages.
const TAGS_SHOWN: i64 = 200;
const MAX_CATEGORY: usize = 100;
const MAX_DESCRIPTION: usize = 4_000;

/// An image to be known.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    /// Its name, with or without namespace and registry: `portainer-ce`, `portainer/portainer-ce`,
    /// `ghcr.io/acme/web`.
    image_name: String,
    /// The registry, unless the name says it; `docker.io` without.
    registry: Option<String>,
    /// The namespace, unless the name says it; `library` without.
    namespace: Option<String>,
    /// What kind of thing it is.
    #[serde(default)]
    category: String,
    /// What it is for.
    #[serde(default)]
    description: String,
    /// Whether its registry vouches for it.
    #[serde(default)]
    is_official: bool,
    /// `pending`, `approved` or `rejected`; approved without.
    approval_status: Option<String>,
}

/// What is to be changed of an image; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageChange {
    /// What kind of thing it is.
    category: Option<String>,
    /// What it is for.
    description: Option<String>,
    /// Whether its registry vouches for it.
    is_official: Option<bool>,
    /// `pending`, `approved` or `rejected`.
    approval_status: Option<String>,
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageSummary {
    /// Its number.
    id: i64,
    /// Its name, as people write it.
    reference: String,
    /// The last part of its name.
    image_name: String,
    /// The registry.
    registry: String,
    /// What stands between registry and name.
    namespace: String,
    /// What kind of thing it is.
    category: String,
    /// What it is for.
    description: String,
    /// Whether its registry vouches for it.
    is_official: bool,
    /// `pending`, `approved` or `rejected`.
    approval_status: String,
    /// Who decided.
    decided_by: Option<String>,
    /// When.
    #[schema(value_type = Option<String>, format = DateTime)]
    decided_at: Option<Timestamp>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When anything of it changed last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl From<Image> for ImageSummary {
    fn from(image: Image) -> Self {
        let (namespace, name) = image
            .repository
            .rsplit_once('/')
            .unwrap_or(("", &image.repository));
        let name_of_all = subject(&image);
        let reference = name_of_all
            .parse::<Repository>()
            .map_or(name_of_all, |repository| repository.familiar());
        Self {
            id: image.id,
            reference,
            image_name: name.to_owned(),
            namespace: namespace.to_owned(),
            registry: image.registry,
            category: image.category,
            description: image.description,
            is_official: image.is_official,
            approval_status: approval_name(image.approval).to_owned(),
            decided_by: image.decided_by,
            decided_at: image.decided_at,
            created_at: image.created_at,
            updated_at: image.updated_at,
        }
    }
}

/// An image and its tags.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImageDetail {
    #[serde(flatten)]
    image: ImageSummary,
    /// Its tags, at most 200: those that are recommended first, then the newest.
    tags: Vec<TagSummary>,
}

fn detail(tx: &mut Tx<'_>, image: Image) -> Result<ImageDetail, Refusal> {
    let tags = stored::foremost_tags(tx, image.id, TAGS_SHOWN)?;
    Ok(ImageDetail {
        image: image.into(),
        tags: tags.into_iter().map(TagSummary::from).collect(),
    })
}

/// Where two people have to approve, one alone cannot do it here.
fn refuse_alone(app: &App, decided: Option<Approval>) -> Result<(), Refusal> {
    if app.pushes.two_person && decided == Some(Approval::Approved) {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            "two_person",
            "two people have to approve an image: ask with POST /api/v1/approval-requests",
        ));
    }
    Ok(())
}

/// How many images a category has.
#[derive(Debug, Serialize, ToSchema)]
pub struct Category {
    /// The category.
    category: String,
    /// How many images.
    count: u64,
}

/// Which images a list shows.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CatalogParams {
    /// What the name or description contains.
    search: Option<String>,
    /// `pending`, `approved` or `rejected`.
    status: Option<String>,
    /// The category.
    category: Option<String>,
    /// Items in a page, 1 to 200.
    limit: Option<u32>,
    /// Where the page before ended.
    cursor: Option<String>,
}

/// The one name of what was written.
fn repository(new: &NewImage) -> Result<Repository, Refusal> {
    let wrong = |detail: String| Refusal::invalid_field("/image_name", detail);
    let name = new.image_name.trim();
    let has_namespace = name.contains('/');
    let path = match (&new.namespace, has_namespace) {
        (Some(namespace), false) => format!("{namespace}/{name}"),
        (Some(namespace), true) if !name.contains(&format!("{namespace}/")) => {
            return Err(Refusal::invalid_field(
                "/namespace",
                format!("the name says another one: {name}"),
            ));
        }
        (Some(_) | None, _) => name.to_owned(),
    };
    let full = match &new.registry {
        Some(registry) if !path.starts_with(&format!("{registry}/")) => {
            let namespaced = path.contains('/') || registry != DEFAULT_REGISTRY;
            if namespaced {
                format!("{registry}/{path}")
            } else {
                format!("{registry}/{DEFAULT_NAMESPACE}/{path}")
            }
        }
        Some(_) | None => path,
    };
    let reference: Reference = full.parse().map_err(|error| wrong(format!("{error}")))?;
    if reference.tag().is_some() || reference.digest().is_some() {
        return Err(wrong("write the name without a tag and digest".to_owned()));
    }
    Ok(reference.repository().clone())
}

fn approval(text: &str) -> Result<Approval, Refusal> {
    approval_named(text).ok_or_else(|| {
        Refusal::invalid_field(
            "/approval_status",
            "write `pending`, `approved` or `rejected`",
        )
    })
}

fn check(about: &About) -> Result<(), Refusal> {
    if about.category.len() > MAX_CATEGORY {
        let detail = format!("write at most {MAX_CATEGORY} bytes");
        return Err(Refusal::invalid_field("/category", detail));
    }
    if about.description.len() > MAX_DESCRIPTION {
        let detail = format!("write at most {MAX_DESCRIPTION} bytes");
        return Err(Refusal::invalid_field("/description", detail));
    }
    Ok(())
}

/// Lists images.
#[utoipa::path(
    get, path = "/api/v1/images", tag = "images", params(CatalogParams),
    responses((status = 200, description = "One page of images", body = Page<ImageSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<CatalogParams>,
) -> Result<Json<Page<ImageSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let filter = Filter {
        search: params.search,
        approval: params.status.as_deref().map(approval).transpose()?,
        category: params.category,
    };
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, &filter, after, size)?))
        .await?;
    Ok(Json(page(found, size, |image| image.id)))
}

/// Adds an image. One that is known already is a conflict.
#[utoipa::path(
    post, path = "/api/v1/images", tag = "images", request_body = NewImage,
    responses((status = 201, description = "Added", body = ImageDetail))
)]
pub async fn add(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Strict(new): Strict<NewImage>,
) -> Result<(StatusCode, Json<ImageDetail>), Refusal> {
    let repository = repository(&new)?;
    let decided = new
        .approval_status
        .as_deref()
        .map_or(Ok(Approval::Approved), approval)?;
    let about = About {
        category: new.category,
        description: new.description,
        is_official: new.is_official,
    };
    check(&about)?;
    refuse_alone(&app, Some(decided))?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let image = app
        .store
        .transact(move |tx| -> Result<ImageDetail, Refusal> {
            let added = stored::insert(tx, &repository, &about, decided, &by.name, now)?;
            let Some(id) = added else {
                return Err(Refusal::new(
                    StatusCode::CONFLICT,
                    "known_image",
                    format!("{repository} is known already"),
                ));
            };
            let image = stored::find(tx, id)?.ok_or_else(Refusal::internal)?;
            note(tx, &by, "image.add", &image, None, now)?;
            approvals::settle(tx, &image, &by, now)?;
            detail(tx, image)
        })
        .await?;
    // A push may have waited for this.
    app.pushes.deliver_soon.notify_one();
    Ok((StatusCode::CREATED, Json(image)))
}

/// Shows an image.
#[utoipa::path(
    get, path = "/api/v1/images/{id}", tag = "images",
    params(("id" = i64, Path, description = "Number of the image")),
    responses((status = 200, description = "The image", body = ImageDetail))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<ImageDetail>, Refusal> {
    let found = app
        .store
        .read(move |tx| {
            let image = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            detail(tx, image)
        })
        .await?;
    Ok(Json(found))
}

/// Changes an image, or the decision about it.
#[utoipa::path(
    put, path = "/api/v1/images/{id}", tag = "images", request_body = ImageChange,
    params(("id" = i64, Path, description = "Number of the image")),
    responses((status = 200, description = "As it is now", body = ImageDetail))
)]
pub async fn change(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
    Strict(new): Strict<ImageChange>,
) -> Result<Json<ImageDetail>, Refusal> {
    let decided = new.approval_status.as_deref().map(approval).transpose()?;
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    let shared = app.clone();
    let image = app
        .store
        .transact(move |tx| -> Result<ImageDetail, Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            let decided = decided.filter(|decided| *decided != before.approval);
            refuse_alone(&shared, decided)?;
            let about = About {
                category: new
                    .category
                    .clone()
                    .unwrap_or_else(|| before.category.clone()),
                description: new
                    .description
                    .clone()
                    .unwrap_or_else(|| before.description.clone()),
                is_official: new.is_official.unwrap_or(before.is_official),
            };
            check(&about)?;
            stored::describe(tx, id, &about, now)?;
            if let Some(decided) = decided {
                stored::decide(tx, id, decided, &by.name, now)?;
                if decided != Approval::Approved {
                    stored::disapprove_digests(tx, id)?;
                }
            }
            let image = stored::find(tx, id)?.ok_or_else(Refusal::internal)?;
            note(tx, &by, "image.change", &image, Some(&before), now)?;
            approvals::settle(tx, &image, &by, now)?;
            detail(tx, image)
        })
        .await?;
    app.pushes.deliver_soon.notify_one();
    Ok(Json(image))
}

/// Forgets an image: from now on it is unknown.
#[utoipa::path(
    delete, path = "/api/v1/images/{id}", tag = "images",
    params(("id" = i64, Path, description = "Number of the image")),
    responses((status = 204, description = "Forgotten"))
)]
pub async fn remove(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    NumberPath(id): NumberPath,
) -> Result<StatusCode, Refusal> {
    let (now, by) = (clock::now(), actor(&principal, &request_id));
    app.store
        .transact(move |tx| -> Result<(), Refusal> {
            let before = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            stored::remove(tx, id)?;
            Ok(note(tx, &by, "image.remove", &before, Some(&before), now)?)
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists categories and how many images each has.
#[utoipa::path(
    get, path = "/api/v1/images/categories", tag = "images",
    responses((status = 200, description = "The categories", body = Vec<Category>))
)]
pub async fn categories(State(app): State<Shared>) -> Result<Json<Vec<Category>>, Refusal> {
    let found = app
        .store
        .read(|tx| Ok::<_, Refusal>(stored::categories(tx)?))
        .await?;
    let category = |(category, count)| Category { category, count };
    Ok(Json(found.into_iter().map(category).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, registry: Option<&str>, namespace: Option<&str>) -> Result<String, ()> {
        let new = NewImage {
            image_name: name.to_owned(),
            registry: registry.map(str::to_owned),
            namespace: namespace.map(str::to_owned),
            category: String::new(),
            description: String::new(),
            is_official: false,
            approval_status: None,
        };
        let found = repository(&new).map_err(|_| ())?;
        Ok(format!("{}/{}", found.registry(), found.path()))
    }

    #[test]
    fn an_image_has_one_name_however_it_is_written() {
        let portainer = Ok("docker.io/portainer/portainer-ce".to_owned());
        assert_eq!(name("portainer/portainer-ce", None, None), portainer);
        assert_eq!(name("portainer-ce", None, Some("portainer")), portainer);
        assert_eq!(
            name("portainer/portainer-ce", None, Some("portainer")),
            portainer
        );
        assert_eq!(
            name("docker.io/portainer/portainer-ce", None, None),
            portainer
        );
        assert_eq!(
            name("portainer-ce", Some("docker.io"), Some("portainer")),
            portainer
        );
        let redis = Ok("docker.io/library/redis".to_owned());
        assert_eq!(name("redis", None, None), redis);
        assert_eq!(name("redis", Some("docker.io"), None), redis);
        assert_eq!(name("redis", None, Some("library")), redis);
        let web = Ok("ghcr.io/acme/web".to_owned());
        assert_eq!(name("ghcr.io/acme/web", None, None), web);
        assert_eq!(name("acme/web", Some("ghcr.io"), None), web);
        assert_eq!(name("web", Some("ghcr.io"), Some("acme")), web);
        assert!(name("redis:7", None, None).is_err());
        assert!(name("portainer/x", None, Some("other")).is_err());
        assert!(name("Not A Name", None, None).is_err());
    }
}
