//! Owns the tables of images that may run, of their tags and of their approved content.

use holdfast_domain::approval::Approval;
use holdfast_domain::resolution::Key;
use holdfast_proto::image::{Digest, Repository};
use holdfast_proto::time::Timestamp;

use super::db::{Row, StoreError, Tx};
use crate::params;

/// An image and what people decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its number.
    pub id: i64,
    /// The registry's canonical name.
    pub registry: String,
    /// Its path there.
    pub repository: String,
    /// What kind of thing it is, as people sort it.
    pub category: String,
    /// What it is for.
    pub description: String,
    /// Whether its registry vouches for it.
    pub is_official: bool,
    /// Whether it may run.
    pub approval: Approval,
    /// Who decided.
    pub decided_by: Option<String>,
    /// When.
    pub decided_at: Option<Timestamp>,
    /// When it was added.
    pub created_at: Timestamp,
    /// When anything of it changed last.
    pub updated_at: Timestamp,
}

/// What people say of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// What kind of thing it is.
    pub category: String,
    /// What it is for.
    pub description: String,
    /// Whether its registry vouches for it.
    pub is_official: bool,
}

/// The approval's word in the database and on the wire.
pub fn approval_name(approval: Approval) -> &'static str {
    match approval {
        Approval::Pending => "pending",
        Approval::Approved => "approved",
        Approval::Rejected => "rejected",
    }
}

/// The approval with this word.
pub fn approval_named(name: &str) -> Option<Approval> {
    [Approval::Pending, Approval::Approved, Approval::Rejected]
        .into_iter()
        .find(|approval| approval_name(*approval) == name)
}

const STATEMENT: &str = "images";

fn image(row: &Row) -> Result<Image, StoreError> {
    Ok(Image {
        id: row.int(0)?,
        registry: row.text(1)?.to_owned(),
        repository: row.text(2)?.to_owned(),
        category: row.text(3)?.to_owned(),
        description: row.text(4)?.to_owned(),
        is_official: row.int(5)? != 0,
        approval: approval_named(row.text(6)?).ok_or(StoreError::Column {
            statement: STATEMENT,
            column: 6,
        })?,
        decided_by: row.opt_text(7)?.map(str::to_owned),
        decided_at: row.opt_time(8)?,
        created_at: row.time(9)?,
        updated_at: row.time(10)?,
    })
}

/// Adds an image; none when it is there already.
pub fn insert(
    tx: &mut Tx<'_>,
    repository: &Repository,
    about: &About,
    approval: Approval,
    by: &str,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    let decided = (approval != Approval::Pending).then_some(());
    tx.query_opt(
        "insert into images (registry, repository, category, description, is_official, approval,
                             decided_by, decided_at, created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
         on conflict (registry, repository) do nothing returning id",
        params![
            repository.registry(),
            repository.path(),
            &about.category,
            &about.description,
            about.is_official,
            approval_name(approval),
            decided.map(|()| by.to_owned()),
            decided.map(|()| now),
            now
        ],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// The image with this number.
pub fn find(tx: &mut Tx<'_>, id: i64) -> Result<Option<Image>, StoreError> {
    tx.query_opt(
        "select id, registry, repository, category, description, is_official, approval, decided_by,
                decided_at, created_at, updated_at
         from images where id = $1",
        params![id],
    )?
    .as_ref()
    .map(image)
    .transpose()
}

/// The image with this canonical name.
pub fn named(tx: &mut Tx<'_>, repository: &Repository) -> Result<Option<Image>, StoreError> {
    tx.query_opt(
        "select id, registry, repository, category, description, is_official, approval, decided_by,
                decided_at, created_at, updated_at
         from images where registry = $1 and repository = $2",
        params![repository.registry(), repository.path()],
    )?
    .as_ref()
    .map(image)
    .transpose()
}

/// Which images a list shows; everything without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// What the name or description contains, folded; `%` and `_` stand for themselves.
    pub search: Option<String>,
    /// What was decided.
    pub approval: Option<Approval>,
    /// The category.
    pub category: Option<String>,
}

/// One page of images, in the order they were added.
pub fn list(
    tx: &mut Tx<'_>,
    filter: &Filter,
    after: i64,
    limit: i64,
) -> Result<Vec<Image>, StoreError> {
    let search = filter.search.as_deref().map(|text| {
        let text = text.to_lowercase();
        let text = text
            .replace('\\', "\\\\")
            .replace('%', "\\%")
            .replace('_', "\\_");
        format!("%{text}%")
    });
    tx.query(
        "select id, registry, repository, category, description, is_official, approval, decided_by,
                decided_at, created_at, updated_at
         from images
         where id > $1
           and (cast($2 as text) is null or approval = $2)
           and (cast($3 as text) is null or category = $3)
           and (cast($4 as text) is null
                or lower(registry || '/' || repository || ' ' || description) like $4 escape '\\')
         order by id limit $5",
        params![
            after,
            filter.approval.map(approval_name),
            filter.category.as_deref(),
            search.as_deref(),
            limit
        ],
    )?
    .iter()
    .map(image)
    .collect()
}

/// Every category and how many images are of it.
pub fn categories(tx: &mut Tx<'_>) -> Result<Vec<(String, u64)>, StoreError> {
    tx.query(
        "select category, count(*) from images group by category order by category",
        params![],
    )?
    .iter()
    .map(|row| Ok((row.text(0)?.to_owned(), row.count(1)?)))
    .collect()
}

/// Changes what people say of an image.
pub fn describe(tx: &mut Tx<'_>, id: i64, about: &About, now: Timestamp) -> Result<(), StoreError> {
    tx.execute(
        "update images set category = $2, description = $3, is_official = $4, updated_at = $5
         where id = $1",
        params![
            id,
            &about.category,
            &about.description,
            about.is_official,
            now
        ],
    )?;
    Ok(())
}

/// Notes a decision.
pub fn decide(
    tx: &mut Tx<'_>,
    id: i64,
    approval: Approval,
    by: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "update images set approval = $2, decided_by = $3, decided_at = $4, updated_at = $4
         where id = $1",
        params![id, approval_name(approval), by, now],
    )?;
    Ok(())
}

/// Forgets an image, its tags and its approvals.
pub fn remove(tx: &mut Tx<'_>, id: i64) -> Result<bool, StoreError> {
    Ok(tx.execute("delete from images where id = $1", params![id])? > 0)
}

/// A tag of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its number.
    pub id: i64,
    /// Its text.
    pub tag: String,
    /// Whether people are to choose it.
    pub is_recommended: bool,
    /// Whether it is not to be rolled out any more.
    pub is_deprecated: bool,
    /// For which machines alone, if not for all.
    pub architecture: Option<String>,
    /// What it meant when it was seen last.
    pub digest: Option<Digest>,
    /// When it was added.
    pub created_at: Timestamp,
    /// When anything of it changed last.
    pub updated_at: Timestamp,
}

/// What people say of a tag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AboutTag {
    /// Whether people are to choose it.
    pub is_recommended: bool,
    /// Whether it is not to be rolled out any more.
    pub is_deprecated: bool,
    /// For which machines alone.
    pub architecture: Option<String>,
}

fn tag(row: &Row) -> Result<Tag, StoreError> {
    Ok(Tag {
        id: row.int(0)?,
        tag: row.text(1)?.to_owned(),
        is_recommended: row.int(2)? != 0,
        is_deprecated: row.int(3)? != 0,
        architecture: row.opt_text(4)?.map(str::to_owned),
        digest: row.opt_text(5)?.map(|_| row.parsed(5)).transpose()?,
        created_at: row.time(6)?,
        updated_at: row.time(7)?,
    })
}

/// Adds a tag to an image; none when it is there already.
pub fn insert_tag(
    tx: &mut Tx<'_>,
    image_id: i64,
    name: &str,
    about: &AboutTag,
    digest: Option<&Digest>,
    now: Timestamp,
) -> Result<Option<i64>, StoreError> {
    tx.query_opt(
        "insert into image_tags (image_id, tag, is_recommended, is_deprecated, architecture, digest,
                                 created_at, updated_at)
         values ($1, $2, $3, $4, $5, $6, $7, $7)
         on conflict (image_id, tag) do nothing returning id",
        params![
            image_id,
            name,
            about.is_recommended,
            about.is_deprecated,
            about.architecture.as_deref(),
            digest.map(ToString::to_string),
            now
        ],
    )?
    .map(|row| row.int(0))
    .transpose()
}

/// One page of the tags of an image, in the order they were added.
pub fn tags(
    tx: &mut Tx<'_>,
    image_id: i64,
    after: i64,
    limit: i64,
) -> Result<Vec<Tag>, StoreError> {
    tx.query(
        "select id, tag, is_recommended, is_deprecated, architecture, digest, created_at, updated_at
         from image_tags where image_id = $1 and id > $2 order by id limit $3",
        params![image_id, after, limit],
    )?
    .iter()
    .map(tag)
    .collect()
}

/// The tags of an image that count most: those that are recommended first, then the newest.
pub fn foremost_tags(tx: &mut Tx<'_>, image_id: i64, limit: i64) -> Result<Vec<Tag>, StoreError> {
    tx.query(
        "select id, tag, is_recommended, is_deprecated, architecture, digest, created_at, updated_at
         from image_tags where image_id = $1 order by is_recommended desc, id desc limit $2",
        params![image_id, limit],
    )?
    .iter()
    .map(tag)
    .collect()
}

/// One tag of an image by its number.
pub fn find_tag(tx: &mut Tx<'_>, image_id: i64, id: i64) -> Result<Option<Tag>, StoreError> {
    tx.query_opt(
        "select id, tag, is_recommended, is_deprecated, architecture, digest, created_at, updated_at
         from image_tags where image_id = $1 and id = $2",
        params![image_id, id],
    )?
    .as_ref()
    .map(tag)
    .transpose()
}

/// One page of every image's tags, after row `after`: the row, the image's registry and path, the tag.
pub fn all_tags(tx: &mut Tx<'_>, after: i64, limit: i64) -> Result<Vec<(i64, Key)>, StoreError> {
    tx.query(
        "select t.id, i.registry, i.repository, t.tag
         from image_tags t join images i on i.id = t.image_id
         where t.id > $1 order by t.id limit $2",
        params![after, limit],
    )?
    .iter()
    .map(|row| {
        let key = Key {
            registry: row.text(1)?.to_owned(),
            repository: row.text(2)?.to_owned(),
            selector: row.text(3)?.to_owned(),
        };
        Ok((row.int(0)?, key))
    })
    .collect()
}

/// One tag of an image by its text.
pub fn tag_named(tx: &mut Tx<'_>, image_id: i64, name: &str) -> Result<Option<Tag>, StoreError> {
    tx.query_opt(
        "select id, tag, is_recommended, is_deprecated, architecture, digest, created_at, updated_at
         from image_tags where image_id = $1 and tag = $2",
        params![image_id, name],
    )?
    .as_ref()
    .map(tag)
    .transpose()
}

/// Changes what people say of a tag; false when the image has no such tag.
pub fn describe_tag(
    tx: &mut Tx<'_>,
    image_id: i64,
    id: i64,
    about: &AboutTag,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "update image_tags set is_recommended = $3, is_deprecated = $4, architecture = $5, updated_at = $6
         where image_id = $1 and id = $2",
        params![
            image_id,
            id,
            about.is_recommended,
            about.is_deprecated,
            about.architecture.as_deref(),
            now
        ],
    )?;
    Ok(changed > 0)
}

/// Notes what a tag means now.
pub fn see(
    tx: &mut Tx<'_>,
    image_id: i64,
    name: &str,
    digest: &Digest,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "update image_tags set digest = $3, updated_at = $4
         where image_id = $1 and tag = $2 and (digest is null or digest <> $3)",
        params![image_id, name, digest.to_string(), now],
    )?;
    Ok(())
}

/// Forgets a tag; false when the image has no such tag.
pub fn remove_tag(tx: &mut Tx<'_>, image_id: i64, id: i64) -> Result<bool, StoreError> {
    let removed = tx.execute(
        "delete from image_tags where image_id = $1 and id = $2",
        params![image_id, id],
    )?;
    Ok(removed > 0)
}

/// Notes that this content may run.
pub fn approve_digest(
    tx: &mut Tx<'_>,
    image_id: i64,
    digest: &Digest,
    tag: Option<&str>,
    by: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.execute(
        "insert into approved_digests (image_id, digest, tag, approved_by, approved_at)
         values ($1, $2, $3, $4, $5) on conflict (image_id, digest) do nothing",
        params![image_id, digest.to_string(), tag, by, now],
    )?;
    Ok(())
}

/// Whether this content may run.
pub fn is_digest_approved(
    tx: &mut Tx<'_>,
    image_id: i64,
    digest: &Digest,
) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "select image_id from approved_digests where image_id = $1 and digest = $2",
        params![image_id, digest.to_string()],
    )?;
    Ok(found.is_some())
}

/// Takes back that any content of an image may run.
pub fn disapprove_digests(tx: &mut Tx<'_>, image_id: i64) -> Result<(), StoreError> {
    tx.execute(
        "delete from approved_digests where image_id = $1",
        params![image_id],
    )?;
    Ok(())
}
