//! Facts about docker's own configuration.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn password(username: &str, password: &str) -> Credentials {
    Credentials::Password {
        username: username.to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

#[tokio::test]
async fn logins_are_found_by_every_name_of_their_registry() {
    let config = DockerConfig::parse(
        br#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"cmVhZGVyOmh1bnRlcjI6eA=="},
            "https://index.docker.io/v1/access-token":{"auth":"YWNjb3VudDp0b2tlbg=="},
            "https://index.docker.io/v1/refresh-token":{"auth":"YWNjb3VudDp0b2tlbg=="},
            "reg.example/group":{"auth":"Z3JvdXA6dG9rZW4="},
            "reg.example:5000":{"username":"u","password":"p"},
            "https://azure.example":{"auth":"MDAwOg==","identitytoken":"refresh"},
            "token.example":{"registrytoken":"direct"},
            "emptied.example":{}},
            "HttpHeaders":{"User-Agent":"x"}}"#,
    )
    .unwrap();
    let find = |registry| config.find(registry);
    assert_eq!(
        find("docker.io").await.unwrap(),
        Some(password("reader", "hunter2:x"))
    );
    assert_eq!(
        find("reg.example:5000").await.unwrap(),
        Some(password("u", "p"))
    );
    assert!(matches!(
        find("azure.example").await.unwrap(),
        Some(Credentials::Identity { .. })
    ));
    assert!(matches!(
        find("token.example").await.unwrap(),
        Some(Credentials::Bearer { .. })
    ));
    assert_eq!(find("emptied.example").await.unwrap(), None);
    assert_eq!(find("reg.example").await.unwrap(), None);
    let shown = format!("{config:?}");
    for secret in ["hunter2", "refresh", "direct"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn what_is_wrong_is_said_and_nothing_of_the_content() {
    for text in [
        r#"{"auths":{"reg.example":{"auth":"hunter2!"}}}"#,
        r#"{"auths":{"reg.example":{"auth":"aHVudGVyMg=="}}}"#,
        r#"{"auths":{"reg.example":{"auth":["hunter2"]}}}"#,
        "hunter2",
    ] {
        let error = DockerConfig::parse(text.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    for name in ["../../tmp/evil", "a b", "x;y", "a/b"] {
        let text = format!(r#"{{"credsStore":"{name}"}}"#);
        let error = DockerConfig::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(error, DockerConfigError::Helper(_)), "{error}");
    }
    assert!(DockerConfig::load(Path::new("/nowhere/config.json")).is_err());
}

/// A helper that is found by its whole path, as its name may not hold one.
async fn with_helper(script: &str) -> Result<Option<Credentials>, KeychainError> {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("test-{}", std::process::id());
    let path = folder.path().join(format!("docker-credential-{name}"));
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    // `program` is joined to the name: the folder comes in by it.
    ask_at(&path.display().to_string(), "docker.io").await
}

#[tokio::test]
async fn a_helper_is_asked_as_docker_asks_it() {
    let echo = r#"[ "$1" = get ] || exit 9; read url; printf '{"ServerURL":"%s","Username":"u","Secret":"%s"}' "$url" "$url""#;
    assert_eq!(
        with_helper(echo).await.unwrap(),
        Some(password("u", HUB_KEY))
    );
    let token = r#"cat >/dev/null; echo '{"Username":"<token>","Secret":"s"}'"#;
    assert!(matches!(
        with_helper(token).await.unwrap(),
        Some(Credentials::Identity { .. })
    ));
    let none = "echo 'credentials not found in native keychain'; exit 1";
    assert_eq!(with_helper(none).await.unwrap(), None);
    for broken in ["exit 3", "echo hunter2", "yes hunter2"] {
        let error = with_helper(broken).await.unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
