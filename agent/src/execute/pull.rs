//! Owns fetching an image by digest and proving that what came is what was pinned. Refuses to fill the
//! disk for it.

use std::path::PathBuf;

use futures_util::future::LocalBoxFuture;
use holdfast_proto::image::{Content, Digest, Expected, Platform, Reference, Repository};
use holdfast_proto::time::Timestamp;
use holdfast_registry::{Credentials, Identity, Secret};

use crate::clock::Clock;
use crate::disk;
use crate::engine::{Engine, EngineError, EngineImage, Fetch, ImageStore, PullAuth};
use crate::fetch::transport::{Job, Transport, TransportError};

/// So often a pull's disk is looked at. An engine unpacks some 100 MB a second at most on the disks of
/// small devices: the floor is not passed by more than a few of them between two looks.
const ROOM_LOOK_MS: u64 = 100;

/// The engine unpacks what it was given, and waits for what the agent fetches, which has limits of its own:
/// an engine that says nothing for this long is stuck itself.
const ENGINE_PATIENCE_MS: u64 = 15 * 60 * 1_000;

/// What a pull took is given back in so long once it is cut off: an engine removes what it unpacked.
const GIVEN_BACK_MS: u64 = 30_000;
/// Others write a little meanwhile.
const LITTLE_BYTES: u64 = 16 << 20;

/// A login that is refused sooner was never good: registries' tokens live for minutes.
const GOOD_LOGIN_MS: u64 = 20_000;

/// An image did not arrive, or is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The agent could not bring it.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The engine says it pulled, and has nothing.
    #[error("the engine pulled {image} but does not have it")]
    Vanished {
        /// The pinned image.
        image: String,
    },
    /// It would have filled the disk, or others did.
    #[error(
        "the pull of {image} was cut off: {} only {} MB free",
        if *is_too_large { "it left" } else { "others left" },
        free_bytes / 1_000_000
    )]
    NoSpace {
        /// The pinned image.
        image: String,
        /// What was left.
        free_bytes: u64,
        /// Whether the room was there again without it: it was the image that took it.
        is_too_large: bool,
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

impl PullError {
    /// Whether the registry wants a login, or another one.
    fn wants_login(&self) -> bool {
        match self {
            Self::Engine(error) => error.wants_login(),
            Self::Transport(error) => error.wants_login(),
            Self::Vanished { .. }
            | Self::NoSpace { .. }
            | Self::WrongDigest { .. }
            | Self::WrongPlatform { .. } => false,
        }
    }

    /// For how long it is of no use to try again; none if nobody says so.
    pub fn wait_ms(&self, now: Timestamp) -> Option<u64> {
        match self {
            Self::Transport(error) => error.wait_ms(now),
            Self::Engine(_)
            | Self::Vanished { .. }
            | Self::NoSpace { .. }
            | Self::WrongDigest { .. }
            | Self::WrongPlatform { .. } => None,
        }
    }
}

/// A login in the words of the registry client.
fn identity(auth: &PullAuth) -> Identity {
    let credentials = match auth {
        PullAuth::Token(token) => Credentials::Bearer {
            token: Secret::new(token.clone()),
        },
        PullAuth::Password { username, password } => Credentials::Password {
            username: username.clone(),
            password: Secret::new(password.clone()),
        },
    };
    Identity {
        // A pull's client knows nobody else.
        id: "pull".to_owned(),
        credentials,
    }
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
    /// The caller's randomness.
    pub seed: u64,
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
        transport: Option<&Transport<'_, C>>,
    ) -> Result<(), PullError> {
        let mut auth = if self.login {
            logins.find(&self.image).await
        } else {
            None
        };
        let mut renewed_ms = None;
        loop {
            let outcome = self.fetch(engine, clock, transport, auth.as_ref()).await;
            let now_ms = clock.monotonic_ms();
            match outcome {
                // A token may have run out, or the login is new and the target does not tell of it yet. A
                // long pull outlives several: one that was good for a while is worth another.
                Err(refused)
                    if refused.wants_login()
                        && renewed_ms.is_none_or(|at| now_ms >= at + GOOD_LOGIN_MS) =>
                {
                    auth = Some(logins.renew(&self.image).await.ok_or(refused)?);
                    renewed_ms = Some(clock.monotonic_ms());
                }
                outcome => return outcome,
            }
        }
    }

    /// Has it fetched as long as there is room, and looks at what came.
    async fn fetch<E: Engine, C: Clock>(
        &self,
        engine: &E,
        clock: &C,
        transport: Option<&Transport<'_, C>>,
        auth: Option<&PullAuth>,
    ) -> Result<(), PullError> {
        let bring = async {
            let brought = match transport.zip(self.repository()) {
                Some((transport, repository)) => {
                    self.bring(engine, transport, repository, auth).await
                }
                None => Err(TransportError::Unreached("it is not set up".to_owned())),
            };
            match brought {
                Err(TransportError::Unreached(why)) => {
                    if transport.is_some() {
                        tracing::warn!(image.digest = %self.image, error = %why, "the engine fetches by itself");
                    }
                    self.let_fetch(engine, auth).await
                }
                outcome => outcome?,
            }
        };
        let before = self.free();
        // Dropping the pull closes its connections, and the engine throws away what it fetched.
        let free_bytes = tokio::select! {
            outcome = bring => return outcome,
            free_bytes = self.room_ends(clock) => free_bytes,
        };
        Err(PullError::NoSpace {
            image: self.image.clone(),
            free_bytes,
            is_too_large: self.is_given_back(clock, before).await,
        })
    }

    /// What is free where it is unpacked.
    fn free(&self) -> Option<u64> {
        let (folder, _) = self.floor.as_ref()?;
        disk::free(folder).map(|free| free.bytes)
    }

    /// Waits until there is as much room as before, but for what the spool keeps; not for ever: others may have
    /// taken it.
    async fn is_given_back<C: Clock>(&self, clock: &C, before: Option<u64>) -> bool {
        let Some(before) = before else {
            return false;
        };
        let kept = self.expected.size_bytes.saturating_add(LITTLE_BYTES);
        let until_ms = clock.monotonic_ms().saturating_add(GIVEN_BACK_MS);
        loop {
            if self
                .free()
                .is_some_and(|free| free.saturating_add(kept) >= before)
            {
                return true;
            }
            if clock.monotonic_ms() >= until_ms {
                return false;
            }
            clock.sleep_ms(ROOM_LOOK_MS).await;
        }
    }

    fn repository(&self) -> Option<Repository> {
        let reference: Reference = self.image.parse().ok()?;
        Some(reference.repository().clone())
    }

    /// The agent fetches it and gives it to the engine.
    async fn bring<E: Engine, C: Clock>(
        &self,
        engine: &E,
        transport: &Transport<'_, C>,
        repository: Repository,
        auth: Option<&PullAuth>,
    ) -> Result<Result<(), PullError>, TransportError> {
        let job = Job {
            repository,
            manifest: self.expected.manifest_digest.0,
            who: auth.map(identity),
            seed: self.seed,
            no_progress_ms: self.no_progress_ms,
            floor_bytes: self.floor.as_ref().map_or(0, |(_, bytes)| *bytes),
        };
        let pull = async |name: &str| {
            engine
                .pull(&Fetch {
                    pinned: &self.image,
                    from: name,
                    platform: &self.platform,
                    auth: None,
                    no_progress_ms: ENGINE_PATIENCE_MS.max(self.no_progress_ms),
                })
                .await?;
            // The name on loopback is nobody's to see.
            let kept = self.keep(engine, name).await;
            let removed = engine.remove_image(name).await;
            Ok(kept.and(removed.map_err(PullError::from)))
        };
        transport.bring(&job, pull).await
    }

    /// The engine fetches it from where it is.
    async fn let_fetch<E: Engine>(
        &self,
        engine: &E,
        auth: Option<&PullAuth>,
    ) -> Result<(), PullError> {
        let fetch = Fetch {
            pinned: &self.image,
            from: &self.image,
            platform: &self.platform,
            auth,
            no_progress_ms: self.no_progress_ms,
        };
        engine.pull(&fetch).await?;
        self.keep(engine, &self.image).await
    }

    /// Looks at what came under this name, and gives it the tag that keeps it.
    async fn keep<E: Engine>(&self, engine: &E, name: &str) -> Result<(), PullError> {
        let found = engine.image(name).await?;
        let found = found.ok_or_else(|| PullError::Vanished {
            image: self.image.clone(),
        })?;
        self.verify_content(&found)?;
        // Also one for another kind of machine: it is what was pinned, and the plan says what is wrong.
        engine.tag(name, &self.keep).await?;
        self.verify_platform(&found)
    }

    /// Waits until the disk has less room than must stay; gives what is left.
    async fn room_ends<C: Clock>(&self, clock: &C) -> u64 {
        let Some((_, floor_bytes)) = &self.floor else {
            return std::future::pending().await;
        };
        loop {
            if let Some(free) = self.free().filter(|free| free < floor_bytes) {
                return free;
            }
            clock.sleep_ms(ROOM_LOOK_MS).await;
        }
    }

    /// Same or not is decided by the kind of digest that the store uses: see [`Content`].
    fn verify_content(&self, found: &EngineImage) -> Result<(), PullError> {
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
        Ok(())
    }

    fn verify_platform(&self, found: &EngineImage) -> Result<(), PullError> {
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
            seed: 1,
        }
    }

    fn verdict(store: ImageStore, id: &str, platform: &str) -> Result<(), String> {
        let image = EngineImage {
            ids: vec![digest(id)],
            platform: platform.parse().unwrap(),
        };
        let pull = pull(store);
        let outcome = pull.verify_content(&image);
        let outcome = outcome.and_then(|()| pull.verify_platform(&image));
        outcome.map_err(|error| error.to_string())
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
