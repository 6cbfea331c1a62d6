//! A device at rest: what it does not do.

use holdfast_tests::images::Image;
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Site, service, target};
use serde_json::json;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// The agent feeds twice as often: here every fifth of a second.
const WATCHDOG_MICROS: &str = "400000";
/// Four seconds of feeding.
const FED: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn feeding_the_watchdog_is_no_look_at_the_engine() -> anyhow::Result<()> {
    let folder = place::temporary("notify")?;
    let path = folder.path().join("socket");
    let systemd = UnixDatagram::bind(&path)?;
    let site = Site::start().await?;
    let mut device = site
        .device_at(site.api.url(), |mut options| {
            let set = |name: &str, value: String| (name.to_owned(), value);
            options.env = vec![
                set("NOTIFY_SOCKET", path.display().to_string()),
                set("WATCHDOG_USEC", WATCHDOG_MICROS.to_owned()),
            ];
            options
        })
        .await?;
    device.agent.run()?;
    let image = Image::idle(format!("idle-{}", place::unique()), "1")
        .push(&site.registry, "1")
        .await?;
    let wanted = target(&[service("idle", &image.reference(), &json!({}))]);
    site.settle(&device, &wanted, 2, CONVERGES_WITHIN).await?;
    // What it said so far is not what it says at rest.
    let mut buffer = [0; 512];
    while systemd.try_recv(&mut buffer).is_ok() {}
    device.tap.forget();
    let mut fed = 0;
    while fed < FED {
        let length = timeout(CONVERGES_WITHIN, systemd.recv(&mut buffer)).await??;
        fed += usize::from(&buffer[..length] == b"WATCHDOG=1");
    }
    let looks = device.tap.calls();
    let looks = looks
        .iter()
        .filter(|call| call.path.ends_with("/containers/json"))
        .count();
    assert!(
        looks <= FED / 4,
        "{looks} looks while it was fed {FED} times"
    );
    Ok(())
}
