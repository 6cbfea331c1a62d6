//! Owns a registry that answers what a test told it to, at the seam of the resolver.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::future::BoxFuture;
use holdfast_api::resolver::{Answer, Ask, Inquiry};
use holdfast_domain::resolution::Failure;
use holdfast_proto::image::{
    ConfigDigest, Digest, IndexDigest, ManifestDigest, Platform, PlatformImage, Reference,
    ResolvedImage, TopDigest,
};
use holdfast_proto::updates::{Availability, TagCandidate};
use holdfast_registry::{Identity, PullAccess, PullToken, Secret};

#[derive(Debug, Default)]
pub struct Registry {
    answers: Mutex<BTreeMap<String, Answer>>,
    asked: Mutex<Vec<String>>,
    /// With whose credentials, by their id; empty for the configured ones.
    logins: Mutex<Vec<String>>,
}

pub fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

impl Registry {
    /// From now on `reference` is an index of this content for these platforms.
    pub fn push(&self, reference: &str, content: &str, platforms: &[&str]) {
        let parsed: Reference = reference.parse().unwrap();
        let image = ResolvedImage {
            repository: parsed.repository().clone(),
            top: TopDigest::Index(IndexDigest(digest(content))),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            platforms: platforms
                .iter()
                .map(|platform| PlatformImage {
                    platform: platform.parse().unwrap(),
                    manifest_digest: ManifestDigest(digest(&format!("{content} {platform}"))),
                    config_digest: ConfigDigest(digest(&format!("config {content} {platform}"))),
                    size_bytes: 1_000,
                })
                .collect(),
        };
        self.answers
            .lock()
            .unwrap()
            .insert(reference.to_owned(), Ok(image));
    }

    /// From now on the registry of `reference` does not answer.
    pub fn lose(&self, reference: &str) {
        self.answers.lock().unwrap().insert(
            reference.to_owned(),
            Err(Failure::new("unreachable", "connection refused")),
        );
    }

    /// From now on the registry has no such tag.
    pub fn remove(&self, reference: &str) {
        let gone = Failure::new("not_found", "not in the registry (404)");
        let mut answers = self.answers.lock().unwrap();
        answers.insert(reference.to_owned(), Err(gone));
    }

    /// From now on the registry wants peace for so long.
    pub fn limit(&self, reference: &str, retry_after: std::time::Duration) {
        let limited = Failure {
            retry_after: Some(retry_after),
            ..Failure::new("rate_limited", "limits our rate (429)")
        };
        let mut answers = self.answers.lock().unwrap();
        answers.insert(reference.to_owned(), Err(limited));
    }

    /// The logins of the questions so far.
    pub fn logins(&self) -> Vec<String> {
        self.logins.lock().unwrap().clone()
    }

    /// References asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Ask for Registry {
    fn ask<'a>(&'a self, inquiry: Inquiry<'a>) -> BoxFuture<'a, Answer> {
        let reference = inquiry.reference;
        Box::pin(async move {
            self.logins.lock().unwrap().push(
                inquiry
                    .who
                    .map_or_else(String::new, |who| format!("{:?}", who.credentials)),
            );
            let text = reference.to_string();
            self.asked.lock().unwrap().push(text.clone());
            assert!(!text.contains("panic"), "this registry was told to panic");
            let answers = self.answers.lock().unwrap();
            // The background task asks by the canonical name.
            let found = answers.get(&text).or_else(|| {
                answers
                    .iter()
                    .find(|(known, _)| {
                        let known: Reference = known.parse().unwrap();
                        known.repository() == reference.repository()
                            && known.tag_or_latest() == reference.tag_or_latest()
                    })
                    .map(|(_, answer)| answer)
            });
            found.cloned().unwrap_or_else(|| {
                Err(Failure::new(
                    "unreachable",
                    format!("{text} is not known to this registry"),
                ))
            })
        })
    }

    fn pull_access<'a>(
        &'a self,
        reference: &'a Reference,
        who: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<PullAccess, Failure>> {
        let path = reference.repository().path();
        let access = match path {
            _ if path.starts_with("mints/") => Ok(PullAccess::Token(PullToken {
                token: Secret::new(format!("minted for {path}")),
                expires_in: std::time::Duration::from_mins(4),
                registry: reference.repository().registry().to_owned(),
                repository: path.to_owned(),
            })),
            _ if path.starts_with("open/") => Ok(PullAccess::Open),
            _ if who.is_none() => Ok(PullAccess::Open),
            _ if path.starts_with("away/") => Err(Failure::new("unreachable", "no route")),
            _ => Ok(PullAccess::LoginOnly),
        };
        Box::pin(std::future::ready(access))
    }

    fn newer_tags<'a>(
        &'a self,
        reference: &'a Reference,
        platform: &'a Platform,
        _: Option<&'a Identity>,
    ) -> BoxFuture<'a, Result<Vec<TagCandidate>, Failure>> {
        let found = if reference.repository().path().starts_with("away/") {
            Err(Failure::new("unreachable", "no route"))
        } else {
            Ok(vec![TagCandidate {
                tag: format!("{}.1", reference.tag_or_latest()),
                is_latest: true,
                release_url: Some(format!("https://releases.example/{platform}")),
                platform_available: Availability::Yes,
            }])
        };
        Box::pin(std::future::ready(found))
    }

    fn has_login(&self, registry: &str) -> bool {
        registry == "configured.example"
    }

    fn hand_out(&self, _: &str) -> Option<(String, holdfast_api::secret::Secret)> {
        None
    }
}
