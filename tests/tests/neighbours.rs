//! Agents that give each other blobs.

use holdfast_tests::agent::Options;
use holdfast_tests::engine::Engine;
use holdfast_tests::http_tap::HttpTap;
use holdfast_tests::images::{Image, Pushed, noise};
use holdfast_tests::line::Line;
use holdfast_tests::place;
use holdfast_tests::site::{CONVERGES_WITHIN, Device};
use holdfast_tests::tcp_tap::{Mode, TcpTap};
use holdfast_tests::wait::wait_for;
use serde_json::json;

/// A site whose registry is behind a line, and a device that gives others what it has.
struct Near {
    line: Line,
    key: tempfile::NamedTempFile,
    port: place::Port,
    first: Device,
}

impl Near {
    async fn start() -> anyhow::Result<Self> {
        let key = tempfile::NamedTempFile::new()?;
        std::fs::write(key.path(), "0123456789abcdef0123456789abcdef\n")?;
        let port = place::Port::take()?;
        let line = Line::on(Engine::private().await?).await?;
        let (file, address) = (key.path().display().to_string(), port.address());
        let gives = |options: Options| {
            let options = options.set("peers", "key_file", file);
            options.set("peers", "listen", address)
        };
        let mut first = line.site.device_at(line.site.api.url(), gives).await?;
        first.agent.run()?;
        Ok(Self {
            line,
            key,
            port,
            first,
        })
    }

    async fn push(&self, bytes: usize) -> anyhow::Result<Pushed> {
        let repository = format!("near-{}", place::unique());
        let image = Image::idle(repository, "one").file("noise", noise(bytes));
        image.push(&self.line.registry, "1").await
    }

    /// Another device, which asks a neighbour at this address. Its engine is its own: what one engine has it
    /// does not ask for.
    async fn another(&self, engine: &Engine, asks: String) -> anyhow::Result<Device> {
        let file = self.key.path().display().to_string();
        let asks = |options: Options| {
            let options = options.set("peers", "key_file", file);
            options.set("peers", "ask", json!([asks]))
        };
        let api = self.line.site.api.url();
        let mut device = self.line.site.device_on(engine, api, asks).await?;
        device.agent.run()?;
        Ok(device)
    }

    async fn converge(&self, device: &Device, image: &Pushed) -> anyhow::Result<()> {
        let wanted = self.line.target(image);
        self.line.site.converge(device, &wanted).await?;
        let running = device.running("web").await?;
        assert_eq!(running["Image"], image.child("linux/amd64").config_digest);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_for_three_neighbours_leaves_the_registry_once() -> anyhow::Result<()> {
    let near = Near::start().await?;
    let image = near.push(8 << 20).await?;
    let engines = [Engine::private().await?, Engine::private().await?];
    let mut others = Vec::new();
    for engine in &engines {
        others.push(near.another(engine, near.port.address()).await?);
    }
    near.line.tap.set(Mode::Slow {
        bytes_per_second: 4_000_000,
    });
    let wanted = near.line.target(&image);
    near.line.site.set(&near.first.uuid, &wanted).await?;
    let begun = async || near.line.came() > 1_000_000;
    wait_for("the first to have some of it", CONVERGES_WITHIN, begun).await;
    // The others want it while it is still on its way to the first.
    for device in &others {
        near.line.site.set(&device.uuid, &wanted).await?;
    }
    for device in others.iter().chain([&near.first]) {
        near.converge(device, &image).await?;
    }
    let bytes = image.child("linux/amd64").layers_size_bytes;
    let came = near.line.came();
    assert!(came < bytes + bytes / 10, "{came} bytes came, not {bytes}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_lies_dies_or_is_silent_changes_nothing() -> anyhow::Result<()> {
    let near = Near::start().await?;
    let image = near.push(2 << 20).await?;
    near.converge(&near.first, &image).await?;
    let layer = near.line.registry.largest_layer(&image).await?;
    let http = HttpTap::start(near.port.address()).await?;
    let line = TcpTap::start(near.port.address()).await?;
    for (round, (fault, address)) in [
        ("lies", http.address()),
        ("ends", line.address()),
        ("mute", line.address()),
    ]
    .into_iter()
    .enumerate()
    {
        match fault {
            // Other bytes, as many.
            "lies" => http.alter(|_, honest| {
                let (parts, body) = honest.into_parts();
                let bytes: Vec<u8> = body.iter().map(|byte| byte ^ 1).collect();
                http::Response::from_parts(parts, bytes.into())
            }),
            "ends" => line.set(Mode::EndsAfter { bytes: 500_000 }),
            _ => line.set(Mode::Stall),
        }
        let engine = Engine::private().await?;
        let other = near.another(&engine, address).await?;
        near.converge(&other, &image).await?;
        assert_eq!(near.line.registry.gave(&layer), 2 + round, "{fault}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_know_the_key_gets_nothing() -> anyhow::Result<()> {
    let near = Near::start().await?;
    let image = near.push(1_000).await?;
    near.converge(&near.first, &image).await?;
    let layer = near.line.registry.largest_layer(&image).await?;
    let client = holdfast_tests::api::client();
    let url = |path: &str| format!("http://{}{path}", near.port.address());
    let there = format!("/v1/blobs/{layer}");
    let missing = format!("/v1/blobs/sha256:{}", "0".repeat(64));
    let mut answers = Vec::new();
    for path in ["/", "/v2/", "/v1/blobs/", there.as_str(), missing.as_str()] {
        for proof in [None, Some("Holdfast-Peer 00"), Some("Bearer x")] {
            let mut asked = client.get(url(path));
            if let Some(proof) = proof {
                asked = asked.header("authorization", proof);
            }
            let answer = asked.send().await?;
            answers.push((answer.status().as_u16(), answer.text().await?));
        }
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "all alike: {answers:?}");
    assert_eq!(answers[0].0, 404);
    Ok(())
}
