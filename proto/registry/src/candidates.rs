//! Owns which tags of a repository are newer than one, and of its kind.
//!
//! Refuses to cross kinds: another major version, another number of parts, another suffix and
//! pre-releases are no candidates. Whether to take one is a person's decision.

use std::collections::BTreeMap;

/// Tags that are looked at: what a client reads of a list at most.
pub const MAX_TAGS: usize = 50_000;
/// Candidates that are given: more than anybody reads.
pub const MAX_CANDIDATES: usize = 100;
/// A tag's longest (distribution specification).
const MAX_TAG_CHARS: usize = 128;
/// Parts of a version: `1`, `1.2`, `1.2.3`.
const MAX_PARTS: usize = 3;
/// Digits of a part: dates and build numbers fit.
const MAX_DIGITS: usize = 18;
/// What pre-releases are called, with digits after it or without.
const PRE_RELEASES: [&str; 26] = [
    "a",
    "alpha",
    "b",
    "beta",
    "c",
    "canary",
    "cr",
    "dev",
    "devel",
    "ea",
    "edge",
    "experimental",
    "git",
    "insiders",
    "m",
    "milestone",
    "next",
    "nightly",
    "pre",
    "prerelease",
    "preview",
    "rc",
    "snapshot",
    "test",
    "testing",
    "unstable",
];

/// A tag that is a version: `v?` and one to three numbers, then perhaps a suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version<'a> {
    /// Whether it begins with `v`.
    pub(crate) with_v: bool,
    /// The numbers, as written.
    pub(crate) numbers: &'a str,
    parts: Vec<u64>,
    /// What comes after the numbers, with its dash; often nothing.
    pub(crate) suffix: &'a str,
}

impl<'a> Version<'a> {
    pub(crate) fn parse(tag: &'a str) -> Option<Self> {
        if tag.len() > MAX_TAG_CHARS {
            return None;
        }
        let bare = tag.strip_prefix('v').unwrap_or(tag);
        let end = bare
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(bare.len());
        let (numbers, suffix) = bare.split_at(end);
        // `3.14.0rc1` and `1.2.x` are no versions of ours.
        let joined = suffix.starts_with(['-', '_']) && suffix.len() > 1;
        if !suffix.is_empty() && !joined {
            return None;
        }
        let parts: Vec<u64> = numbers
            .split('.')
            .map(|part| part.parse().ok().filter(|_| part.len() <= MAX_DIGITS))
            .collect::<Option<_>>()?;
        (parts.len() <= MAX_PARTS).then_some(Self {
            with_v: bare.len() < tag.len(),
            numbers,
            parts,
            suffix,
        })
    }

    fn is_pre_release(&self) -> bool {
        self.suffix.split(['-', '_', '.']).any(|word| {
            let word = word.to_ascii_lowercase();
            let name = word.trim_end_matches(|c: char| c.is_ascii_digit());
            PRE_RELEASES.contains(&name)
        })
    }

    /// Whether `other` may stand where this one does.
    fn is_succeeded_by(&self, other: &Self) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.first() == other.parts.first()
            && self.suffix == other.suffix
            && !other.is_pre_release()
            && self.parts < other.parts
    }
}

/// Whether a tag can have candidates at all; for one that cannot, no list need be asked for.
pub fn may_have_candidates(tag: &str) -> bool {
    Version::parse(tag).is_some_and(|version| version.parts.len() > 1 && !version.is_pre_release())
}

/// The tags that are newer than `current` and of its kind, newest first.
///
/// Same major version, same number of parts, same suffix, no pre-release: `7.2-alpine` may become
/// `7.4-alpine`, a bare `7.2` never does; a single number has no successor in its major version. Of two
/// spellings of one version (`1.3`, `v1.3`) the one that is written as `current` is counts.
pub fn candidates<'a>(current: &str, tags: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let Some(current) = Version::parse(current) else {
        return Vec::new();
    };
    let mut newer: BTreeMap<Vec<u64>, (bool, &str)> = BTreeMap::new();
    for tag in tags.into_iter().take(MAX_TAGS) {
        let Some(version) = Version::parse(tag).filter(|version| current.is_succeeded_by(version))
        else {
            continue;
        };
        let as_current = version.with_v == current.with_v;
        let known = newer.entry(version.parts).or_insert((as_current, tag));
        // Of equal spellings the first in order: the answer must not depend on a registry's.
        if (as_current, std::cmp::Reverse(tag)) > (known.0, std::cmp::Reverse(known.1)) {
            *known = (as_current, tag);
        }
    }
    let newest_first = newer.into_values().rev().map(|(_, tag)| tag);
    newest_first.take(MAX_CANDIDATES).collect()
}

#[cfg(test)]
mod tests;
