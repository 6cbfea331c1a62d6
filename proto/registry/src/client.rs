//! Owns the client: what it is made of, what it can be asked, and in which order servers are asked.

use holdfast_proto::image::{Digest, Repository, ResolvedImage};
use reqwest::Method;

use crate::answer::Fetched;
use crate::auth::Logins;
use crate::cache::Answers;
use crate::documents::Kept;
use crate::error::RegistryError;
use crate::filter::Filter;
use crate::lanes::Lanes;
use crate::manifest::{Configuration, Document};
use crate::place::Place;
use crate::settings::{Identity, Settings};
use crate::ways::Ways;

/// Asks registries what references point at.
#[derive(Debug)]
pub struct Client {
    pub(crate) ways: Ways,
    pub(crate) filter: Filter,
    pub(crate) settings: Settings,
    pub(crate) logins: Logins,
    pub(crate) lanes: Lanes,
    pub(crate) images: Answers<ResolvedImage>,
    pub(crate) tags: Answers<Vec<String>>,
    pub(crate) documents: Kept<Document>,
    pub(crate) configurations: Kept<Configuration>,
}

/// What to ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) repository: &'a Repository,
    /// Whose credentials count; the configured ones without.
    pub(crate) who: Option<&'a Identity>,
    pub(crate) method: &'a Method,
    /// `manifests`, `blobs` or `tags`.
    pub(crate) kind: &'static str,
    /// A tag or a digest, or `list` of tags, with its query.
    pub(crate) name: &'a str,
    pub(crate) accept: &'static str,
    pub(crate) if_none_match: Option<&'a Digest>,
    pub(crate) limit: usize,
}

impl Question<'_> {
    /// What is asked for, in words.
    pub(crate) fn what(&self) -> String {
        format!(
            "{} {} of {}",
            self.kind.trim_end_matches('s'),
            self.name,
            self.repository
        )
    }
}

impl Client {
    /// A client; the process must have installed a TLS provider before.
    pub fn new(settings: Settings) -> Result<Self, RegistryError> {
        let settings = settings.in_order();
        let filter = Filter::new(&settings);
        Ok(Self {
            ways: Ways::new(&settings, &filter)?,
            filter,
            images: Answers::new(settings.cache_ttl, settings.failure_ttl),
            tags: Answers::new(settings.cache_ttl, settings.failure_ttl),
            settings,
            logins: Logins::default(),
            lanes: Lanes::default(),
            documents: Kept::default(),
            configurations: Kept::default(),
        })
    }

    /// Asks the mirrors, then the registry itself; the first good answer counts.
    pub(crate) async fn fetch(&self, question: &Question<'_>) -> Result<Fetched, RegistryError> {
        let repository = question.repository;
        // Whoever has credentials of their own has them for the registry itself.
        let mirrors = match question.who {
            None => Place::mirrors(&self.settings, repository),
            Some(_) => Vec::new(),
        };
        for mirror in mirrors {
            if !self.lanes.is_rested(&mirror.registry) {
                continue;
            }
            let error = match self.fetch_at(question, &mirror).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => error,
            };
            if matches!(
                error,
                RegistryError::Unreachable { .. } | RegistryError::TimedOut { .. }
            ) {
                self.lanes.rest(&mirror.registry);
            }
            tracing::debug!(
                mirror = %mirror.host, registry = repository.registry(), error = %error,
                "a mirror did not answer; the next one is asked"
            );
        }
        self.fetch_at(question, &Place::origin(repository)).await
    }

    async fn fetch_at(
        &self,
        question: &Question<'_>,
        place: &Place,
    ) -> Result<Fetched, RegistryError> {
        let asked = self.fetch_with_login(question, place);
        self.lanes.ask(&place.registry, asked).await
    }
}
