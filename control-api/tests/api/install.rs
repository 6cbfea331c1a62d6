//! Facts about installing the agent from this server: the script, the release's files.

use axum::body::Body;
use holdfast_api::config::Install;
use http::{Request, header};

use crate::support::Place;
use crate::support::api::{Answer, Api};

const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

async fn with(install: Install) -> Api {
    let adjust = |mut settings: holdfast_api::config::Settings| {
        settings.install = install;
        settings
    };
    Api::start_with(Place::sqlite(), adjust).await
}

async fn ask(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

fn line(answer: &Answer, name: &str) -> String {
    let text = String::from_utf8_lossy(&answer.bytes).into_owned();
    let found = text.lines().find(|line| line.starts_with(name));
    found.expect("a line of the script").to_owned()
}

#[tokio::test]
async fn the_script_knows_this_server_its_releases_and_their_key() {
    let releases = tempfile::tempdir().unwrap();
    let api = with(Install {
        public_url: Some("https://holdfast.example".into()),
        releases: Some(releases.path().to_owned()),
        key: Some(KEY.into()),
    })
    .await;
    // What the configuration says counts, whatever name the request used.
    let script = ask(&api, "/install.sh", &[("host", "other.example")])
        .await
        .expect(200);
    assert_eq!(
        line(&script, "SERVER="),
        "SERVER='https://holdfast.example'"
    );
    assert_eq!(
        line(&script, "BASE_URL="),
        "BASE_URL='https://holdfast.example/releases'"
    );
    assert_eq!(
        line(&script, "RELEASE_KEY="),
        format!("RELEASE_KEY='{KEY}'")
    );
    assert_eq!(script.bytes.last(), Some(&b'\n'));
}

#[tokio::test]
async fn without_an_address_of_its_own_the_script_has_the_one_that_was_asked() {
    let api = with(Install::default()).await;
    let server = async |headers: &[(&str, &str)]| {
        let script = ask(&api, "/install.sh", headers).await.expect(200);
        // Nothing is handed out here: the project's page is asked.
        assert_eq!(line(&script, "BASE_URL="), "BASE_URL=''");
        line(&script, "SERVER=")
    };
    assert_eq!(
        server(&[("host", "box.lan:8080")]).await,
        "SERVER='http://box.lan:8080'"
    );
    let through_proxy = [("host", "[::1]:80"), ("x-forwarded-proto", "https")];
    assert_eq!(server(&through_proxy).await, "SERVER='https://[::1]:80'");
    assert_eq!(server(&[]).await, "SERVER=''");
    // Nothing that a shell would read differently gets in.
    for host in [
        "x'; reboot; '",
        "$(reboot)",
        "a b",
        "x`reboot`",
        "x\"",
        "",
        "/",
    ] {
        assert_eq!(server(&[("host", host)]).await, "SERVER=''", "{host}");
    }
}

#[tokio::test]
async fn files_of_the_release_are_handed_out_whole_and_once() {
    let releases = tempfile::tempdir().unwrap();
    let name = "holdfast-agent_0.1.0~rc1+x_armhf.deb";
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(releases.path().join(name), &content).unwrap();
    std::fs::write(releases.path().join("empty"), "").unwrap();
    let api = with(Install {
        releases: Some(releases.path().to_owned()),
        ..Install::default()
    })
    .await;
    let path = format!("/releases/{name}");
    let whole = ask(&api, &path, &[]).await.expect(200);
    assert!(whole.bytes == content);
    assert_eq!(whole.header("content-length"), content.len().to_string());
    let tag = whole.header("etag").to_owned();
    let again = ask(&api, &path, &[(header::IF_NONE_MATCH.as_str(), &tag)]).await;
    assert!(again.expect(304).bytes.is_empty());
    std::fs::write(releases.path().join(name), "another").unwrap();
    let other = ask(&api, &path, &[(header::IF_NONE_MATCH.as_str(), &tag)]).await;
    assert_eq!(other.expect(200).bytes, b"another");
    assert!(
        ask(&api, "/releases/empty", &[])
            .await
            .expect(200)
            .bytes
            .is_empty()
    );
}

#[tokio::test]
async fn nothing_but_files_of_the_folder_is_handed_out() {
    let place = tempfile::tempdir().unwrap();
    let releases = place.path().join("releases");
    std::fs::create_dir_all(releases.join("folder")).unwrap();
    std::fs::write(place.path().join("secret"), "secret").unwrap();
    std::fs::write(releases.join(".hidden"), "secret").unwrap();
    std::fs::write(releases.join("folder/inner"), "secret").unwrap();
    let api = with(Install {
        releases: Some(releases),
        ..Install::default()
    })
    .await;
    let long = format!("/releases/{}", "a".repeat(129));
    for path in [
        "/releases/",
        "/releases/missing",
        "/releases/folder",
        "/releases/folder/inner",
        "/releases/folder%2Finner",
        "/releases/.hidden",
        "/releases/..",
        "/releases/../secret",
        "/releases/..%2Fsecret",
        "/releases/%2E%2E%2Fsecret",
        "/releases/%2Fetc%2Fpasswd",
        "/releases/a%00b",
        "/releases/a%20b",
        &long,
    ] {
        let answer = ask(&api, path, &[]).await.expect(404);
        assert_eq!(answer.code(), "not_found", "{path}");
    }
    let none = with(Install::default()).await;
    ask(&none, "/releases/SHA256SUMS", &[]).await.expect(404);
}
