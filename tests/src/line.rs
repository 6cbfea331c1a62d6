//! A site with a second registry, which API and devices reach over a line that a test can disturb.

use serde_json::{Value, json};

use crate::api;
use crate::engine::Engine;
use crate::images::Pushed;
use crate::registry::{Login, Registry};
use crate::site::{Site, service, target};
use crate::tcp_tap::TcpTap;

/// The site, the registry and the line to it.
#[derive(Debug)]
pub struct Line {
    /// The site; its own registry is reached as usual.
    pub site: Site,
    /// The registry behind the line.
    pub registry: Registry,
    /// The line.
    pub tap: TcpTap,
}

impl Line {
    /// On an engine, with an open registry at the end of the line.
    pub async fn on(engine: Engine) -> anyhow::Result<Self> {
        let registry = Registry::open().await?;
        let tap = TcpTap::start(registry.host()).await?;
        let mut options = api::Options::default();
        let known = json!({ "host": tap.address(), "plain_http": true });
        options.registries.push(known);
        let site = Site::on(engine, options, Login::Open, None).await?;
        Ok(Self {
            site,
            registry,
            tap,
        })
    }

    /// What an image of the second registry is called on the other side of the line.
    pub fn reference(&self, image: &Pushed) -> String {
        let reference = image.reference();
        reference.replace(&self.registry.host(), &self.tap.address())
    }

    /// The target that runs an image of the second registry.
    pub fn target(&self, image: &Pushed) -> Value {
        target(&[service("web", &self.reference(image), &json!({}))])
    }

    /// Bytes that came over the line to whoever asked.
    pub fn came(&self) -> u64 {
        self.tap.bytes().1
    }
}
