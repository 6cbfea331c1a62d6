//! Recipes that are in wide use, followed to the letter, to see how often they lie.

use std::fmt;

use reqwest::Method;
use serde_json::Value;

use super::shape::Family;
use crate::layers::sha256;
use crate::registry::ACCEPT_ALL;

/// A way to find out whether there is an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recipe {
    /// Picks the platform's manifest from the index and looks for its digest among the `RepoDigests`.
    PlatformDigest,
    /// Asks for `manifest.v2+json` alone and looks for the digest among the `RepoDigests`.
    OneMediaType,
    /// Compares the engine's image ID with the manifest's digest.
    ImageId,
    /// Asks for the tag's digest with HEAD and looks for it among the `RepoDigests`.
    TagDigest,
}

/// What a recipe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// There is an update.
    Update,
    /// There is none.
    NoUpdate,
    /// It broke off.
    Nothing,
}

impl Recipe {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::PlatformDigest,
        Self::OneMediaType,
        Self::ImageId,
        Self::TagDigest,
    ];
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PlatformDigest => "platform digest against `RepoDigests`",
            Self::OneMediaType => "`Accept: manifest.v2+json` alone, against `RepoDigests`",
            Self::ImageId => "image ID against manifest digest",
            Self::TagDigest => "tag's digest (HEAD) against `RepoDigests`",
        })
    }
}

/// What a recipe is given.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Where manifests are asked for.
    pub host: &'a str,
    /// The repository there.
    pub repository: &'a str,
    /// The tag.
    pub tag: &'a str,
    /// The platform's entry, as the index writes it: no recipe is let down over that.
    pub platform: &'a Value,
    /// The engine's word for the image that runs.
    pub image: &'a Value,
}

struct Answer {
    header: Option<String>,
    body: Vec<u8>,
}

impl Question<'_> {
    async fn ask(
        &self,
        client: &reqwest::Client,
        method: Method,
        accept: &str,
    ) -> anyhow::Result<Option<Answer>> {
        let url = format!(
            "http://{}/v2/{}/manifests/{}",
            self.host, self.repository, self.tag
        );
        let answer = client.request(method, url).header("accept", accept);
        let answer = answer.send().await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let header = answer.headers().get("docker-content-digest");
        let header = header.and_then(|value| value.to_str().ok().map(str::to_owned));
        Ok(Some(Answer {
            header,
            body: answer.bytes().await?.to_vec(),
        }))
    }

    fn is_pulled(&self, digest: &str) -> Said {
        let known = self.image["RepoDigests"].as_array().into_iter().flatten();
        let mut known = known.filter_map(Value::as_str);
        if known.any(|name| name.ends_with(digest)) {
            Said::NoUpdate
        } else {
            Said::Update
        }
    }

    /// The digest of the platform's manifest.
    fn own(&self, body: &[u8]) -> Option<String> {
        let document: Value = serde_json::from_slice(body).ok()?;
        let Some(entries) = document["manifests"].as_array() else {
            return Some(sha256(body));
        };
        let own = entries
            .iter()
            .find(|entry| entry["platform"] == *self.platform)?;
        own["digest"].as_str().map(str::to_owned)
    }

    /// Follows a recipe.
    pub async fn follow(&self, recipe: Recipe, client: &reqwest::Client) -> anyhow::Result<Said> {
        let (method, accept) = match recipe {
            Recipe::PlatformDigest | Recipe::ImageId => (Method::GET, ACCEPT_ALL),
            Recipe::OneMediaType => (Method::GET, Family::Docker.manifest()),
            Recipe::TagDigest => (Method::HEAD, ACCEPT_ALL),
        };
        let Some(answer) = self.ask(client, method, accept).await? else {
            return Ok(Said::Nothing);
        };
        Ok(match recipe {
            Recipe::PlatformDigest => self
                .own(&answer.body)
                .map_or(Said::Nothing, |digest| self.is_pulled(&digest)),
            Recipe::OneMediaType => {
                let digest = answer.header.unwrap_or_else(|| sha256(&answer.body));
                self.is_pulled(&digest)
            }
            Recipe::ImageId => match self.own(&answer.body) {
                Some(digest) if self.image["Id"] == *digest => Said::NoUpdate,
                Some(_) => Said::Update,
                None => Said::Nothing,
            },
            Recipe::TagDigest => answer
                .header
                .map_or(Said::Nothing, |digest| self.is_pulled(&digest)),
        })
    }
}
