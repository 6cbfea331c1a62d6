//! Owns where a question is put: at the registry itself, or at a mirror of it.

use holdfast_proto::image::Repository;

use crate::settings::{Mirror, Settings};

/// One repository at one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The server's name in settings, errors and metrics.
    pub(crate) registry: String,
    /// Its host and port.
    pub(crate) host: String,
    /// The repository's path there.
    pub(crate) path: String,
}

impl Place {
    /// The registry that the reference names.
    pub(crate) fn origin(repository: &Repository) -> Self {
        Self {
            registry: repository.registry().to_owned(),
            host: repository.api_host().to_owned(),
            path: repository.path().to_owned(),
        }
    }

    fn mirror(repository: &Repository, mirror: &Mirror) -> Self {
        Self {
            registry: mirror.authority().to_owned(),
            host: mirror.authority().to_owned(),
            path: format!("{}{}", mirror.prefix(), repository.path()),
        }
    }

    /// The mirrors of a repository's registry, in the order they are asked.
    pub(crate) fn mirrors(settings: &Settings, repository: &Repository) -> Vec<Self> {
        let special = settings.of(repository.registry());
        let mirrors = special.map_or(&[][..], |special| &special.mirrors);
        let mirrors = mirrors.iter();
        mirrors
            .map(|mirror| Self::mirror(repository, mirror))
            .collect()
    }
}
