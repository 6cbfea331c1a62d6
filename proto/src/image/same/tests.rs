//! Facts about the one comparison; `docs/digest-matrix.md` asks the same of a real engine and registry.

use super::super::{ConfigDigest, IndexDigest, PlatformImage, TopDigest};
use super::*;

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

/// An index with a manifest `P` and a configuration `config of P` for each platform `P`.
fn index(name: &str, platforms: &[(&str, &str)]) -> ResolvedImage {
    let children = platforms.iter().map(|(own, config)| PlatformImage {
        platform: platform(own),
        manifest_digest: ManifestDigest(digest(&format!("manifest of {config}"))),
        config_digest: ConfigDigest(digest(config)),
        size_bytes: 1,
    });
    let reference: Reference = "redis:7".parse().unwrap();
    ResolvedImage {
        repository: reference.repository().clone(),
        top: TopDigest::Index(IndexDigest(digest(name))),
        media_type: String::new(),
        platforms: children.collect(),
    }
}

fn running(store: ImageStore, ids: &[&str], own: &str, by: &[&str]) -> Running {
    let ids: Vec<Digest> = ids.iter().map(|name| digest(name)).collect();
    let by: Vec<Digest> = by.iter().map(|name| digest(name)).collect();
    Running {
        content: Content::of_ids(store, &ids),
        platform: platform(own),
        pulled: if by.is_empty() {
            Pulled::Never
        } else {
            Pulled::By(by)
        },
    }
}

fn classic(config: &str, own: &str, by: &str) -> Running {
    running(ImageStore::Classic, &[config], own, &[by])
}

fn containerd(ids: &[&str], own: &str, by: &str) -> Running {
    running(ImageStore::Containerd, ids, own, &[by])
}

#[test]
fn a_configuration_is_compared_with_the_devices_own() {
    let offered = index("new", &[("linux/amd64", "a2"), ("linux/arm64", "b")]);
    let on = |running: &Running, device: &str| compare(running, &offered, &platform(device));
    let arm = classic("b", "linux/arm64", "old");
    assert_eq!(
        on(&arm, "linux/arm64"),
        Same::Yes,
        "only another platform changed"
    );
    let amd = classic("a", "linux/amd64", "old");
    assert_eq!(on(&amd, "linux/amd64"), Same::No);
}

#[test]
fn kinds_never_mix() {
    let offered = index("new", &[("linux/arm64", "b")]);
    let device = platform("linux/arm64");
    for other in ["new", "manifest of b"] {
        let found = compare(&classic(other, "linux/arm64", "old"), &offered, &device);
        assert_eq!(
            found,
            Same::No,
            "{other}: a classic id is a configuration's"
        );
    }
    let found = compare(&containerd(&["b"], "linux/arm64", "old"), &offered, &device);
    assert_eq!(
        found,
        Same::Unknown(Doubt::OtherTarget),
        "a containerd id never is one"
    );
}

#[test]
fn a_target_that_is_named_is_the_same_and_one_that_is_not_says_nothing() {
    let offered = index("new", &[("linux/amd64", "a2"), ("linux/arm64", "b")]);
    let device = platform("linux/arm64");
    let found = |ids: &[&str]| compare(&containerd(ids, "linux/arm64", "old"), &offered, &device);
    assert_eq!(found(&["new"]), Same::Yes);
    assert_eq!(found(&["old", "manifest of b"]), Same::Yes);
    assert_eq!(found(&["old"]), Same::Unknown(Doubt::OtherTarget));
    assert_eq!(
        found(&["manifest of a2"]),
        Same::Unknown(Doubt::OtherTarget)
    );
}

#[test]
fn what_an_earlier_target_held_decides() {
    let device = platform("linux/arm64");
    let earlier = index("old", &[("linux/amd64", "a"), ("linux/arm64", "b")]);
    let runs = containerd(&["old"], "linux/arm64", "old");
    let told = |offered: &ResolvedImage| compare_earlier(&runs, &earlier, offered, &device);
    let elsewhere = index("new", &[("linux/amd64", "a2"), ("linux/arm64", "b")]);
    assert_eq!(told(&elsewhere), Same::Yes);
    let here = index("new", &[("linux/amd64", "a"), ("linux/arm64", "b2")]);
    assert_eq!(told(&here), Same::No);
    let without = index("old", &[("linux/amd64", "a")]);
    assert_eq!(
        compare_earlier(&runs, &without, &here, &device),
        Same::Unknown(Doubt::OtherTarget)
    );
}

#[test]
fn a_better_variant_is_an_update_and_an_emulated_platform_is_kept() {
    let device = platform("linux/arm/v7");
    let old = classic("v6", "linux/arm/v6", "old");
    let with_v7 = index("new", &[("linux/arm/v6", "v6"), ("linux/arm/v7", "v7")]);
    assert_eq!(compare(&old, &with_v7, &device), Same::No);
    let only_v6 = index("new", &[("linux/arm/v6", "v6"), ("linux/arm/v5", "v5")]);
    assert_eq!(compare(&old, &only_v6, &device), Same::Yes);
    // Chosen by hand from the index that the tag still names.
    let chosen = classic("v6", "linux/arm/v6", "new");
    assert_eq!(compare(&chosen, &with_v7, &device), Same::Yes);
    let emulated = classic("a", "linux/amd64", "old");
    let both = index("new", &[("linux/arm/v7", "v7"), ("linux/amd64", "a")]);
    assert_eq!(compare(&emulated, &both, &device), Same::Yes);
}

#[test]
fn what_cannot_be_known_is_said() {
    let device = platform("linux/arm64");
    let offered = index("new", &[("linux/arm64", "b")]);
    let doubt = |running: &Running| match compare(running, &offered, &device) {
        Same::Unknown(doubt) => doubt,
        other @ (Same::Yes | Same::No) => panic!("{other:?}"),
    };
    let mut runs = classic("x", "linux/arm64", "old");
    runs.pulled = Pulled::Elsewhere;
    assert_eq!(doubt(&runs), Doubt::Elsewhere);
    runs.pulled = Pulled::Never;
    assert_eq!(doubt(&runs), Doubt::NeverPulled);
    runs.content = None;
    assert_eq!(doubt(&runs), Doubt::NoDigest);
    let riscv = classic("x", "linux/riscv64", "old");
    assert_eq!(
        doubt(&riscv),
        Doubt::NotOffered(platform("linux/riscv64")),
        "never compared with another platform's"
    );
    // The same content is the same wherever it came from.
    let mut runs = classic("b", "linux/arm64", "old");
    runs.pulled = Pulled::Elsewhere;
    assert_eq!(compare(&runs, &offered, &device), Same::Yes);
}

proptest::proptest! {
    #[test]
    fn only_this_platforms_content_decides(
        contents in proptest::collection::vec(0_u8..3, 4),
        later in proptest::collection::vec(0_u8..3, 4),
        turn in 0_usize..4,
        chosen in 0_usize..4,
    ) {
        // A configuration of its own for each platform and content; the order is turned as well.
        let all = ["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/s390x"];
        let named = |contents: &[u8]| -> Vec<(&str, String)> {
            let both = all.iter().zip(contents);
            both.map(|(own, content)| (*own, format!("{own} {content}"))).collect()
        };
        let (before, after) = (named(&contents), named(&later));
        let mut listed: Vec<_> = after.iter().map(|(own, config)| (*own, config.as_str())).collect();
        listed.rotate_left(turn);
        let offered = index("new", &listed);
        let (own, config) = &before[chosen];
        let expected = if contents[chosen] == later[chosen] { Same::Yes } else { Same::No };
        let device = platform(own);
        let runs = classic(config, own, "old");
        proptest::prop_assert_eq!(compare(&runs, &offered, &device), expected.clone());
        // A containerd store says as much, once somebody looked up what it names.
        let first: Vec<_> = before.iter().map(|(own, config)| (*own, config.as_str())).collect();
        let runs = containerd(&["old"], own, "old");
        let told = compare_earlier(&runs, &index("old", &first), &offered, &device);
        proptest::prop_assert_eq!(told, expected);
    }
}

#[test]
fn pulled_means_from_the_repository_itself() {
    let redis: Reference = "redis:7".parse().unwrap();
    let name = |name: &str, of: &str| format!("{name}@{}", digest(of));
    let read = |names: &[String]| Pulled::read(redis.repository(), names);
    assert_eq!(read(&[]), Pulled::Never);
    assert_eq!(read(&["<none>@<none>".to_owned()]), Pulled::Never);
    assert_eq!(read(&[name("ghcr.io/o/redis", "x")]), Pulled::Elsewhere);
    let several = [
        name("ghcr.io/o/redis", "x"),
        name("docker.io/library/redis", "y"),
        name("redis", "z"),
    ];
    assert_eq!(read(&several), Pulled::By(vec![digest("y"), digest("z")]));
}
