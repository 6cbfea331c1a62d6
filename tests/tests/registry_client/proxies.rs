//! What goes by way of a proxy, and what does not even then.

use std::io;
use std::sync::Arc;

use holdfast_tests::fault_registry::{FaultRegistry, Reply};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_for_what_may_be_asked_and_nothing_else() -> anyhow::Result<()> {
    let proxy = FaultRegistry::start(|_| Reply::whole(404, &[], "")).await?;
    let here = FaultRegistry::start(|_| Reply::whole(403, &[], "")).await?;
    let url = proxy.url();
    let plain = || RegistrySettings {
        plain_http: true,
        ..RegistrySettings::default()
    };
    let client = client_with(|settings| {
        settings.reach = Reach::Configured;
        settings.proxies = Proxies::read(|name| (name == "ALL_PROXY").then(|| url.clone()));
        settings.registries = BTreeMap::from([
            ("registry.example".to_owned(), plain()),
            (here.host(), plain()),
        ]);
        settings.lookup = Arc::new(|name| {
            let found = match name.as_str() {
                "public.example" => Ok(vec![[93, 184, 216, 34].into()]),
                "private.example" => Ok(vec![[10, 0, 0, 6].into()]),
                // The proxy alone knows the others.
                _ => Err(io::ErrorKind::NotFound.into()),
            };
            Box::pin(std::future::ready(found))
        });
    });
    for (text, code, targets) in [
        (
            "registry.example/app:1".to_owned(),
            "not_found",
            Some("http://registry.example/v2/app/manifests/1"),
        ),
        (
            "public.example/app:1".to_owned(),
            "unreachable",
            Some("public.example:443"),
        ),
        ("private.example/app:1".to_owned(), "address_refused", None),
        ("unknown.example/app:1".to_owned(), "address_refused", None),
        ("10.0.0.6/app:1".to_owned(), "address_refused", None),
        (format!("{}/app:1", here.host()), "forbidden", None),
    ] {
        let before = proxy.heads().len();
        let error = client.resolve(&reference(&text)).await;
        let error = error.expect_err("nothing is there");
        assert_eq!(error.code(), code, "{text}: {error}");
        let heads = proxy.heads().split_off(before);
        let asked = heads.first().map(|head| head.target.as_str());
        assert_eq!(asked, targets, "{text}");
    }
    assert_eq!(here.heads().len(), 1, "this machine is asked directly");
    Ok(())
}
