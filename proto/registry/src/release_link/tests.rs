//! Facts about links to releases.

use proptest::prelude::*;

use super::*;

fn link(source: &str, tag: &str) -> Option<String> {
    release_link(source, tag, [])
}

#[test]
fn each_forge_has_its_own_form() {
    for (source, tag, expected) in [
        (
            "https://github.com/o/r",
            "1.2.3",
            "https://github.com/o/r/releases/tag/1.2.3",
        ),
        (
            "https://github.com/o/r",
            "v1.2.3",
            "https://github.com/o/r/releases/tag/v1.2.3",
        ),
        (
            "https://github.com/o/r.git",
            "7.4-alpine",
            "https://github.com/o/r/releases/tag/7.4",
        ),
        (
            "https://github.com/o/r/",
            "1.2.3-4",
            "https://github.com/o/r/releases/tag/1.2.3-4",
        ),
        (
            "https://github.com/o/r?x=1",
            "1.2",
            "https://github.com/o/r/releases/tag/1.2",
        ),
        (
            "https://github.com/o/r/tree/main/app",
            "1.2",
            "https://github.com/o/r/releases/tag/1.2",
        ),
        (
            "https://github.com/o/r/tree/v1.1",
            "1.2",
            "https://github.com/o/r/releases/tag/v1.2",
        ),
        (
            "https://github.com/o/r#refs/tags/v1.1",
            "1.2",
            "https://github.com/o/r/releases/tag/v1.2",
        ),
        (
            "https://github.com/o/r#0123abc",
            "1.2",
            "https://github.com/o/r/releases/tag/1.2",
        ),
        (
            "https://github.example.com/o/r",
            "1.2",
            "https://github.example.com/o/r/releases/tag/1.2",
        ),
        (
            "https://gitlab.com/g/p",
            "1.2",
            "https://gitlab.com/g/p/-/releases/1.2",
        ),
        (
            "https://gitlab.com/g/s/t/p.git",
            "v1.2",
            "https://gitlab.com/g/s/t/p/-/releases/v1.2",
        ),
        (
            "https://gitlab.com/g/s/p/-/tree/v1.0",
            "1.2",
            "https://gitlab.com/g/s/p/-/releases/v1.2",
        ),
        (
            "https://gitlab.gnome.org:8443/g/p",
            "1.2",
            "https://gitlab.gnome.org:8443/g/p/-/releases/1.2",
        ),
        (
            "https://codeberg.org/o/r",
            "1.2",
            "https://codeberg.org/o/r/releases/tag/1.2",
        ),
        (
            "http://gitea.example:3000/o/r",
            "1.2",
            "http://gitea.example:3000/o/r/releases/tag/1.2",
        ),
        (
            "https://git.forgejo.example/o/r",
            "1.2",
            "https://git.forgejo.example/o/r/releases/tag/1.2",
        ),
    ] {
        assert_eq!(
            link(source, tag).as_deref(),
            Some(expected),
            "{source} {tag}"
        );
    }
}

#[test]
fn the_repositorys_own_v_counts() {
    let source = "https://github.com/o/r";
    let with = |tag: &str, spellings: &[&str]| {
        let link = release_link(source, tag, spellings.iter().copied())?;
        Some(link.rsplit_once('/')?.1.to_owned())
    };
    assert_eq!(
        with("1.2.3", &["1.2.3", "v1.2.3"]).as_deref(),
        Some("v1.2.3")
    );
    assert_eq!(with("1.2.3-alpine", &["v1.2.3"]).as_deref(), Some("v1.2.3"));
    assert_eq!(
        with("1.2.3", &["v1.2.4", "1.2.2"]).as_deref(),
        Some("1.2.3")
    );
    assert_eq!(with("v1.2.3", &["1.2.3"]).as_deref(), Some("v1.2.3"));
}

#[test]
fn what_is_not_known_to_be_a_release_has_no_link() {
    for (source, tag) in [
        ("https://github.com/o/r", "latest"),
        ("https://github.com/o/r", ""),
        ("https://github.com/o", "1.2"),
        ("https://github.com/", "1.2"),
        ("https://github.com", "1.2"),
        ("https://bitbucket.org/o/r", "1.2"),
        ("https://example.com/o/r", "1.2"),
        ("https://notgithub.com/o/r", "1.2"),
        ("https://github.com/o/r.git#abc:1.27/alpine", "1.2"),
        ("git@github.com:o/r.git", "1.2"),
        ("git://github.com/o/r", "1.2"),
        ("ssh://git@github.com/o/r", "1.2"),
        ("javascript://github.com/o/r", "1.2"),
        ("HTTPS://github.com/o/r", "1.2"),
        ("https://user:password@github.com/o/r", "1.2"),
        ("https://token@github.com/o/r", "1.2"),
        ("https://github.com\\@evil.example/o/r", "1.2"),
        ("https://github.com/o/../../x", "1.2"),
        ("https://github.com/o/%2e%2e", "1.2"),
        ("https://github.com/o/r<script>", "1.2"),
        ("https://github.com/o/r\nx", "1.2"),
        ("https://github.com/o/.git", "1.2"),
        ("https://github.com:99999/o/r", "1.2"),
        ("https://gitlab.com/-/p", "1.2"),
        ("", "1.2"),
        ("://", "1.2"),
    ] {
        assert_eq!(link(source, tag), None, "{source} {tag}");
    }
    assert_eq!(
        link(&format!("https://github.com/o/{}", "r".repeat(600)), "1.2"),
        None
    );
}

proptest! {
    #[test]
    fn a_link_is_bounded_and_goes_where_the_source_said(source in "https?://[ -~]{0,60}", tag in ".{0,20}") {
        if let Some(link) = link(&source, &tag) {
            prop_assert!(link.len() <= MAX_URL_BYTES);
            let host = |url: &str| url.split('/').nth(2).map(str::to_owned);
            prop_assert_eq!(host(&link), host(&source));
            prop_assert!(!link.contains('@'));
        }
    }

    #[test]
    fn no_text_makes_it_panic(source in ".{0,80}", tag in ".{0,40}", other in ".{0,20}") {
        let _ = release_link(&source, &tag, [other.as_str()]);
    }
}
