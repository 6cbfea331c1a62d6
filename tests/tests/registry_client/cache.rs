//! How often a registry is asked, counted by its own log.

use futures_util::future::join_all;
use holdfast_registry::{Identity, Resolved};
use holdfast_tests::registry::{Access, Login, Options};
use holdfast_tests::token_server::TokenPolicy;
use holdfast_tests::wait::try_wait_for;

use super::*;

const TTL: Duration = Duration::from_mins(5);

/// Requests for manifests so far; the log is written a moment after the answer.
async fn manifests(registry: &Registry, at_least: usize) -> anyhow::Result<Vec<Access>> {
    let deadline = Duration::from_mins(1);
    try_wait_for("the registry's log", deadline, async || {
        let asked = registry.requests().into_iter();
        let asked: Vec<_> = asked
            .filter(|access| access.path.contains("/manifests/") && access.method != "PUT")
            .collect();
        (asked.len() >= at_least).then_some(asked)
    })
    .await
}

#[tokio::test]
async fn fifty_askers_are_one_question_and_later_ones_a_conditional_one() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let pushed = Image::web("same", "1")
        .single()
        .push(&registry, "1")
        .await?;
    let wanted = reference(&pushed.reference());
    let client = client_with(|settings| settings.cache_ttl = TTL);
    let askers = (0..50).map(|_| client.resolve(&wanted));
    for answer in join_all(askers).await {
        assert_eq!(answer?.top.digest().to_string(), pushed.top_digest);
    }
    assert_eq!(manifests(&registry, 1).await?.len(), 1, "fifty askers");
    join_all((0..50).map(|_| client.resolve(&wanted))).await;
    assert_eq!(manifests(&registry, 1).await?.len(), 1, "within the TTL");

    tokio::time::pause();
    tokio::time::advance(TTL).await;
    tokio::time::resume();
    for answer in join_all((0..50).map(|_| client.resolve(&wanted))).await {
        answer?;
    }
    let asked = manifests(&registry, 2).await?;
    let last = asked.last().expect("a request");
    assert_eq!(asked.len(), 2, "after the TTL");
    assert_eq!((last.method.as_str(), last.status), ("HEAD", 304));

    let digest: Digest = pushed.top_digest.parse()?;
    let answer = client.ask(&wanted, Some(&digest)).await?;
    assert_eq!(answer, Resolved::Unchanged);
    Ok(())
}

#[tokio::test]
async fn fifty_images_are_fifty_manifests() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let image = Image::web("many", "1").single();
    let mut wanted = Vec::new();
    for tag in 0..50 {
        let pushed = image.push(&registry, &format!("v{tag}")).await?;
        wanted.push(reference(&pushed.reference()));
    }
    let client = client_with(|settings| settings.cache_ttl = TTL);
    let services = wanted.iter().cycle().take(1_000);
    for answer in join_all(services.map(|wanted| client.resolve(wanted))).await {
        answer?;
    }
    assert_eq!(manifests(&registry, 50).await?.len(), 50);
    tokio::time::pause();
    tokio::time::advance(TTL).await;
    tokio::time::resume();
    for answer in join_all(wanted.iter().map(|wanted| client.resolve(wanted))).await {
        answer?;
    }
    let asked = manifests(&registry, 100).await?;
    let unchanged = asked.iter().filter(|access| access.status == 304).count();
    assert_eq!((asked.len(), unchanged), (100, 50));
    Ok(())
}

#[tokio::test]
async fn what_one_may_see_is_not_told_to_another() -> anyhow::Result<()> {
    let registry = Registry::start(Options {
        login: Login::Token(TokenPolicy::user("reader", "right")),
        ..Options::default()
    })
    .await?;
    let pushed = Image::web("private", "1").push(&registry, "1").await?;
    let client = client_with(|settings| settings.cache_ttl = TTL);
    let who = |id: &str, secret: &str| Identity {
        id: id.to_owned(),
        credentials: password("reader", secret),
    };
    let (knows, guesses) = (who("fleet:1", "right"), who("fleet:2", "wrong"));
    for text in [pushed.reference(), pushed.pinned()] {
        let wanted = reference(&text);
        client.resolve_for(&wanted, Some(&knows)).await?;
        for who in [Some(&guesses), None] {
            let error = client.resolve_for(&wanted, who).await;
            let error = error.expect_err("not theirs");
            assert_eq!(error.code(), "unauthorized", "{text}");
        }
        let before = manifests(&registry, 1).await?.len();
        client.resolve_for(&wanted, Some(&knows)).await?;
        assert_eq!(manifests(&registry, before).await?.len(), before);
    }
    Ok(())
}

#[tokio::test]
async fn c37_a_failure_is_not_asked_for_again_at_once() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let missing = reference(&format!("{}/missing:1", registry.host()));
    let client = client_with(|settings| settings.cache_ttl = TTL);
    for answer in join_all((0..50).map(|_| client.resolve(&missing))).await {
        assert_eq!(answer.expect_err("missing").code(), "not_found");
    }
    assert_eq!(manifests(&registry, 1).await?.len(), 1);
    Image::web("missing", "1").push(&registry, "1").await?;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(15)).await;
    tokio::time::resume();
    client.resolve(&missing).await?;
    Ok(())
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_where_it_fails() -> anyhow::Result<()> {
    let (origin, mirror) = (Registry::open().await?, Registry::open().await?);
    let pushed = Image::web("cached/app", "1").push(&mirror, "1").await?;
    let own = Image::web("app", "2").push(&origin, "2").await?;
    let entry = RegistrySettings {
        mirrors: vec![
            // Nobody listens on port 1.
            "127.0.0.1:1".parse()?,
            format!("{}/cached", mirror.host()).parse()?,
        ],
        ..RegistrySettings::default()
    };
    let client = client_with(|settings| {
        settings.registries = BTreeMap::from([(origin.host(), entry)]);
    });
    for (tag, digest) in [("1", &pushed.top_digest), ("2", &own.top_digest)] {
        let wanted = reference(&format!("{}/app:{tag}", origin.host()));
        let found = client.resolve(&wanted).await?;
        assert_eq!(found.top.digest().to_string(), *digest);
    }
    let at_origin = manifests(&origin, 1).await?;
    assert!(at_origin.iter().all(|access| !access.path.ends_with("/1")));
    Ok(())
}
