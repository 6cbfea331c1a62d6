//! Owns the model's images: what a pull brings, and what can be removed while what uses it.

use std::collections::BTreeSet;

use super::daemon::{Answer, refuse};
use super::world::{Image, PullFault, Remote, World};

/// How a pull goes on once the registry was asked.
pub(super) enum Pulling {
    /// It ends well after so many milliseconds.
    Done(u64),
    /// It breaks off in the middle.
    Breaks,
    /// It stands still; the layer is wedged if it is given up.
    Stalls {
        /// The layer that no later pull gets, if the engine does not notice.
        wedges: Option<String>,
    },
}

/// A name without its tag or digest.
fn repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(before, _)| before);
    match name.rsplit_once(':') {
        Some((before, after)) if !after.contains('/') => before,
        Some(_) | None => name,
    }
}

impl Image {
    fn names(&self) -> BTreeSet<String> {
        self.tags.union(&self.digests).cloned().collect()
    }

    /// One repository and at most one tag: then a removal by id takes the names along.
    fn has_a_single_name(&self) -> bool {
        let repositories: BTreeSet<&str> = self
            .tags
            .union(&self.digests)
            .map(|name| repository(name))
            .collect();
        repositories.len() == 1 && self.tags.len() <= 1
    }
}

impl World {
    /// An image by id or any name.
    pub(super) fn stored(&self, word: &str) -> Option<(String, &Image)> {
        let word = with_tag(word);
        let mut images = self.images.iter();
        let found = images.find(|(id, image)| {
            **id == word || image.tags.contains(&word) || image.digests.contains(&word)
        });
        found.map(|(id, image)| (id.clone(), image))
    }

    pub(super) fn begin_pull(&self, pinned: &str) -> Answer<Pulling> {
        let Some(remote) = self.registry.get(pinned) else {
            return refuse(
                404,
                format!("manifest for {pinned} not found: manifest unknown"),
            );
        };
        if self.images.contains_key(&remote.id) {
            return Ok(Pulling::Done(0));
        }
        if self.wedged.contains(&remote.layer) {
            return Ok(Pulling::Stalls { wedges: None });
        }
        match remote.fault {
            PullFault::None if self.disk_is_full => Ok(Pulling::Breaks),
            PullFault::None => Ok(Pulling::Done(remote.pull_ms)),
            PullFault::Unreachable => refuse(500, "connect: connection refused"),
            PullFault::Breaks => Ok(Pulling::Breaks),
            PullFault::StallsInBody => Ok(Pulling::Stalls { wedges: None }),
            PullFault::NeverAnswers => Ok(Pulling::Stalls {
                wedges: Some(remote.layer.clone()),
            }),
        }
    }

    pub(super) fn end_pull(&mut self, pinned: &str) {
        let Some(Remote {
            id,
            platform,
            behaviour,
            ..
        }) = self.registry.get(pinned).cloned()
        else {
            return;
        };
        let image = self.images.entry(id).or_insert(Image {
            platform,
            behaviour,
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
        });
        // A pull by digest gives no tag (measured: M1).
        image.digests.insert(pinned.to_owned());
    }

    pub(super) fn tag(&mut self, word: &str, name: &str) -> Answer<()> {
        let Some((id, _)) = self.stored(word) else {
            return refuse(404, format!("No such image: {word}"));
        };
        let name = with_tag(name);
        if repository(&name).chars().any(char::is_uppercase) {
            return refuse(
                500,
                "invalid reference format: repository name must be lowercase",
            );
        }
        for (other, image) in &mut self.images {
            image.tags.remove(&name);
            if *other == id {
                image.tags.insert(name.clone());
            }
        }
        Ok(())
    }

    /// Removes a name, and the image with its last one (dockerd's rules, 20.10).
    pub(super) fn remove_image(&mut self, word: &str, force: bool) -> Answer<()> {
        let Some((id, image)) = self.stored(word) else {
            return refuse(404, format!("No such image: {word}"));
        };
        let by_id = word == id;
        let single = image.has_a_single_name();
        let running = self.users(&id).any(|runs| runs);
        let used = self.users(&id).next().is_some();
        let mut left = image.names();
        if by_id {
            if running || used && !force {
                return refuse(
                    409,
                    "conflict: unable to delete: a container uses the image",
                );
            }
            if !single && !force && !left.is_empty() {
                return refuse(
                    409,
                    "conflict: image is referenced in multiple repositories",
                );
            }
            left.clear();
        } else {
            if !force && single && used {
                let text = "conflict: unable to remove repository reference (must force)";
                return refuse(409, text);
            }
            let name = with_tag(word);
            left.remove(&name);
            let same = |other: &String| repository(other) == repository(&name);
            if !name.contains('@') && !left.iter().any(|other| same(other) && !other.contains('@'))
            {
                left.retain(|other| !same(other));
            }
        }
        if left.is_empty() && !running {
            self.images.remove(&id);
        } else if let Some(image) = self.images.get_mut(&id) {
            image.tags.retain(|name| left.contains(name));
            image.digests.retain(|name| left.contains(name));
        }
        Ok(())
    }

    /// Whether each container that was made from an image runs.
    fn users(&self, id: &str) -> impl Iterator<Item = bool> {
        let containers = self.containers.values();
        let of_image = containers.filter(move |container| container.image == id);
        of_image.map(|container| container.state.is_up())
    }

    /// `docker image prune`: what has no tag goes (measured: M1), with `all` what nothing uses.
    pub(super) fn prune(&mut self, all: bool) {
        let names: Vec<Vec<String>> = self
            .images
            .iter()
            .filter(|(_, image)| all || image.tags.is_empty())
            .map(|(id, image)| {
                let names = image.names();
                if names.is_empty() {
                    vec![id.clone()]
                } else {
                    names.into_iter().collect()
                }
            })
            .collect();
        for name in names.into_iter().flatten() {
            // What is in use stays.
            let _ = self.remove_image(&name, false);
        }
    }
}

/// A name as the engine completes it.
fn with_tag(word: &str) -> String {
    if word.contains('@') || word.starts_with("sha256:") || repository(word) != word {
        word.to_owned()
    } else {
        format!("{word}:latest")
    }
}
