//! Owns fetching an image by digest and proving that what came is what was pinned. Refuses to fill the
//! disk for it.

use std::path::PathBuf;

use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::{Content, Digest, Expected, Platform};

use crate::clock::Clock;
use crate::disk;
use crate::engine::{Engine, EngineError, EngineImage, ImageStore, PullAuth};

/// So often a pull's disk is looked at. An engine unpacks some 100 MB a second at most on the disks of
/// small devices: the floor is not passed by more than a few of them between two looks.
const ROOM_LOOK_MS: u64 = 100;

/// An image did not arrive, or is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine says it pulled, and has nothing.
    #[error("the engine pulled {image} but does not have it")]
    Vanished {
        /// The pinned image.
        image: String,
    },
    /// It would have filled the disk.
    #[error("the pull of {image} was cut off: it left only {} MB free", free_bytes / 1_000_000)]
    NoSpace {
        /// The pinned image.
        image: String,
        /// What was left.
        free_bytes: u64,
    },
    /// The engine has another image under this name.
    #[error("pulled {image}, but the engine reports {}", found.map_or_else(|| "no digest".to_owned(), |digest| digest.to_string()))]
    WrongDigest {
        /// The pinned image.
        image: String,
        /// What the engine calls it.
        found: Option<Digest>,
    },
    /// The image is for another kind of machine.
    #[error("pulled {image}, but it is for {found}")]
    WrongPlatform {
        /// The pinned image.
        image: String,
        /// Its platform.
        found: Platform,
    },
}

/// A pull to run.
#[derive(Clone, Debug)]
pub struct Pull {
    /// The pinned image.
    pub image: String,
    /// What must come.
    pub expected: Expected,
    /// The platform to ask for.
    pub platform: Platform,
    /// The device's own platform.
    pub device: Platform,
    /// How the engine names images.
    pub store: ImageStore,
    /// The tag that keeps it once it is there.
    pub keep: String,
    /// The folder of the file system that it fills, and what must stay free there; none if that cannot
    /// be measured.
    pub floor: Option<(PathBuf, u64)>,
    /// Without progress for so long it is given up.
    pub no_progress_ms: u64,
    /// Whether to ask for a login first: the control API knows one for the registry.
    pub login: bool,
}

/// Knows no logins.
#[derive(Clone, Copy, Debug)]
pub struct NoLogins;

impl PullLogins for NoLogins {
    fn find<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>> {
        Box::pin(std::future::ready(None))
    }

    fn renew<'a>(&'a self, _: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>> {
        Box::pin(std::future::ready(None))
    }
}

/// Knows logins for pulls.
pub trait PullLogins {
    /// A login for this pinned image; none leaves the engine to try without.
    fn find<'a>(&'a self, image: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>>;

    /// As [`PullLogins::find`], after the registry refused what there was.
    fn renew<'a>(&'a self, image: &'a str) -> LocalBoxFuture<'a, Option<PullAuth>>;
}

impl Pull {
    /// Pulls, looks at what came, and gives it the tag that keeps it.
    pub async fn run<E: Engine, C: Clock>(
        &self,
        engine: &E,
        clock: &C,
        logins: &dyn PullLogins,
    ) -> Result<(), PullError> {
        let auth = if self.login {
            logins.find(&self.image).await
        } else {
            None
        };
        match self.fetch(engine, clock, auth.as_ref()).await {
            Err(PullError::Engine(refused)) if refused.wants_login() => {
                // A token may have run out, or the login is new and the target does not tell of it yet.
                let renewed = logins.renew(&self.image).await.ok_or(refused)?;
                self.fetch(engine, clock, Some(&renewed)).await?;
            }
            outcome => outcome?,
        }
        let found = engine.image(&self.image).await?;
        let found = found.ok_or_else(|| PullError::Vanished {
            image: self.image.clone(),
        })?;
        self.verify(&found)?;
        Ok(engine.tag(&self.image, &self.keep).await?)
    }

    /// Has the engine fetch it, as long as there is room.
    async fn fetch<E: Engine, C: Clock>(
        &self,
        engine: &E,
        clock: &C,
        auth: Option<&PullAuth>,
    ) -> Result<(), PullError> {
        let pull = engine.pull(&self.image, &self.platform, auth, self.no_progress_ms);
        // Dropping the pull closes its connection, and the engine throws away what it fetched.
        tokio::select! {
            outcome = pull => outcome?,
            free_bytes = self.room_ends(clock) => {
                return Err(PullError::NoSpace { image: self.image.clone(), free_bytes });
            }
        }
        Ok(())
    }

    /// Waits until the disk has less room than must stay; gives what is left.
    async fn room_ends<C: Clock>(&self, clock: &C) -> u64 {
        let Some((folder, floor_bytes)) = &self.floor else {
            return std::future::pending().await;
        };
        loop {
            if let Some(free) = disk::free(folder).filter(|free| free.bytes < *floor_bytes) {
                return free.bytes;
            }
            clock.sleep_ms(ROOM_LOOK_MS).await;
        }
    }

    /// Same or not is decided by the kind of digest that the store uses: see [`Content`].
    fn verify(&self, found: &EngineImage) -> Result<(), PullError> {
        let Expected {
            manifest_digest: manifest,
            config_digest: config,
            ..
        } = &self.expected;
        let pinned = self.image.split_once('@').and_then(|(_, d)| d.parse().ok());
        let top = pinned.unwrap_or(manifest.0);
        let content = Content::of_ids(self.store, &found.ids);
        if content.and_then(|content| content.is(&top, manifest, config)) != Some(true) {
            return Err(PullError::WrongDigest {
                image: self.image.clone(),
                found: found.ids.first().copied(),
            });
        }
        if !self.device.runs(&found.platform) {
            return Err(PullError::WrongPlatform {
                image: self.image.clone(),
                found: found.platform.clone(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::{ConfigDigest, ManifestDigest};

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn pull(store: ImageStore) -> Pull {
        let platform: Platform = "linux/arm/v7".parse().unwrap();
        Pull {
            image: format!("web@{}", digest("index")),
            expected: Expected {
                manifest_digest: ManifestDigest(digest("manifest")),
                config_digest: ConfigDigest(digest("config")),
                size_bytes: 1,
            },
            platform: platform.clone(),
            device: platform,
            store,
            keep: "holdfast.local/keep/1/1/web:1".to_owned(),
            floor: None,
            no_progress_ms: 1_000,
            login: false,
        }
    }

    fn verdict(store: ImageStore, id: &str, platform: &str) -> Result<(), String> {
        let image = EngineImage {
            ids: vec![digest(id)],
            platform: platform.parse().unwrap(),
        };
        pull(store)
            .verify(&image)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_classic_store_must_name_the_configuration() {
        let store = ImageStore::Classic;
        assert!(verdict(store, "config", "linux/arm/v7").is_ok());
        for wrong in ["manifest", "index", "other"] {
            let error = verdict(store, wrong, "linux/arm/v7").unwrap_err();
            assert!(error.contains(&digest(wrong).to_string()), "{error}");
        }
    }

    #[test]
    fn the_containerd_store_must_name_the_manifest_or_the_index() {
        let store = ImageStore::Containerd;
        assert!(verdict(store, "manifest", "linux/arm/v7").is_ok());
        assert!(verdict(store, "index", "linux/arm/v6").is_ok());
        assert!(verdict(store, "config", "linux/arm/v7").is_err());
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let error = verdict(ImageStore::Classic, "config", "linux/arm64").unwrap_err();
        assert!(error.ends_with("it is for linux/arm64"), "{error}");
    }
}
