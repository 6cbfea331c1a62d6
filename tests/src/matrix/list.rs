//! Every machine, list of platforms and way to pull that is asked about. Pure, and always the same.

use super::shape::{Base, Change, Entry, Family, Image, Offer, Pull, Structure};

const fn offer(machine: &'static str, list: &'static [&'static str], right: usize) -> Offer {
    Offer {
        machine,
        list,
        right,
    }
}

pub(super) const AMD64: &str = "linux/amd64";
pub(super) const ARM64: &str = "linux/arm64";
pub(super) const ARM64_V8: &str = "linux/arm64/v8";
pub(super) const V5: &str = "linux/arm/v5";
pub(super) const V6: &str = "linux/arm/v6";
pub(super) const V7: &str = "linux/arm/v7";
pub(super) const V8: &str = "linux/arm/v8";
pub(super) const ARM: &str = "linux/arm";

/// Machines and lists; the right place in each was written by hand.
pub const OFFERS: &[Offer] = &[
    offer("x86_64", &[AMD64], 0),
    offer("x86_64", &[AMD64, ARM64], 0),
    offer("x86_64", &[ARM64_V8, V7, AMD64], 2),
    offer("x86_64", &["linux/s390x", AMD64, "linux/386"], 1),
    offer("aarch64", &[ARM64], 0),
    offer("aarch64", &[AMD64, ARM64_V8], 1),
    offer("aarch64", &[V7, ARM64, AMD64], 1),
    offer("aarch64", &[V5, V6, V7, V8, ARM64_V8], 4),
    offer("armv7l", &[V7], 0),
    offer("armv7l", &[V5, V6, V7], 2),
    offer("armv7l", &[V7, V6, V5], 0),
    offer("armv7l", &[V6, V7, V5, AMD64], 1),
    offer("armv7l", &[V8, V6, V5], 1),
    offer("armv7l", &[AMD64, V5, ARM64], 1),
    offer("armv7l", &[V6, ARM, AMD64], 1),
    offer("armv6l", &[V6], 0),
    offer("armv6l", &[V7, V6, V5], 1),
    offer("armv6l", &[V8, V7, V5], 2),
    offer("armv8l", &[V5, V6, V7, V8], 3),
    offer("armv8l", &[V6, V7, ARM64_V8], 1),
    offer("armv5tejl", &[V7, V6, V5], 2),
];

/// Every image and every way to pull it.
pub fn bases() -> Vec<Base> {
    let mut bases: Vec<Base> = Vec::new();
    for family in [Family::Docker, Family::Oci] {
        for (number, offer) in OFFERS.iter().enumerate() {
            let rare = [Pull::Twice, Pull::TwoRepositories, Pull::OtherRepository];
            let rare = rare[number % 3];
            let single = &[Pull::Tag, Pull::Platform, rare][..];
            let index = &[Pull::Tag, Pull::Index, Pull::Platform, rare][..];
            let nested = &[Pull::Tag, Pull::Index, Pull::Platform][..];
            let structures = match (offer.list.len(), number % 2) {
                (1, _) => vec![(Structure::Single, single)],
                (_, 0) => vec![(Structure::Index, index), (Structure::Nested, nested)],
                (_, _) => vec![(Structure::Index, index)],
            };
            for (structure, pulls) in structures {
                for &pull in pulls {
                    let id = bases.len();
                    let attested = structure == Structure::Index && (id + number).is_multiple_of(2);
                    let entries = offer.list.iter().map(|&platform| Entry {
                        platform,
                        version: 1,
                    });
                    bases.push(Base {
                        id,
                        offer,
                        image: Image {
                            family,
                            structure,
                            entries: entries.collect(),
                            attestation: attested.then_some(1),
                        },
                        pull,
                        headerless: id % 3 == 2,
                    });
                }
            }
        }
    }
    bases
}

/// Every image with the changes that it is asked about; one whose documents are deleted has one change.
pub fn cases() -> Vec<(Base, Vec<Change>)> {
    let mut cases = Vec::new();
    for base in bases() {
        let kept = Change::ALL.into_iter().filter(|change| !change.forgets());
        let kept = kept.filter(|change| base.after(*change).is_some());
        let kept = kept.collect();
        cases.push((base, kept));
    }
    let mut id = cases.len();
    for (position, mut base) in bases().into_iter().enumerate() {
        let change = [Change::ThisForgotten, Change::OtherForgotten][position % 2];
        let plain = matches!(base.pull, Pull::Tag | Pull::Index | Pull::Platform);
        if position % 3 == 0 && plain && base.after(change).is_some() {
            base.id = id;
            id += 1;
            cases.push((base, vec![change]));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::super::shape::{Store, Truth};
    use super::*;

    #[test]
    fn the_list_is_long_and_has_every_kind() {
        let cases = cases();
        let mut all = 0;
        for store in Store::ALL {
            let mut truths = std::collections::BTreeMap::new();
            for (base, changes) in &cases {
                for truth in changes
                    .iter()
                    .filter_map(|change| base.truth(*change, store))
                {
                    let kind = match truth {
                        Truth::Update(_) => "update",
                        Truth::NoUpdate => "none",
                        Truth::Unknowable => "unknowable",
                    };
                    *truths.entry(kind).or_insert(0) += 1;
                    all += 1;
                }
            }
            assert!(
                truths.values().all(|count| *count >= 20),
                "{store:?} {truths:?}"
            );
            assert_eq!(truths.len(), 3, "{store:?} {truths:?}");
        }
        assert!(all >= 300, "{all}");
        for change in Change::ALL {
            let asked = cases.iter().any(|(_, changes)| changes.contains(&change));
            assert!(asked, "{change:?}");
        }
        let ids: std::collections::BTreeSet<usize> =
            cases.iter().map(|(base, _)| base.id).collect();
        assert_eq!(ids.len(), cases.len());
    }

    #[test]
    fn what_changes_elsewhere_is_no_update() {
        let bases = bases();
        let base = bases
            .iter()
            .find(|base| base.offer.list == [AMD64, ARM64])
            .unwrap();
        let (after, update) = base.after(Change::Other).unwrap();
        let versions: Vec<u32> = after
            .unwrap()
            .entries
            .iter()
            .map(|entry| entry.version)
            .collect();
        assert_eq!((versions, update), (vec![1, 2], None));
        let (_, update) = base.after(Change::This).unwrap();
        assert_eq!(update, Some((AMD64, 2)));
    }
}
