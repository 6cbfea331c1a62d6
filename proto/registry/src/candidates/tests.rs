//! Facts about tag candidates.

use proptest::prelude::*;

use super::*;

fn newer<'a>(current: &str, tags: &[&'a str]) -> Vec<&'a str> {
    candidates(current, tags.iter().copied())
}

#[test]
fn newer_tags_of_the_same_kind_newest_first() {
    for (current, tags, expected) in [
        (
            "1.26",
            &["1.25", "1.26", "1.27", "1.28"][..],
            &["1.28", "1.27"][..],
        ),
        (
            "1.26.1",
            &["1.26.3", "1.26.2", "1.27.0"],
            &["1.27.0", "1.26.3", "1.26.2"],
        ),
        ("1.9", &["1.10", "1.11", "1.8"], &["1.11", "1.10"]),
        (
            "7.2-alpine",
            &["7.4-alpine", "7.4", "7.3-alpine"],
            &["7.4-alpine", "7.3-alpine"],
        ),
        ("22.04", &["22.10", "24.04", "20.04"], &["22.10"]),
        ("v1.2.3", &["v1.2.4", "v2.0.0"], &["v1.2.4"]),
        ("v1.2.3", &["1.2.4"], &["1.2.4"]),
        ("1.2", &["v1.3", "1.3"], &["1.3"]),
        ("v1.2", &["1.3", "v1.3"], &["v1.3"]),
        ("1.2", &["1.3", "1.03"], &["1.03"]),
        ("1.2", &["1.3", "1.3", "1.3"], &["1.3"]),
        ("0.9", &["0.10", "1.0"], &["0.10"]),
        ("2024.01.15", &["2024.02.01", "2025.01.01"], &["2024.02.01"]),
        ("8.0_jre", &["8.1_jre", "8.1-jre"], &["8.1_jre"]),
        (
            "1.2-bookworm-slim",
            &["1.3-bookworm-slim", "1.3-bookworm", "1.3-slim"],
            &["1.3-bookworm-slim"],
        ),
        (
            "1.2-alpine3.19",
            &["1.3-alpine3.19", "1.3-alpine3.20"],
            &["1.3-alpine3.19"],
        ),
    ] {
        assert_eq!(newer(current, tags), expected, "{current} of {tags:?}");
    }
}

#[test]
fn kinds_are_never_crossed() {
    for (current, tag) in [
        // Another major version.
        ("1.26", "2.0"),
        ("7", "8"),
        ("v1.0.0", "v2.0.0"),
        // Older, or the same.
        ("1.26", "1.25"),
        ("1.26", "1.26"),
        ("1.26", "v1.26"),
        ("1.2", "1.02"),
        // Another number of parts.
        ("1.26", "1.27.1"),
        ("1.26.1", "1.27"),
        ("1.26", "1"),
        ("1.26", "1.27.1.4"),
        // Another suffix.
        ("7.2", "7.4-alpine"),
        ("7.2-alpine", "7.4"),
        ("7.2-alpine", "7.4-Alpine"),
        ("7.2-alpine", "7.4-alpine3.20"),
        ("7.2-alpine", "7.4_alpine"),
        // No version.
        ("latest", "1.27"),
        ("stable", "stable2"),
        ("1.26", "latest"),
        ("1.26", "1.x"),
        ("1.26", "1."),
        ("1.26", ".27"),
        ("1.26", "1..27"),
        ("1.26", "1.27-"),
        ("1.26", "V1.27"),
        ("1.26", "vv1.27"),
        ("1.26", "v"),
        ("1.26", ""),
        ("", "1.27"),
        ("1.26", "release-1.27"),
        ("1.26", "sha256-abc.sig"),
        ("1.26", "1.9999999999999999999"),
        ("1.26", "1.27\u{0660}"),
    ] {
        assert_eq!(newer(current, &[tag]), [] as [&str; 0], "{current} → {tag}");
    }
}

#[test]
fn pre_releases_are_no_candidates() {
    for suffix in [
        "rc1",
        "rc",
        "rc.1",
        "beta",
        "beta2",
        "alpha.3",
        "a1",
        "b2",
        "dev",
        "preview",
        "M1",
        "RC2",
        "nightly",
        "pre",
        "snapshot",
        "canary",
        "alpine-rc1",
        "rc1-alpine",
        "0.rc1",
    ] {
        let (current, tag) = (format!("1.2.0-{suffix}"), format!("1.3.0-{suffix}"));
        assert_eq!(newer(&current, &[&tag]), [] as [&str; 0], "{tag}");
        assert_eq!(newer("1.2.0", &[&tag]), [] as [&str; 0], "{tag}");
    }
    assert_eq!(newer("3.13.0", &["3.14.0rc1", "3.15.0a1"]), [] as [&str; 0]);
    for stable in [
        "alpine",
        "bookworm",
        "slim",
        "jre",
        "debian-12",
        "management",
        "apache",
    ] {
        let (current, tag) = (format!("1.2.0-{stable}"), format!("1.3.0-{stable}"));
        assert_eq!(newer(&current, &[&tag]), [tag.as_str()], "{tag}");
    }
}

#[test]
fn a_list_is_asked_for_only_where_it_can_help() {
    for tag in ["1.2", "v1.2.3", "1.2-alpine"] {
        assert!(may_have_candidates(tag), "{tag}");
    }
    for tag in ["latest", "7", "v7", "7-alpine", "1.2-rc1", "stable", ""] {
        assert!(!may_have_candidates(tag), "{tag}");
    }
}

#[test]
fn a_long_list_is_bounded() {
    let tags: Vec<String> = (0..60_000).map(|minor| format!("1.{minor}")).collect();
    let found = candidates("1.1", tags.iter().map(String::as_str));
    assert_eq!(found.len(), MAX_CANDIDATES);
    assert_eq!(
        found[0], "1.49999",
        "only the first {MAX_TAGS} are looked at"
    );
    let long = format!("1.2-{}", "x".repeat(200));
    assert_eq!(newer("1.1", &[&long]), [] as [&str; 0]);
}

/// A tag as repositories have them, and now and then nonsense.
fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => ("v?", prop::collection::vec(0_u64..40, 1..=4), "(-alpine|-slim|-rc1)?").prop_map(
            |(v, parts, suffix)| {
                let parts: Vec<String> = parts.iter().map(u64::to_string).collect();
                format!("{v}{}{suffix}", parts.join("."))
            }
        ),
        1 => "[a-z0-9._-]{0,12}",
        1 => ".{0,12}",
    ]
}

proptest! {
    #[test]
    fn whatever_the_tags_candidates_are_newer_and_of_the_kind(
        current in tag(), tags in prop::collection::vec(tag(), 0..40)
    ) {
        let found = candidates(&current, tags.iter().map(String::as_str));
        let is = Version::parse(&current);
        for tag in &found {
            prop_assert!(may_have_candidates(&current));
            let is = is.as_ref().expect("what is no version has no candidates");
            let other = Version::parse(tag).expect("a candidate is a version");
            prop_assert!(tags.iter().any(|known| known == tag));
            prop_assert_eq!(other.parts.len(), is.parts.len());
            prop_assert_eq!(other.parts[0], is.parts[0]);
            prop_assert_eq!(other.suffix, is.suffix);
            prop_assert!(other.parts > is.parts && !other.is_pre_release());
            // None of them would be offered what it already is.
            prop_assert!(!candidates(tag, [*tag]).contains(tag));
        }
        let parts = found.iter().filter_map(|tag| Version::parse(tag)).map(|version| version.parts);
        let parts: Vec<_> = parts.collect();
        prop_assert!(parts.windows(2).all(|pair| pair[0] > pair[1]), "newest first, each once");
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(
        current in tag(), tags in prop::collection::vec(tag(), 0..40)
    ) {
        let one = candidates(&current, tags.iter().map(String::as_str));
        prop_assert_eq!(one, candidates(&current, tags.iter().rev().map(String::as_str)));
    }
}
