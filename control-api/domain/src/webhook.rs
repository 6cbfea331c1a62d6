//! Owns what registries say when something was pushed: every vendor's form, read leniently, into one.
//!
//! Refuses to believe it: a push is a hint that a tag may mean something else by now. Members that are not
//! needed may be missing, wrong or new.

mod identity;

use holdfast_proto::image::{Digest, Reference, Repository};
use serde_json::Value;

pub use identity::identity;

/// Pushes of one delivery: a registry sends a handful.
const MAX_PUSHES: usize = 1_000;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vendor {
    /// Docker Hub.
    DockerHub,
    /// GitHub's container registry.
    Github,
    /// A registry of the distribution project, and its relatives: GitLab, Zot.
    Distribution,
    /// Harbor.
    Harbor,
    /// Quay.
    Quay,
    /// Azure Container Registry.
    Acr,
    /// Amazon's, by way of `EventBridge`.
    Ecr,
    /// Google Artifact Registry, by way of Pub/Sub.
    Gar,
    /// `JFrog` Artifactory.
    Jfrog,
    /// A pipeline of one's own: `{image, tag, digest?}`.
    Generic,
}

impl Vendor {
    /// All of them, with their names in paths.
    pub const ALL: [(&'static str, Self); 11] = [
        ("docker_hub", Self::DockerHub),
        ("github", Self::Github),
        ("distribution", Self::Distribution),
        ("gitlab", Self::Distribution),
        ("harbor", Self::Harbor),
        ("quay", Self::Quay),
        ("acr", Self::Acr),
        ("ecr", Self::Ecr),
        ("gar", Self::Gar),
        ("jfrog", Self::Jfrog),
        ("generic", Self::Generic),
    ];

    /// The vendor with this name in a path.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(known, _)| *known == name)
            .map(|(_, vendor)| vendor)
    }

    /// Its name; of several, the first.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, vendor)| *vendor == self)
            .map_or("", |(name, _)| name)
    }

    /// Whether the answer's status tells the verdict: whoever else sends repeats what gets no 2xx, and a
    /// refusal is no failure.
    pub const fn reads_the_status(self) -> bool {
        match self {
            Self::DockerHub | Self::Generic => true,
            Self::Github
            | Self::Distribution
            | Self::Harbor
            | Self::Quay
            | Self::Acr
            | Self::Ecr
            | Self::Gar
            | Self::Jfrog => false,
        }
    }

    /// Who sent this, by what only that vendor's form has.
    pub fn detect(body: &Value) -> Option<Self> {
        let has = |pointer: &str| body.pointer(pointer).is_some();
        let forms = [
            ("/push_data", Self::DockerHub),
            ("/registry_package", Self::Github),
            ("/package/package_version", Self::Github),
            ("/events", Self::Distribution),
            ("/event_data", Self::Harbor),
            ("/data/resources", Self::Harbor),
            ("/docker_url", Self::Quay),
            ("/detail/repository-name", Self::Ecr),
            ("/message/data", Self::Gar),
            ("/data/image_name", Self::Jfrog),
            ("/target/repository", Self::Acr),
            ("/image", Self::Generic),
        ];
        let mut found = forms.into_iter().filter(|(pointer, _)| has(pointer));
        found.next().map(|(_, vendor)| vendor)
    }

    /// The pushes that it tells of, each once; none when something else happened.
    ///
    /// # Errors
    /// When a push is told of, and not of what.
    pub fn pushes(self, body: &Value) -> Result<Vec<Push>, Unreadable> {
        let read = match self {
            Self::DockerHub => docker_hub(body),
            Self::Github => github(body),
            Self::Distribution => distribution(body),
            Self::Harbor => harbor(body),
            Self::Quay => quay(body),
            Self::Acr => acr(body),
            Self::Ecr => ecr(body),
            Self::Gar => gar(body),
            Self::Jfrog => jfrog(body),
            Self::Generic => generic(body),
        };
        let mut once: Vec<Push> = Vec::new();
        for push in read? {
            if !once.contains(&push) {
                once.push(push);
            }
        }
        Ok(once)
    }
}

/// A tag that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Of which image.
    pub repository: Repository,
    /// Which.
    pub tag: String,
    /// What it is said to mean.
    pub digest: Option<Digest>,
}

/// A delivery that cannot be read: where, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {detail}")]
pub struct Unreadable {
    /// JSON pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong there.
    pub detail: String,
}

type Read = Result<Vec<Push>, Unreadable>;

fn unreadable(pointer: &str, detail: impl Into<String>) -> Unreadable {
    Unreadable {
        pointer: pointer.to_owned(),
        detail: detail.into(),
    }
}

fn text<'a>(body: &'a Value, pointer: &str) -> Option<&'a str> {
    let text = body.pointer(pointer)?.as_str()?.trim();
    (!text.is_empty()).then_some(text)
}

fn needed<'a>(body: &'a Value, pointer: &str) -> Result<&'a str, Unreadable> {
    text(body, pointer).ok_or_else(|| unreadable(pointer, "it is missing, or no text"))
}

fn digest(text: Option<&str>) -> Option<Digest> {
    text?.parse().ok()
}

/// A push of `name`, which may carry a tag of its own.
fn push(pointer: &str, name: &str, tag: &str, digest: Option<Digest>) -> Result<Push, Unreadable> {
    let reference: Reference = name
        .parse()
        .map_err(|error| unreadable(pointer, format!("`{}`: {error}", shortened(name))))?;
    let repository = reference.repository().clone();
    let tagged = format!("{repository}:{tag}");
    // The grammar of tags is the reference's.
    if tagged.parse::<Reference>().is_err() {
        let detail = format!("`{}` is no tag", shortened(tag));
        return Err(unreadable(pointer, detail));
    }
    Ok(Push {
        repository,
        tag: tag.to_owned(),
        digest,
    })
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The items of a list, as many as a delivery may have.
fn items<'a>(body: &'a Value, pointer: &str) -> Result<&'a [Value], Unreadable> {
    let list = body.pointer(pointer).and_then(Value::as_array);
    let list = list.ok_or_else(|| unreadable(pointer, "it is missing, or no list"))?;
    if list.len() > MAX_PUSHES {
        let detail = format!("it has more than {MAX_PUSHES} items");
        return Err(unreadable(pointer, detail));
    }
    Ok(list)
}

fn docker_hub(body: &Value) -> Read {
    let at = "/repository/repo_name";
    let name = needed(body, at)?;
    let tag = needed(body, "/push_data/tag")?;
    // Names of this registry are written without it.
    Ok(vec![push(
        at,
        &format!("docker.io/{}", with_namespace(name)),
        tag,
        None,
    )?])
}

fn with_namespace(name: &str) -> String {
    if name.contains('/') {
        name.to_owned()
    } else {
        format!("library/{name}")
    }
}

fn github(body: &Value) -> Read {
    let at = if body.get("registry_package").is_some() {
        "/registry_package"
    } else {
        "/package"
    };
    let action = text(body, "/action").unwrap_or_default();
    if !matches!(action, "published" | "updated") {
        return Ok(Vec::new());
    }
    let member = |name: &str| format!("{at}{name}");
    let metadata = member("/package_version/container_metadata/tag");
    let url = member("/package_version/package_url");
    let is_container = text(body, &member("/ecosystem"))
        .or(text(body, &member("/package_type")))
        .is_some_and(|kind| kind.eq_ignore_ascii_case("container"))
        || text(body, &url).is_some_and(|url| url.contains("ghcr.io/"));
    // A manifest of one platform is pushed without a tag before its index.
    let Some(tag) = text(body, &format!("{metadata}/name")).filter(|_| is_container) else {
        return Ok(Vec::new());
    };
    let owner = text(body, &member("/namespace"))
        .or(text(body, &member("/owner/login")))
        .or(text(body, "/repository/owner/login"));
    let owner = owner.ok_or_else(|| unreadable(&member("/namespace"), "it is missing"))?;
    let owner = owner.split('/').next().unwrap_or(owner).to_lowercase();
    let name = needed(body, &member("/name"))?.to_lowercase();
    let digest = digest(text(body, &format!("{metadata}/digest")));
    Ok(vec![push(
        at,
        &format!("ghcr.io/{owner}/{name}"),
        tag,
        digest,
    )?])
}

/// Whether a media type is that of something a tag can mean.
fn is_image(media_type: &str) -> bool {
    media_type.is_empty() || media_type.contains("manifest") || media_type.contains("index")
}

fn distribution(body: &Value) -> Read {
    let mut found = Vec::new();
    for (n, event) in items(body, "/events")?.iter().enumerate() {
        if text(event, "/action") != Some("push") {
            continue;
        }
        let Some(tag) = text(event, "/target/tag") else {
            continue;
        };
        if !is_image(text(event, "/target/mediaType").unwrap_or_default()) {
            continue;
        }
        let at = format!("/events/{n}/target/repository");
        let name = text(event, "/target/repository");
        let name = name.ok_or_else(|| unreadable(&at, "it is missing, or no text"))?;
        let host = text(event, "/request/host");
        let host = host.ok_or_else(|| {
            unreadable(
                &format!("/events/{n}/request/host"),
                "it is missing, or no text",
            )
        })?;
        let digest = digest(text(event, "/target/digest"));
        found.push(push(&at, &format!("{host}/{name}"), tag, digest)?);
    }
    Ok(found)
}

fn harbor(body: &Value) -> Read {
    let kind = text(body, "/type").unwrap_or_default();
    if !kind.eq_ignore_ascii_case("PUSH_ARTIFACT") && kind != "harbor.artifact.pushed" {
        return Ok(Vec::new());
    }
    // As an event of its own, or wrapped as CloudEvents.
    let at = if body.get("event_data").is_some() {
        "/event_data/resources"
    } else {
        "/data/resources"
    };
    let mut found = Vec::new();
    for (n, resource) in items(body, at)?.iter().enumerate() {
        let Some(tag) = text(resource, "/tag") else {
            continue;
        };
        let at = format!("{at}/{n}/resource_url");
        let url = text(resource, "/resource_url");
        let url = url.ok_or_else(|| unreadable(&at, "it is missing, or no text"))?;
        let name = url.split('@').next().unwrap_or(url);
        found.push(push(&at, name, tag, digest(text(resource, "/digest")))?);
    }
    Ok(found)
}

fn quay(body: &Value) -> Read {
    let name = needed(body, "/docker_url")?;
    let mut found = Vec::new();
    for (n, tag) in items(body, "/updated_tags")?.iter().enumerate() {
        let at = format!("/updated_tags/{n}");
        let tag = tag
            .as_str()
            .ok_or_else(|| unreadable(&at, "it is no text"))?;
        found.push(push(&at, name, tag, None)?);
    }
    Ok(found)
}

fn acr(body: &Value) -> Read {
    if text(body, "/action") != Some("push") {
        return Ok(Vec::new());
    }
    let Some(tag) = text(body, "/target/tag") else {
        return Ok(Vec::new());
    };
    let at = "/target/repository";
    let name = format!("{}/{}", needed(body, "/request/host")?, needed(body, at)?);
    let digest = digest(text(body, "/target/digest"));
    Ok(vec![push(at, &name, tag, digest)?])
}

fn ecr(body: &Value) -> Read {
    let is_push = text(body, "/detail/action-type") == Some("PUSH")
        && text(body, "/detail/result").is_none_or(|result| result == "SUCCESS");
    let Some(tag) = text(body, "/detail/image-tag").filter(|_| is_push) else {
        return Ok(Vec::new());
    };
    let (account, region) = (needed(body, "/account")?, needed(body, "/region")?);
    let at = "/detail/repository-name";
    let end = if region.starts_with("cn-") { ".cn" } else { "" };
    let name = format!(
        "{account}.dkr.ecr.{region}.amazonaws.com{end}/{}",
        needed(body, at)?
    );
    let digest = digest(text(body, "/detail/image-digest"));
    Ok(vec![push(at, &name, tag, digest)?])
}

fn gar(body: &Value) -> Read {
    use base64::Engine as _;
    let at = "/message/data";
    let bytes = base64::engine::general_purpose::STANDARD.decode(needed(body, at)?);
    let bytes = bytes.map_err(|_| unreadable(at, "it is not base64"))?;
    let data: Value =
        serde_json::from_slice(&bytes).map_err(|_| unreadable(at, "what it holds is not JSON"))?;
    if text(&data, "/action") != Some("INSERT") {
        return Ok(Vec::new());
    }
    let Some(tagged) = text(&data, "/tag") else {
        return Ok(Vec::new());
    };
    let (name, tag) = tagged
        .rsplit_once(':')
        .ok_or_else(|| unreadable(at, "its `tag` names no tag"))?;
    let pinned = text(&data, "/digest").and_then(|pinned| pinned.split_once('@'));
    let digest = digest(pinned.map(|(_, digest)| digest));
    Ok(vec![push(at, name, tag, digest)?])
}

fn jfrog(body: &Value) -> Read {
    if text(body, "/event_type") != Some("pushed") {
        return Ok(Vec::new());
    }
    let at = "/data/image_name";
    let origin = needed(body, "/jpd_origin")?;
    let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    let name = format!(
        "{host}/{}/{}",
        needed(body, "/data/repo_key")?,
        needed(body, at)?
    );
    let hex = text(body, "/data/sha256").map(|hex| format!("sha256:{hex}"));
    let tag = needed(body, "/data/tag")?;
    Ok(vec![push(at, &name, tag, digest(hex.as_deref()))?])
}

fn generic(body: &Value) -> Read {
    let at = "/image";
    let name = needed(body, at)?;
    let reference: Reference = name
        .parse()
        .map_err(|error| unreadable(at, format!("`{}`: {error}", shortened(name))))?;
    let tag = text(body, "/tag").or(reference.tag()).unwrap_or("latest");
    let said = text(body, "/digest");
    let found = digest(said).or(reference.digest().copied());
    if said.is_some() && found.is_none() {
        return Err(unreadable("/digest", "it is no digest: write sha256:…"));
    }
    let name = reference.repository().to_string();
    Ok(vec![push(at, &name, tag, found)?])
}

#[cfg(test)]
mod tests;
