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
use crate::manifest::{ACCEPT_MANIFESTS, Configuration, Document, MAX_MANIFEST_BYTES};
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
    /// Read in parts from this byte on, for as long as it takes; whole within the time-out without.
    pub(crate) streams_from: Option<u64>,
    pub(crate) limit: usize,
}

static GET: Method = Method::GET;

impl<'a> Question<'a> {
    /// For a manifest or an index, by its tag or digest.
    pub(crate) fn manifest(
        repository: &'a Repository,
        who: Option<&'a Identity>,
        name: &'a str,
    ) -> Self {
        Self {
            repository,
            who,
            method: &GET,
            kind: "manifests",
            name,
            accept: ACCEPT_MANIFESTS,
            if_none_match: None,
            streams_from: None,
            limit: MAX_MANIFEST_BYTES,
        }
    }

    /// For a blob, by its digest.
    pub(crate) fn blob(
        repository: &'a Repository,
        who: Option<&'a Identity>,
        name: &'a str,
        limit: usize,
    ) -> Self {
        Self {
            kind: "blobs",
            accept: "*/*",
            limit,
            ..Self::manifest(repository, who, name)
        }
    }

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
        for mirror in self.mirrors(question) {
            match self.fetch_at(question, &mirror).await {
                Ok(fetched) => return Ok(fetched),
                Err(error) => self.pass_by(&mirror, &error),
            }
        }
        self.fetch_at(question, &Place::origin(question.repository))
            .await
    }

    /// The mirrors that are worth a try, in their order.
    pub(crate) fn mirrors(&self, question: &Question<'_>) -> Vec<Place> {
        // Whoever has credentials of their own has them for the registry itself.
        let mut mirrors = match question.who {
            None => Place::mirrors(&self.settings, question.repository),
            Some(_) => Vec::new(),
        };
        mirrors.retain(|mirror| self.lanes.is_rested(&mirror.registry));
        mirrors
    }

    /// Goes on to the next: one that cannot be reached is left alone for a while.
    pub(crate) fn pass_by(&self, mirror: &Place, error: &RegistryError) {
        if matches!(
            error,
            RegistryError::Unreachable { .. } | RegistryError::TimedOut { .. }
        ) {
            self.lanes.rest(&mirror.registry);
        }
        tracing::debug!(
            mirror = %mirror.host, path = mirror.path, error = %error,
            "a mirror did not answer; the next one is asked"
        );
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
