//! The reference grammar as a list of facts.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Reference {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn all_spellings_of_a_hub_repository_are_one() {
    for text in [
        "redis",
        "library/redis",
        "docker.io/redis",
        "docker.io/library/redis",
        "index.docker.io/library/redis",
        "registry-1.docker.io/library/redis",
        "redis:7",
    ] {
        let repository = parse(text).repository().clone();
        assert_eq!(
            (repository.registry(), repository.path()),
            ("docker.io", "library/redis"),
            "{text}"
        );
        assert_eq!(repository.api_host(), "registry-1.docker.io");
    }
}

#[test]
fn the_first_part_is_a_host_only_if_it_must_be() {
    for (text, registry, path, tag) in [
        ("user/img", "docker.io", "user/img", None),
        ("localhost/foo", "localhost", "foo", None),
        ("localhost:5000/foo:1", "localhost:5000", "foo", Some("1")),
        (
            "127.0.0.1:5000/demo/web:1",
            "127.0.0.1:5000",
            "demo/web",
            Some("1"),
        ),
        (
            "ghcr.io/kiwix/kiwix-serve",
            "ghcr.io",
            "kiwix/kiwix-serve",
            None,
        ),
        ("Host/app", "host", "app", None),
        ("[::1]:5000/app:x", "[::1]:5000", "app", Some("x")),
        ("test_com/foo", "docker.io", "test_com/foo", None),
        (
            "foo/foo_bar.com:8080",
            "docker.io",
            "foo/foo_bar.com",
            Some("8080"),
        ),
        (
            "xn--n3h.com/myimage:xn--n3h.com",
            "xn--n3h.com",
            "myimage",
            Some("xn--n3h.com"),
        ),
        ("a__b/c---d/e.f_g", "docker.io", "a__b/c---d/e.f_g", None),
    ] {
        let reference = parse(text);
        assert_eq!(reference.repository().registry(), registry, "{text}");
        assert_eq!(reference.repository().path(), path, "{text}");
        assert_eq!(reference.tag(), tag, "{text}");
        assert_eq!(reference.to_string(), text);
    }
}

#[test]
fn tag_and_digest_stand_together_and_pinning_drops_the_tag() {
    let digest = Digest::of(b"x");
    let reference = parse(&format!("localhost:5000/app:1@{digest}"));
    assert_eq!(reference.tag(), Some("1"));
    assert_eq!(reference.digest(), Some(&digest));
    assert_eq!(
        reference.pinned(&digest),
        format!("localhost:5000/app@{digest}")
    );
    assert_eq!(parse("nginx").tag_or_latest(), "latest");
}

#[test]
fn refuses_what_the_grammar_refuses() {
    let long = "a/".repeat(128) + "a";
    let hex = "a".repeat(64);
    for bad in [
        "",
        ":justtag",
        "@sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "repo@sha256:ffff",
        "validname@invaliddigest:ffff",
        "Uppercase:tag",
        "test:5000/Uppercase/lowercase:tag",
        "a//b",
        "/a",
        "a/",
        "-foo/bar",
        "foo/-bar",
        "foo/bar-",
        "foo..bar",
        "foo___bar",
        "foo._bar",
        "foo.com:http/bar",
        "foo.com:99999/bar",
        "[fe80::1%eth0]:5000/app",
        "[2001:db8::1",
        "a b",
        "app:",
        "app:.x",
        "app:a:b",
        "aa/asdf$$^/aa",
        &format!("app:{}", "t".repeat(129)),
        long.as_str(),
        hex.as_str(),
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn never_panics_and_writes_back_what_it_read(text in "\\PC{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn reads_every_well_formed_reference(
        host in prop::option::of("(localhost|[a-z0-9]{1,8}\\.[a-z]{2,3})(:[1-9][0-9]{0,3})?"),
        path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}(__[a-z0-9]{1,3})?){0,2}",
        tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
    ) {
        let host = host.map(|host| host + "/").unwrap_or_default();
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let text = format!("{host}{path}{tag}");
        let reference = text.parse::<Reference>();
        prop_assert!(reference.is_ok(), "{}", text);
        prop_assert_eq!(reference.unwrap().to_string(), text);
    }
}
