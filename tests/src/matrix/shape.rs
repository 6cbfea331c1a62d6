//! What there is to ask about, and what is true of it by construction. Pure, and always the same list.

use std::fmt;

use super::list::{ARM, V5, V6, V7, V8};

/// Whose words an image's documents use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Docker schema 2 and manifest lists.
    Docker,
    /// OCI manifests and indexes.
    Oci,
}

impl Family {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Docker => Self::Oci,
            Self::Oci => Self::Docker,
        }
    }
}

/// What a tag points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Structure {
    /// One manifest.
    Single,
    /// An index of manifests.
    Index,
    /// An index of two indexes of manifests.
    Nested,
}

/// A machine, an index's platforms in their order, and which of them is the right one for it.
#[derive(Debug)]
pub struct Offer {
    /// What the machine's kernel calls it (`uname -m`), which is what engines repeat.
    pub machine: &'static str,
    /// The platforms, as the index writes them.
    pub list: &'static [&'static str],
    /// The place of the right one.
    pub right: usize,
}

/// How an image came into the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pull {
    /// By its tag.
    Tag,
    /// By the digest of its index.
    Index,
    /// By the digest of the right platform's manifest.
    Platform,
    /// By its tag, before and after it was written anew in the other family's words: two digests, one image.
    Twice,
    /// By its tag, from two repositories.
    TwoRepositories,
    /// By its tag, from another repository than the one that is asked.
    OtherRepository,
}

/// Which engine's word is taken for what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Store {
    /// The classic store, as the real engine here has it.
    Classic,
    /// The containerd store of Docker 25 to 27: an image's id is what was pulled.
    Docker25,
    /// The containerd store of Docker 28 and later: also says which manifest a container runs.
    Docker28,
}

impl Store {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Classic, Self::Docker25, Self::Docker28];

    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Docker25 => "containerd, as Docker 25",
            Self::Docker28 => "containerd, as Docker 28",
        }
    }
}

/// One platform's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its platform, as written.
    pub platform: &'static str,
    /// Its content: the same number is the same configuration, byte for byte.
    pub version: u32,
}

/// What a tag holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// In whose words.
    pub family: Family,
    /// How it is put together.
    pub structure: Structure,
    /// Its platforms; one for a single manifest.
    pub entries: Vec<Entry>,
    /// Which attestation rides along.
    pub attestation: Option<u32>,
}

/// An image as it was when it was pulled, and how.
#[derive(Clone, Debug)]
pub struct Base {
    /// Tells it from others; part of its configurations, so that no two are one image to the engine.
    pub id: usize,
    /// The machine and its platforms.
    pub offer: &'static Offer,
    /// The image.
    pub image: Image,
    /// How it was pulled.
    pub pull: Pull,
    /// Whether a proxy takes the digest headers away.
    pub headerless: bool,
}

/// What happened at the registry since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// The right platform has a new image.
    This,
    /// Another platform has.
    Other,
    /// All platforms have.
    All,
    /// The tag was moved away, and back.
    MovedBack,
    /// The same entries stand in another order.
    Reordered,
    /// The same configurations, in the other family's words.
    Rewritten,
    /// A new attestation of the same images.
    Attested,
    /// The tag points at the right platform's manifest itself.
    Unpacked,
    /// As `This`, and the index is now a single manifest.
    ThisAlone,
    /// A better variant for the machine was added.
    Better,
    /// The right entry is gone, and a lesser variant fits.
    Lesser,
    /// No entry fits any more.
    Dropped,
    /// The tag is gone.
    Gone,
    /// As `This`, and what the old tag led to was deleted.
    ThisForgotten,
    /// As `Other`, and the old index was deleted.
    OtherForgotten,
    /// As `This`, for a container whose reference names the digest that it was pulled by.
    Pinned,
}

impl Change {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Nothing,
        Self::This,
        Self::Other,
        Self::All,
        Self::MovedBack,
        Self::Reordered,
        Self::Rewritten,
        Self::Attested,
        Self::Unpacked,
        Self::ThisAlone,
        Self::Better,
        Self::Lesser,
        Self::Dropped,
        Self::Gone,
        Self::ThisForgotten,
        Self::OtherForgotten,
        Self::Pinned,
    ];

    /// For people.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Nothing => "nothing changed",
            Self::This => "this platform's image changed",
            Self::Other => "another platform's image changed",
            Self::All => "every platform's image changed",
            Self::MovedBack => "the tag moved away and back",
            Self::Reordered => "the same entries in another order",
            Self::Rewritten => "the same configurations under the other media types",
            Self::Attested => "another attestation of the same images",
            Self::Unpacked => "the tag names this platform's manifest, without the index",
            Self::ThisAlone => "a new single manifest in the index's place",
            Self::Better => "a better variant for this machine was added",
            Self::Lesser => "this platform's entry is gone, a lesser variant fits",
            Self::Dropped => "no entry fits this machine any more",
            Self::Gone => "the tag is gone",
            Self::ThisForgotten => "this platform's image changed, the old manifests were deleted",
            Self::OtherForgotten => "another platform's image changed, the old index was deleted",
            Self::Pinned => "the tag moved on, the container names a digest",
        }
    }

    /// Whether the old documents are deleted: such a case needs an image of its own.
    pub fn forgets(self) -> bool {
        matches!(self, Self::ThisForgotten | Self::OtherForgotten)
    }
}

/// What is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Truth {
    /// There is an update for this machine, to this entry.
    Update(Target),
    /// There is none.
    NoUpdate,
    /// Nobody can know with what such an engine tells.
    Unknowable,
}

/// Where an update leads: a platform as written, and its version.
pub type Target = (&'static str, u32);

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Image {
            family,
            structure,
            attestation,
            ..
        } = &self.image;
        write!(
            f,
            "#{} {family:?} {structure:?} [{}] on {}, pulled by {:?}",
            self.id,
            self.offer.list.join(", "),
            self.offer.machine,
            self.pull
        )?;
        if attestation.is_some() {
            f.write_str(", attested")?;
        }
        if self.headerless {
            f.write_str(", no digest header")?;
        }
        Ok(())
    }
}

/// What the tag holds after a change; none when it is gone.
pub type After = Option<Image>;

impl Base {
    fn right(&self) -> usize {
        self.offer.right
    }

    /// The right platform's entry when it was pulled.
    pub fn right_entry(&self) -> Entry {
        self.image.entries[self.right()]
    }

    fn with(&self, alter: impl FnOnce(&mut Image)) -> Image {
        let mut image = self.image.clone();
        alter(&mut image);
        image
    }

    /// What a change leaves at the registry, and the update that it is; `None` where it has no meaning.
    pub fn after(&self, change: Change) -> Option<(After, Option<Target>)> {
        let right = self.right();
        let Entry { platform, version } = self.right_entry();
        let others = self.image.entries.len() > 1;
        let other = (right + 1) % self.image.entries.len();
        let is_index = self.image.structure != Structure::Single;
        let new = Some((platform, version + 1));
        let this = |image: &mut Image| image.entries[right].version += 1;
        let (after, update) = match change {
            Change::Nothing | Change::MovedBack => (Some(self.image.clone()), None),
            Change::This | Change::ThisForgotten => (Some(self.with(this)), new),
            Change::Other | Change::OtherForgotten if others => {
                let after = self.with(|image| image.entries[other].version += 1);
                (Some(after), None)
            }
            Change::All if others => {
                let bump = |image: &mut Image| {
                    for entry in &mut image.entries {
                        entry.version += 1;
                    }
                };
                (Some(self.with(bump)), new)
            }
            Change::Reordered if others => {
                (Some(self.with(|image| image.entries.rotate_left(1))), None)
            }
            Change::Rewritten => {
                let after = self.with(|image| image.family = image.family.other());
                (Some(after), None)
            }
            Change::Attested if self.image.attestation.is_some() => {
                (Some(self.with(|image| image.attestation = Some(2))), None)
            }
            Change::Unpacked | Change::ThisAlone if is_index => {
                let is_new = change == Change::ThisAlone;
                let after = self.with(|image| {
                    if is_new {
                        this(image);
                    }
                    image.structure = Structure::Single;
                    image.attestation = None;
                    image.entries = vec![image.entries[right]];
                });
                (Some(after), new.filter(|_| is_new))
            }
            Change::Better if is_index => {
                let best = match self.offer.machine {
                    "armv7l" => V7,
                    "armv6l" => V6,
                    "armv8l" => V8,
                    _ => return None,
                };
                let listed = self.offer.list;
                if listed.contains(&best) || listed.contains(&ARM) {
                    return None;
                }
                let added = Entry {
                    platform: best,
                    version: 7,
                };
                let after = self.with(|image| image.entries.push(added));
                (Some(after), Some((best, 7)))
            }
            Change::Lesser if is_index => {
                let lesser = match (self.offer.machine, platform) {
                    ("armv7l", V7) => V6,
                    ("armv6l", V6) => V5,
                    ("armv8l", V8) => V7,
                    _ => return None,
                };
                let position = self.offer.list.iter().position(|one| *one == lesser)?;
                let fits = self.image.entries[position];
                let after = self.with(|image| {
                    image.entries.remove(right);
                });
                (Some(after), Some((fits.platform, fits.version)))
            }
            Change::Dropped if others && matches!(self.offer.machine, "x86_64" | "aarch64") => {
                let after = self.with(|image| {
                    image.entries.remove(right);
                });
                (Some(after), None)
            }
            Change::Gone => (None, None),
            Change::Pinned if matches!(self.pull, Pull::Index | Pull::Platform) => {
                (Some(self.with(this)), None)
            }
            Change::Other
            | Change::OtherForgotten
            | Change::All
            | Change::Reordered
            | Change::Attested
            | Change::Unpacked
            | Change::ThisAlone
            | Change::Better
            | Change::Lesser
            | Change::Dropped
            | Change::Pinned => return None,
        };
        Some((after, update))
    }

    /// What is true after a change for a machine with such a store; `None` where the engine cannot have
    /// such an image.
    pub fn truth(&self, change: Change, store: Store) -> Option<Truth> {
        let (_, update) = self.after(change)?;
        let by_tag = self.pull != Pull::Platform;
        // Docker 20.10 refuses an index in an index; by a manifest's digest it never sees one.
        if store == Store::Classic && self.image.structure == Structure::Nested && by_tag {
            return None;
        }
        // With an image of another repository only the same content can be told.
        let elsewhere = self.pull == Pull::OtherRepository;
        // The manifest is still in the new index; an engine that names only the old one cannot say.
        let names_index = store == Store::Docker25 && self.pull != Pull::Platform;
        let forgotten = store != Store::Classic
            && (change == Change::ThisForgotten
                || (change == Change::OtherForgotten && names_index));
        let unknowable = matches!(change, Change::Dropped | Change::Gone) || forgotten;
        Some(match update {
            _ if unknowable => Truth::Unknowable,
            Some(_) if elsewhere => Truth::Unknowable,
            // A containerd store names documents, not contents: another name for the same content cannot
            // be followed into a repository where it never was.
            None if elsewhere && store != Store::Classic && self.is_renamed(change, store) => {
                Truth::Unknowable
            }
            Some(to) => Truth::Update(to),
            None => Truth::NoUpdate,
        })
    }

    /// Whether nothing that the store calls the image by is at the tag any more.
    fn is_renamed(&self, change: Change, store: Store) -> bool {
        let is_there = matches!(change, Change::Nothing | Change::MovedBack);
        // The index has another digest; the manifest in it is the same, unless it was rewritten.
        let names_index = store == Store::Docker25 || self.image.structure == Structure::Single;
        !is_there && (change == Change::Rewritten || names_index)
    }
}
