//! No credential reaches a host that it was not issued for: judged by every byte that came out of the
//! stranger's socket.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use holdfast_registry::Secret;
use holdfast_tests::fault_registry::{FaultRegistry, Head, Reply};

use super::*;

const CANARY: &str = "canary-7d1f";

/// What must never be seen at a stranger.
fn secrets() -> Vec<String> {
    let coded = BASE64_STANDARD.encode(format!("reader:{CANARY}"));
    let of_token_server = format!("minted-{CANARY}");
    vec![
        CANARY.to_owned(),
        coded,
        of_token_server,
        "authorization".to_owned(),
    ]
}

fn assert_knows_nothing(stranger: &FaultRegistry, story: &str) {
    let heard = stranger.heard().to_ascii_lowercase();
    for secret in secrets() {
        assert!(
            !heard.contains(&secret.to_ascii_lowercase()),
            "{story}: {heard}"
        );
    }
}

fn every_kind() -> Vec<Credentials> {
    let secret = || Secret::new(CANARY.to_owned());
    vec![
        password("reader", CANARY),
        Credentials::Identity { token: secret() },
        Credentials::Bearer { token: secret() },
    ]
}

/// A stranger that would like to be told: it asks for every login there is.
async fn stranger(address: &str) -> anyhow::Result<FaultRegistry> {
    FaultRegistry::start_at(address, |head| {
        let host = head.header("host").unwrap_or_default();
        let bearer = format!(r#"Bearer realm="http://{host}/token",service="x""#);
        let headers = [
            ("www-authenticate", bearer.as_str()),
            ("www-authenticate", "Basic realm=x"),
        ];
        Reply::whole(401, &headers, "")
    })
    .await
}

/// A registry that takes any login for granted, after asking for it, and then does something.
fn then(basic: bool, act: impl Fn(&Head) -> Reply) -> impl Fn(&Head) -> Reply {
    move |head| {
        let host = head.header("host").unwrap_or_default();
        let bearer = format!(r#"Bearer realm="http://{host}/token",service="x""#);
        let challenge = if basic { "Basic realm=x" } else { &bearer };
        if head.target.starts_with("/token") {
            let answer = format!(r#"{{"token":"minted-{CANARY}"}}"#);
            Reply::whole(200, &[], answer)
        } else if head.header("authorization").is_none() {
            Reply::whole(401, &[("www-authenticate", challenge)], "")
        } else {
            act(head)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c40_a_redirect_to_another_host_takes_no_login_along() -> anyhow::Result<()> {
    for (credentials, basic) in [(0, true), (0, false), (1, false), (2, false), (2, true)] {
        for (address, status) in [("127.0.0.2", 307), ("127.0.0.1", 302), ("127.0.0.3", 301)] {
            // On 127.0.0.1 it is the same host on another port: that is somebody else, too.
            let elsewhere = stranger(address).await?;
            let url = elsewhere.url();
            let registry = FaultRegistry::start(then(basic, move |_| {
                Reply::whole(
                    status,
                    &[("location", &format!("{url}/v2/app/manifests/1"))],
                    "",
                )
            }))
            .await?;
            let credentials = every_kind().swap_remove(credentials);
            let story = format!("{credentials:?} {basic} {address}");
            let client = client_of(&registry.host(), Some(credentials));
            let wanted = reference(&format!("{}/app:1", registry.host()));
            let error = client.resolve(&wanted).await.expect_err("not theirs");
            assert_eq!(error.code(), "unauthorized", "{story}: {error}");
            assert_eq!(elsewhere.heads().len(), 1, "{story}: followed, once");
            assert_knows_nothing(&elsewhere, &story);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c40_a_realm_of_a_stranger_is_not_asked() -> anyhow::Result<()> {
    for credentials in every_kind() {
        let evil = stranger("127.0.0.2").await?;
        for realm in [
            format!("{}/token", evil.url()),
            format!(
                "{}/token",
                evil.url().replace("http://", "http://127.0.0.1@")
            ),
            format!("{}/token", evil.url().replace("http://", "https://")),
        ] {
            let challenge = format!(r#"Bearer realm="{realm}",service="x""#);
            let registry = FaultRegistry::start(move |_| {
                Reply::whole(401, &[("www-authenticate", challenge.as_str())], "")
            })
            .await?;
            let client = client_of(&registry.host(), Some(credentials.clone()));
            let wanted = reference(&format!("{}/app:1", registry.host()));
            let error = client.resolve(&wanted).await.expect_err("refused");
            let error = match client.pull_token(&wanted, None).await {
                Err(error) => error,
                Ok(_) => error,
            };
            let expected = match &credentials {
                // It is used as it is: nobody is asked for another.
                Credentials::Bearer { .. } => "unauthorized",
                Credentials::Password { .. } | Credentials::Identity { .. } => "realm_refused",
            };
            assert_eq!(error.code(), expected, "{realm}: {error}");
        }
        assert_eq!(evil.heard(), "", "{credentials:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c40_neither_a_token_server_nor_a_list_sends_a_login_away() -> anyhow::Result<()> {
    let evil = stranger("127.0.0.2").await?;
    // A token server that redirects.
    let url = evil.url();
    let registry = FaultRegistry::start(move |head| {
        let host = head.header("host").unwrap_or_default();
        let bearer = format!(r#"Bearer realm="http://{host}/token",service="x""#);
        if head.target.starts_with("/token") {
            Reply::whole(307, &[("location", url.as_str())], "")
        } else {
            Reply::whole(401, &[("www-authenticate", bearer.as_str())], "")
        }
    })
    .await?;
    let wanted = reference(&format!("{}/app:1", registry.host()));
    for credentials in every_kind() {
        let client = client_of(&registry.host(), Some(credentials));
        client.resolve(&wanted).await.expect_err("no token");
    }
    // A list of tags whose next page is elsewhere.
    let url = evil.url();
    let registry = FaultRegistry::start(then(true, move |_| {
        let next = format!("<{url}/v2/app/tags/list?last=a>; rel=\"next\"");
        Reply::whole(200, &[("link", next.as_str())], r#"{"tags":["a"]}"#)
    }))
    .await?;
    let client = client_of(&registry.host(), Some(password("reader", CANARY)));
    let wanted = reference(&format!("{}/app:1", registry.host()));
    client.tags(wanted.repository(), None).await?;
    assert_eq!(evil.heard(), "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_never_sees_the_registrys_login() -> anyhow::Result<()> {
    let mirror = stranger("127.0.0.2").await?;
    let (body, digest, config) = manifest();
    let origin = FaultRegistry::start(then(true, move |head| {
        if head.target.contains("/blobs/") {
            Reply::whole(200, &[], &config)
        } else {
            Reply::whole(200, &[("content-type", MANIFEST)], &body)
        }
    }))
    .await?;
    let entry = RegistrySettings {
        credentials: Some(password("reader", CANARY)),
        mirrors: vec![mirror.host().parse()?],
        ..RegistrySettings::default()
    };
    let client = client_with(|settings| {
        settings.registries = BTreeMap::from([(origin.host(), entry)]);
    });
    let wanted = reference(&format!("{}/app:1", origin.host()));
    let found = client.resolve(&wanted).await?;
    assert_eq!(found.top.digest().to_string(), digest);
    assert!(!mirror.heads().is_empty(), "it was asked first");
    assert_knows_nothing(&mirror, "a mirror");
    assert!(
        origin.heard().contains(&secrets()[1]),
        "and the registry knows it"
    );
    Ok(())
}
