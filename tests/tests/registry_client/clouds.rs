//! Logins of clouds, of docker's configuration and of the environment, each used at a registry that
//! takes nothing else.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use holdfast_proto::time::Timestamp;
use holdfast_registry::{
    Cloud, CloudKeychain, DockerConfig, Environment, Keychain, Keychains, Keys, PullAccess,
};
use holdfast_tests::clouds::{AMAZON_KEY, AMAZON_PASSWORD, Clouds};
use holdfast_tests::registry::{Login, Options};
use holdfast_tests::{alone, clock};

use super::*;

/// A client that knows only what a keychain knows, where a registry's name is this machine.
fn with_keychain(host: &str, keychain: impl Keychain + 'static) -> Client {
    let entry = RegistrySettings {
        plain_http: true,
        ..RegistrySettings::default()
    };
    client_with(|settings| {
        settings.registries = BTreeMap::from([(host.to_owned(), entry)]);
        settings.keychain = Some(Arc::new(keychain));
        settings.lookup = all_here();
    })
}

fn amazon(clouds: &Clouds, secret: &str) -> Cloud {
    Cloud::Amazon {
        keys: Keys {
            id: AMAZON_KEY.0.to_owned(),
            secret: Secret::new(secret.to_owned()),
            session: Some(Secret::new("session-of-some-hours".to_owned())),
        },
        endpoint: Some(clouds.url()),
        now: Arc::new(|| Timestamp::from_millis(clock::unix_millis())),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_clouds_login_opens_its_registry() -> anyhow::Result<()> {
    // The lab's own client installs the TLS provider.
    let _ = api::client();
    let clouds = Clouds::start().await?;
    let port = clouds.port();
    let at = || Some(clouds.url());
    let cases = [
        (
            amazon(&clouds, AMAZON_KEY.1),
            format!("123456789012.dkr.ecr.eu-central-1.amazonaws.com:{port}"),
            "app",
            "POST /",
            false,
        ),
        (
            Cloud::Google { metadata: at() },
            format!("europe-west3-docker.pkg.dev:{port}"),
            "project/app",
            "GET /v2/token",
            true,
        ),
        (
            Cloud::Azure {
                metadata: at(),
                exchange: at(),
            },
            format!("acme.azurecr.io:{port}"),
            "app",
            "POST /oauth2/token",
            true,
        ),
    ];
    for (cloud, host, path, minted_by, has_tokens) in cases {
        let client = with_keychain(&host, CloudKeychain::new(cloud)?);
        let wanted = reference(&format!("{host}/{path}:1"));
        let found = client.resolve(&wanted).await?;
        assert_eq!(found.top.digest().to_string(), manifest().1, "{host}");
        client.resolve(&wanted).await?;
        assert_eq!(clouds.asked(minted_by), 1, "{host}: minted once");
        let access = client.pull_token(&wanted, None).await?;
        assert_eq!(matches!(access, PullAccess::Token(_)), has_tokens, "{host}");
        assert!(!format!("{access:?}").contains(AMAZON_PASSWORD));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_does_not_know_us_says_so() -> anyhow::Result<()> {
    // The lab's own client installs the TLS provider.
    let _ = api::client();
    let clouds = Clouds::start().await?;
    let host = format!("1.dkr.ecr.eu-central-1.amazonaws.com:{}", clouds.port());
    let client = with_keychain(&host, CloudKeychain::new(amazon(&clouds, "wrong-key"))?);
    let wanted = reference(&format!("{host}/app:1"));
    let error = client
        .resolve(&wanted)
        .await
        .expect_err("a wrong signature");
    assert_eq!(error.code(), "keychain", "{error}");
    assert!(error.to_string().contains("Amazon ECR") && error.to_string().contains("400"));
    assert!(!error.to_string().contains("wrong-key"));
    // A stranger's registry is none of the cloud's business.
    let keychain = CloudKeychain::new(amazon(&clouds, AMAZON_KEY.1))?;
    assert_eq!(keychain.find("registry.example").await?, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn dockers_configuration_and_the_environment_open_a_registry() -> anyhow::Result<()> {
    let registry = Registry::start(Options {
        login: Login::Basic {
            username: "reader".to_owned(),
            password: "right".to_owned(),
        },
        ..Options::default()
    })
    .await?;
    let pushed = Image::web("private", "1").push(&registry, "1").await?;
    let host = registry.host();
    // reader:right
    let auths = format!(r#"{{"auths":{{"http://{host}/v2/":{{"auth":"cmVhZGVyOnJpZ2h0"}}}}}}"#);
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.json");
    std::fs::write(&file, auths)?;
    let environment = |name: &str| {
        let value = match name {
            "DOCKER_REGISTRY" => host.as_str(),
            "DOCKER_REGISTRY_USERNAME" => "reader",
            "DOCKER_REGISTRY_PASSWORD" => "right",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let environment = Environment::read(environment).expect("a login");
    let both: [Arc<dyn Keychain>; 2] =
        [Arc::new(DockerConfig::load(&file)?), Arc::new(environment)];
    for keychain in both {
        let shown = format!("{keychain:?}");
        assert!(!shown.contains("right"), "{shown}");
        // One that knows nothing is asked first.
        let keychains = Keychains(vec![Arc::new(DockerConfig::default()), keychain]);
        let client = with_keychain(&host, keychains);
        let found = client.resolve(&reference(&pushed.reference())).await?;
        assert_eq!(found.top.digest().to_string(), pushed.top_digest);
    }
    Ok(())
}

/// Helpers are found by `PATH`: that needs a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn helpers_and_stores_are_asked_as_docker_does() -> anyhow::Result<()> {
    if !alone::is_alone() {
        let folder = tempfile::tempdir()?;
        let helper = folder.path().join("docker-credential-lab");
        let script = "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread -r host\ncase \"$host\" in\n\
            helped.example) echo '{\"Username\":\"helped\",\"Secret\":\"one\"}';;\n\
            https://index.docker.io/v1/) echo '{\"Username\":\"<token>\",\"Secret\":\"hub\"}';;\n\
            broken.example) exit 3;;\n\
            *) echo 'credentials not found in native keychain'; exit 1;;\nesac\n";
        std::fs::write(&helper, script)?;
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", folder.path().display());
        return alone::again(
            "clouds::helpers_and_stores_are_asked_as_docker_does",
            &[("PATH", path)],
        );
    }
    let stored = r#"{"credsStore":"lab","auths":{"plain.example":{"auth":"cmVhZGVyOnJpZ2h0"}}}"#;
    let helped = r#"{"credHelpers":{"helped.example":"lab","broken.example":"lab","gone.example":"no-such-helper"}}"#;
    let stored = DockerConfig::parse(stored.as_bytes())?;
    let helped = DockerConfig::parse(helped.as_bytes())?;
    let identity = Credentials::Identity {
        token: Secret::new("hub".to_owned()),
    };
    for (config, registry, expected) in [
        (&helped, "helped.example", Some(password("helped", "one"))),
        (&helped, "docker.io", None),
        (&stored, "helped.example", Some(password("helped", "one"))),
        (&stored, "docker.io", Some(identity)),
        (&stored, "plain.example", Some(password("reader", "right"))),
        (&stored, "unknown.example", None),
    ] {
        assert_eq!(config.find(registry).await?, expected, "{registry}");
    }
    for registry in ["broken.example", "gone.example"] {
        let error = helped.find(registry).await.expect_err("no answer");
        assert!(error.keychain.starts_with("docker-credential-"), "{error}");
    }
    Ok(())
}
