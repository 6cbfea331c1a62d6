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
fn the_familiar_name_of_a_repository_means_the_same() {
    for (text, familiar) in [
        ("docker.io/library/redis", "redis"),
        ("docker.io/acme/web", "acme/web"),
        ("docker.io/library/a/b", "library/a/b"),
        // Without its registry this would be a host.
        ("docker.io/evil.example/web", "docker.io/evil.example/web"),
        ("ghcr.io/acme/web", "ghcr.io/acme/web"),
        // In small letters this would be Docker Hub's.
        ("Acme/web", "ACME/web"),
    ] {
        let repository: Repository = text.parse().unwrap();
        let (registry, path) = (repository.registry(), repository.path());
        assert_eq!(Repository::of(registry, path), Ok(repository.clone()));
        assert_eq!(repository.familiar(), familiar);
        assert_eq!(familiar.parse(), Ok(repository));
    }
    for (registry, path) in [
        ("docker.io", "redis"),
        ("index.docker.io", "a/b"),
        ("a.b/c", "d"),
    ] {
        assert!(Repository::of(registry, path).is_err(), "{registry} {path}");
    }
    for text in ["redis:7", "redis@sha256:0", "Not A Name"] {
        assert!(text.parse::<Repository>().is_err(), "{text}");
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

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What the grammar of the distribution project allows: the text, and its registry, path and tag.
#[test]
fn accepts_what_the_grammar_accepts() {
    let hub = "docker.io";
    let whole = |count: usize| format!("{}a", "a/".repeat(count));
    let longest_tag = format!("_{}", "x".repeat(127));
    let long_label = "a".repeat(63);
    for (text, registry, path, tag) in [
        // Names alone; `library` stands for no owner at the Hub, and only there.
        ("a", hub, "library/a", None),
        ("0", hub, "library/0", None),
        ("repo", hub, "library/repo", None),
        ("repo/sub", hub, "repo/sub", None),
        ("a/a/a/a/a/a/a/a/a/a", hub, "a/a/a/a/a/a/a/a/a/a", None),
        ("aa/aa/aa", hub, "aa/aa/aa", None),
        ("docker.io/nginx", hub, "library/nginx", None),
        ("Docker.io/nginx", hub, "library/nginx", None),
        ("index.docker.io/user/x", hub, "user/x", None),
        ("quay.io/nginx", "quay.io", "nginx", None),
        // Separators between letters and digits.
        ("a.b", hub, "library/a.b", None),
        ("a_b", hub, "library/a_b", None),
        ("a__b", hub, "library/a__b", None),
        ("a-b", hub, "library/a-b", None),
        ("a--b", hub, "library/a--b", None),
        ("a-------b", hub, "library/a-------b", None),
        ("foo_bar/baz", hub, "foo_bar/baz", None),
        ("foo__bar/b-a-z", hub, "foo__bar/b-a-z", None),
        ("1.2.3/4", "1.2.3", "4", None),
        ("do__cker/repo", hub, "do__cker/repo", None),
        ("docker----box/repo", hub, "docker----box/repo", None),
        // What makes a host of the first part: a dot, a colon, `localhost`, a capital letter.
        ("foo.com/bar", "foo.com", "bar", None),
        ("foo.bar.com/a/b/c", "foo.bar.com", "a/b/c", None),
        ("foo-bar.com/x", "foo-bar.com", "x", None),
        ("foo--bar.com/x", "foo--bar.com", "x", None),
        ("x1.y2/z", "x1.y2", "z", None),
        ("Foo/bar", "foo", "bar", None),
        ("FOO/bar:Tag", "foo", "bar", Some("Tag")),
        ("localhost/x", "localhost", "x", None),
        ("localhost:80/x", "localhost:80", "x", None),
        ("foo:5000/x", "foo:5000", "x", None),
        ("foo.com:0/x", "foo.com:0", "x", None),
        ("foo.com:65535/x/y:z", "foo.com:65535", "x/y", Some("z")),
        ("localhost1/x", hub, "localhost1/x", None),
        ("xn--7o8h.com/x", "xn--7o8h.com", "x", None),
        ("192.168.0.1/x", "192.168.0.1", "x", None),
        ("192.168.0.1:5000/x:1", "192.168.0.1:5000", "x", Some("1")),
        ("[::1]/x", "[::1]", "x", None),
        (
            "[2001:db8::1]:5000/x:1",
            "[2001:db8::1]:5000",
            "x",
            Some("1"),
        ),
        ("[2001:DB8::1]/x", "[2001:db8::1]", "x", None),
        (
            "[::ffff:192.0.2.1]:80/x",
            "[::ffff:192.0.2.1]:80",
            "x",
            None,
        ),
        // Tags; the part after a colon is a port only if a slash follows.
        ("a:1", hub, "library/a", Some("1")),
        ("a:_", hub, "library/a", Some("_")),
        ("a:__.--", hub, "library/a", Some("__.--")),
        ("a:A.b-C_d", hub, "library/a", Some("A.b-C_d")),
        ("localhost:5000", hub, "library/localhost", Some("5000")),
        ("foo.com:80", hub, "library/foo.com", Some("80")),
        ("x/foo.com:443", hub, "x/foo.com", Some("443")),
        (
            &format!("a:{longest_tag}"),
            hub,
            "library/a",
            Some(&longest_tag),
        ),
        // Lengths: 255 characters of path, however long the host is.
        (&whole(127), hub, &whole(127), None),
        (
            &format!("{long_label}.{long_label}.{long_label}.com/{}", whole(127)),
            &format!("{long_label}.{long_label}.{long_label}.com"),
            &whole(127),
            None,
        ),
        (
            &format!("x.y/{}", "b".repeat(255)),
            "x.y",
            &"b".repeat(255),
            None,
        ),
        // 64 hex digits are an image id only alone.
        (&HEX[1..], hub, &format!("library/{}", &HEX[1..]), None),
        (&format!("{HEX}0"), hub, &format!("library/{HEX}0"), None),
        (
            &format!("{HEX}:1"),
            hub,
            &format!("library/{HEX}"),
            Some("1"),
        ),
        (&format!("x/{HEX}"), hub, &format!("x/{HEX}"), None),
    ] {
        let pinned = format!("{text}@sha256:{HEX}");
        for (text, digest) in [(text, None), (&pinned, Some(HEX))] {
            let found = parse(text);
            let repository = found.repository();
            assert_eq!(repository.registry(), registry, "{text}");
            assert_eq!(repository.path(), path, "{text}");
            assert_eq!(found.tag(), tag, "{text}");
            assert_eq!(found.digest().map(Digest::hex).as_deref(), digest, "{text}");
            assert_eq!(found.to_string(), text);
        }
    }
}

#[test]
fn refuses_what_the_grammar_refuses() {
    let too_long = format!("x.y/{}b", "b".repeat(255));
    let too_long_at_hub = "b".repeat(248);
    let upper = HEX.to_uppercase();
    for bad in [
        "",
        " ",
        "/",
        ":",
        "@",
        ":justtag",
        "@sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        // Digests: one algorithm, 64 small hex digits. The grammar knows others; no registry needs them.
        "repo@",
        "repo@sha256:",
        "repo@sha256:ffff",
        "repo@sha256:ffff:1",
        "validname@invaliddigest:ffff",
        &format!("repo@{HEX}"),
        &format!("repo@sha256:{upper}"),
        &format!("repo@SHA256:{HEX}"),
        &format!("repo@sha256:{HEX}0"),
        &format!("repo@sha256:{}g", &HEX[1..]),
        &format!("repo@sha512:{HEX}{HEX}"),
        &format!("repo@sha256+b64u:{HEX}"),
        &format!("repo@sha256:{HEX}@sha256:{HEX}"),
        &format!("repo@sha256:{HEX}:tag"),
        // Capital letters are for hosts and tags.
        "Uppercase:tag",
        "repo/Uppercase",
        "test:5000/Uppercase/lowercase:tag",
        "foo.com/Bar",
        "A",
        // Empty components, and separators at an end, too many, or beside each other.
        "a//b",
        "//a",
        "/a",
        "a/",
        "a/:1",
        "foo.com//b",
        "foo.com/",
        "-foo/bar",
        "foo/-bar",
        "foo/bar-",
        "foo-/bar",
        "foo/.bar",
        "foo/bar.",
        "_foo",
        "foo_",
        "foo..bar",
        "foo___bar",
        "foo._bar",
        "foo_.bar",
        "foo-_bar",
        "foo-.bar",
        "foo__-bar",
        "..",
        ".",
        "a/../b",
        "./a",
        // Hosts.
        "foo.com:http/bar",
        "foo.com:99999/bar",
        "foo.com:/bar",
        "foo.com:-1/bar",
        "foo.com:80:80/bar",
        "foo..com/bar",
        ".foo.com/bar",
        "foo.com./bar",
        "-foo.com/bar",
        "foo-.com/bar",
        "foo_bar.com/x",
        "foo.com_bar/x",
        "user@foo.com/bar",
        "user:password@foo.com/bar",
        "http://foo.com/bar",
        "https://foo.com/bar",
        "docker://foo.com/bar",
        "[fe80::1%eth0]:5000/app",
        "[fe80::1%25eth0]/app",
        "[2001:db8::1",
        "[2001:db8::1]",
        "2001:db8::1/app",
        "[]/app",
        "[::1]x/app",
        "[::1]:/app",
        "[127.0.0.1]/app",
        "[g::1]/app",
        "[fc00:0000:0000:0000]/app",
        // Tags.
        "app:",
        "app:.x",
        "app:-x",
        "app:a:b",
        "app:a/b:",
        "app:a b",
        "app:a+b",
        "app:ä",
        &format!("app:{}", "t".repeat(129)),
        // Other characters.
        "a b",
        " a",
        "a ",
        "a\tb",
        "a\n",
        "a\0",
        "a?b",
        "a#b",
        "a%2fb",
        "a\\b",
        "ä/b",
        "aa/asdf$$^/aa",
        "a*",
        "a/b?c=d",
        // Lengths.
        &too_long,
        &too_long_at_hub,
        &format!("{}a", "a/".repeat(128)),
        // An image id.
        HEX,
    ] {
        assert!(bad.parse::<Reference>().is_err(), "{bad}");
    }
}

#[test]
fn a_million_random_texts_are_read_without_a_panic() {
    // Pieces that are nearly right find more than letters at random.
    let pieces = [
        "a",
        "B",
        "0",
        "/",
        ":",
        "@",
        ".",
        "_",
        "__",
        "-",
        "[",
        "]",
        "::",
        "%",
        " ",
        "\u{e9}",
        "\u{0}",
        "localhost",
        "foo.com",
        ":5000",
        "sha256:",
        HEX,
        "\u{1f600}",
        "latest",
        "[::1]",
        "..",
    ];
    // Marsaglia's xorshift, so that each run reads the same.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut read = 0;
    for _ in 0..1_000_000 {
        let text: String = (0..=draw(8)).map(|_| pieces[draw(pieces.len())]).collect();
        if let Ok(reference) = text.parse::<Reference>() {
            read += 1;
            assert_eq!(reference.to_string(), text);
            assert!(reference.repository().path().len() <= 255);
        }
    }
    assert!(read > 10_000, "only {read} of them were references");
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
        host in prop::option::of("(localhost|[A-Z][a-z]{0,3}|[a-z0-9]{1,8}\\.[a-z]{2,3})(:[1-9][0-9]{0,3})?"),
        path in "[a-z0-9]{1,6}([_-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}(__[a-z0-9]{1,3})?){0,2}",
        tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        content in prop::option::of(prop::collection::vec(any::<u8>(), 0..8)),
    ) {
        let host = host.map(|host| host + "/").unwrap_or_default();
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = content.map(|content| format!("@{}", Digest::of(&content)));
        let text = format!("{host}{path}{tag}{}", digest.unwrap_or_default());
        let reference = text.parse::<Reference>();
        prop_assert!(reference.is_ok(), "{}", text);
        let reference = reference.unwrap();
        prop_assert_eq!(reference.to_string(), text);
        // The canonical form of a name is a name of the same repository, and its own canonical form.
        let canonical = reference.repository().to_string();
        let again = canonical.parse::<Reference>();
        prop_assert!(again.is_ok(), "{}", canonical);
        let again = again.unwrap();
        prop_assert_eq!(again.repository(), reference.repository());
    }
}
