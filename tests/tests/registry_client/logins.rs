//! Logins at real registries: which of them work, what is said of those that do not, and what a device
//! is given in their place.

use holdfast_registry::{Identity, PullAccess, RegistryError};
use holdfast_tests::http_tap::{HttpTap, reply};
use holdfast_tests::registry::{Login, Options};
use holdfast_tests::token_server::{TokenPolicy, TokenServer};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

async fn with_login(login: Login) -> anyhow::Result<Registry> {
    Registry::start(Options {
        login,
        ..Options::default()
    })
    .await
}

fn basic() -> Login {
    Login::Basic {
        username: "reader".to_owned(),
        password: "right".to_owned(),
    }
}

fn tokens() -> Login {
    Login::Token(TokenPolicy::user("reader", "right"))
}

async fn refused(client: &Client, text: &str) -> RegistryError {
    client
        .resolve(&reference(text))
        .await
        .expect_err("a refusal")
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_asked_for_and_a_wrong_one_says_so() -> anyhow::Result<()> {
    for login in [basic(), tokens()] {
        let registry = with_login(login).await?;
        let pushed = Image::web("private", "1").push(&registry, "1").await?;
        let wanted = reference(&pushed.reference());
        let right = client_of(&registry.host(), Some(password("reader", "right")));
        let digest = right.resolve(&wanted).await?.top.digest().to_string();
        assert_eq!(digest, pushed.top_digest);
        let asked = registry.tokens().map(TokenServer::asked);
        right.resolve(&wanted).await?;
        let now = registry.tokens().map(TokenServer::asked);
        assert_eq!(now, asked, "a good token is used again");
        for credentials in [
            Some(password("reader", "wrong")),
            Some(password("nobody", "right")),
            Some(token("x.y.z")),
            None,
        ] {
            let client = client_of(&registry.host(), credentials.clone());
            let error = refused(&client, &pushed.reference()).await;
            assert_eq!(error.code(), "unauthorized", "{credentials:?}: {error}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_counts_for_its_registry_alone() -> anyhow::Result<()> {
    let registry = Registry::start(Options {
        login: basic(),
        tls: true,
        ..Options::default()
    })
    .await?;
    let pushed = Image::web("tls", "1").push(&registry, "1").await?;
    let port = registry.host().replace("127.0.0.1", "");
    let text = format!("registry.lab{port}/tls:1");
    let client = |ca: Option<&str>, secret: &str, other: bool| {
        let entry = RegistrySettings {
            credentials: Some(password("reader", secret)),
            ca_pem: ca.map(|pem| pem.as_bytes().to_vec()),
            ..RegistrySettings::default()
        };
        let name = if other {
            "other.lab".to_owned()
        } else {
            format!("registry.lab{port}")
        };
        client_with(|settings| {
            settings.registries = BTreeMap::from([(name, entry)]);
            settings.lookup = all_here();
        })
    };
    let ca = registry.ca_pem();
    let found = client(ca, "right", false)
        .resolve(&reference(&text))
        .await?;
    assert_eq!(found.top.digest().to_string(), pushed.top_digest);
    for (ca, secret, other, code) in [
        (ca, "wrong", false, "unauthorized"),
        (None, "right", false, "unreachable"),
        (ca, "right", true, "unreachable"),
    ] {
        let error = refused(&client(ca, secret, other), &text).await;
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.to_string().contains(secret), "{error}");
    }
    // A certificate for other names vouches for nobody.
    let text = format!("stranger.lab{port}/tls:1");
    let entry = RegistrySettings {
        ca_pem: ca.map(|pem| pem.as_bytes().to_vec()),
        ..RegistrySettings::default()
    };
    let stranger = client_with(|settings| {
        settings.registries = BTreeMap::from([(format!("stranger.lab{port}"), entry)]);
        settings.lookup = all_here();
    });
    assert_eq!(refused(&stranger, &text).await.code(), "unreachable");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_over_and_a_login_that_was_taken_away_are_refused() -> anyhow::Result<()> {
    let registry = with_login(Login::Token(TokenPolicy {
        // Shorter than the client's margin: no token is used twice.
        lifetime_seconds: 5,
        ..TokenPolicy::user("reader", "right")
    }))
    .await?;
    let pushed = Image::web("private", "1").push(&registry, "1").await?;
    let wanted = reference(&pushed.reference());
    let tokens = registry.tokens().expect("a token server");

    let old = tokens.expired_token("repository:private:pull")?;
    let client = client_of(&registry.host(), Some(token(&old)));
    let error = refused(&client, &pushed.reference()).await;
    assert_eq!(error.code(), "unauthorized", "{error}");
    assert!(!format!("{error:?}").contains(&old));

    let client = client_of(&registry.host(), Some(password("reader", "right")));
    client.resolve(&wanted).await?;
    tokens.revoke("reader");
    let error = refused(&client, &pushed.reference()).await;
    assert_eq!(error.code(), "unauthorized", "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_registry_forgot_is_replaced_once() -> anyhow::Result<()> {
    let registry = with_login(tokens()).await?;
    let pushed = Image::web("private", "1").push(&registry, "1").await?;
    let tap = HttpTap::start(registry.host()).await?;
    let text = format!("{}/private:1", tap.address());
    let client = client_of(&tap.address(), Some(password("reader", "right")));
    client.resolve(&reference(&text)).await?;

    let tokens = registry.tokens().expect("a token server");
    let challenge = format!(
        r#"Bearer realm="{}",service="holdfast-lab-registry",error="invalid_token""#,
        tokens.realm()
    );
    let left = Arc::new(AtomicUsize::new(1));
    let forgets = Arc::clone(&left);
    tap.alter(move |_, honest| {
        let one_less = |left: usize| left.checked_sub(1);
        let forgot = forgets.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        match forgot {
            Ok(_) => reply(401, &[("www-authenticate", challenge.as_str())], ""),
            Err(_) => honest,
        }
    });
    let before = tokens.asked();
    let digest: Digest = pushed.top_digest.parse()?;
    client.ask(&reference(&text), Some(&digest)).await?;
    assert_eq!(tokens.asked(), before + 1, "one fresh token");

    // One that refuses every token is asked with one more, and not for ever.
    left.store(usize::MAX, Ordering::SeqCst);
    tap.forget();
    let error = refused(&client, &text).await;
    assert_eq!(error.code(), "unauthorized", "{error}");
    assert_eq!(tap.asked().len(), 2);
    assert_eq!(tokens.asked(), before + 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_a_token_for_one_repository_and_never_the_login() -> anyhow::Result<()> {
    let registry = with_login(tokens()).await?;
    let pushed = Image::web("mine", "1").push(&registry, "1").await?;
    let other = Image::web("other", "1").push(&registry, "1").await?;
    let wanted = reference(&pushed.pinned());
    let client = client_of(&registry.host(), Some(password("reader", "right")));
    let PullAccess::Token(pull) = client.pull_token(&wanted, None).await? else {
        panic!("a token")
    };
    assert_eq!(
        (pull.registry.as_str(), pull.repository.as_str()),
        (registry.host().as_str(), "mine")
    );
    assert!(pull.expires_in > Duration::from_mins(2) && pull.expires_in <= Duration::from_mins(5));
    assert!(!format!("{pull:?}").contains(pull.token.expose()));

    // It is what an engine would use: good for this repository, and for no other.
    let engine = client_of(&registry.host(), Some(token(pull.token.expose())));
    engine.resolve(&wanted).await?;
    let error = refused(&engine, &other.reference()).await;
    assert_eq!(error.code(), "unauthorized", "{error}");

    let tokens = registry.tokens().expect("a token server");
    let before = tokens.asked();
    let PullAccess::Token(again) = client.pull_token(&wanted, None).await? else {
        panic!("a token")
    };
    assert_eq!(again.token, pull.token, "shared while it is young");
    assert_eq!(tokens.asked(), before);
    let fleet = Identity {
        id: "fleet:1".to_owned(),
        credentials: password("reader", "right"),
    };
    client.pull_token(&wanted, Some(&fleet)).await?;
    assert_eq!(tokens.asked(), before + 1, "somebody else has their own");

    let wrong = client_of(&registry.host(), Some(password("reader", "wrong")));
    let error = wrong.pull_token(&wanted, None).await.expect_err("refused");
    assert_eq!(error.code(), "unauthorized", "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_token_can_be_had_it_is_said_why() -> anyhow::Result<()> {
    let login = || Some(password("reader", "right"));
    let registry = with_login(basic()).await?;
    let pushed = Image::web("private", "1").push(&registry, "1").await?;
    let wanted = reference(&pushed.pinned());
    for (credentials, expected) in [
        (login(), PullAccess::LoginOnly),
        (Some(token("given")), PullAccess::LoginOnly),
        (None, PullAccess::Open),
    ] {
        let client = client_of(&registry.host(), credentials);
        assert_eq!(client.pull_token(&wanted, None).await?, expected);
    }
    let registry = Registry::open().await?;
    let pushed = Image::web("public", "1").push(&registry, "1").await?;
    let client = client_of(&registry.host(), login());
    let access = client
        .pull_token(&reference(&pushed.reference()), None)
        .await?;
    assert_eq!(access, PullAccess::Open);
    let missing = reference(&format!("{}/public:none", registry.host()));
    let error = client
        .pull_token(&missing, None)
        .await
        .expect_err("missing");
    assert_eq!(error.code(), "not_found", "{error}");
    Ok(())
}
