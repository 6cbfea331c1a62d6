//! Lists of tags, as registries page them.

use holdfast_proto::image::Repository;
use holdfast_tests::fault_registry::{FaultRegistry, Reply};

use super::*;

fn repository(text: &str) -> Repository {
    reference(text).repository().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_tag_of_a_real_registry_is_listed() -> anyhow::Result<()> {
    let registry = Registry::open().await?;
    let image = Image::web("tagged", "1").single();
    for tag in ["1.10", "1.9", "latest"] {
        image.push(&registry, tag).await?;
    }
    let client = client_with(|settings| settings.cache_ttl = Duration::from_mins(5));
    let wanted = repository(&format!("{}/tagged", registry.host()));
    let mut tags = client.tags(&wanted, None).await?;
    tags.sort();
    assert_eq!(tags, ["1.10", "1.9", "latest"]);
    let none = repository(&format!("{}/none", registry.host()));
    let error = client.tags(&none, None).await.expect_err("no repository");
    assert_eq!(error.code(), "not_found");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_followed_however_they_are_linked() -> anyhow::Result<()> {
    let server = FaultRegistry::start(|head| {
        let page = |link: &str, tags: &str| {
            let body = format!(r#"{{"name":"app","tags":{tags}}}"#);
            let headers = [("link", link)];
            let headers = if link.is_empty() { &[][..] } else { &headers };
            Reply::whole(200, headers, body)
        };
        let (_, query) = head.target.split_once('?').unwrap_or_default();
        match query {
            // Relative, absolute at another host, a query alone; out of order, twice, and no tags at all.
            "n=1000" => page("</v2/app/tags/list?last=b>; rel=\"next\"", r#"["z","b"]"#),
            "last=b" => page(
                "<http://127.0.0.2:1/v2/app/tags/list?last=c>; rel=next",
                r#"["b","a","<script>","x@y"]"#,
            ),
            "last=c" => page("<?last=d>; rel=\"next\"", r#"["c"]"#),
            "last=d" => page("", r#"["d"]"#),
            _ => Reply::whole(500, &[], ""),
        }
    })
    .await?;
    let client = client_with(|_| {});
    let wanted = repository(&format!("{}/app", server.host()));
    let mut tags = client.tags(&wanted, None).await?;
    tags.sort();
    assert_eq!(tags, ["a", "b", "c", "d", "z"]);
    assert_eq!(server.heads().len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_never_ends_or_is_none_is_given_up() -> anyhow::Result<()> {
    let endless = FaultRegistry::start(|_| {
        let link = [("link", "<?last=a>; rel=\"next\"")];
        Reply::whole(200, &link, r#"{"tags":["a"]}"#)
    })
    .await?;
    let client = client_with(|_| {});
    let tags = client
        .tags(&repository(&format!("{}/app", endless.host())), None)
        .await?;
    assert_eq!((tags, endless.heads().len()), (vec!["a".to_owned()], 2));
    for (body, code) in [
        ("<html>log in</html>".to_owned(), "bad_manifest"),
        (" ".repeat((8 << 20) + 1), "too_large"),
    ] {
        let odd = FaultRegistry::start(move |_| Reply::whole(200, &[], &body)).await?;
        let wanted = repository(&format!("{}/app", odd.host()));
        let error = client.tags(&wanted, None).await.expect_err("no list");
        assert_eq!(error.code(), code, "{error}");
    }
    let empty = FaultRegistry::start(|_| Reply::whole(200, &[], r#"{"tags":null}"#)).await?;
    let wanted = repository(&format!("{}/app", empty.host()));
    assert!(client.tags(&wanted, None).await?.is_empty());
    Ok(())
}
