//! The script's disturbances on a real engine of the lab, through its own socket.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_agent::engine::docker::DockerEngine;
use holdfast_agent::policy::Policy;
use holdfast_proto::image::{
    ConfigDigest, Expected, IndexDigest, ManifestDigest, Pin, Platform, Resolution,
    ResolutionStatus,
};
use holdfast_proto::target::ServiceTarget;
use holdfast_proto::time::Timestamp;
use holdfast_tests::docker::{Docker, encode};
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place::Port;
use holdfast_tests::registry::Registry;
use holdfast_tests::wait::LOOK_AGAIN;
use http::Method;
use serde_json::json;

use crate::script::{Cast, Outside, Play, Row, named};

/// A registry with the script's images, and what the script calls things.
pub(crate) struct Scene {
    pub(crate) cast: Cast,
    _registry: Registry,
    _ports: Vec<Port>,
}

/// Every image of the script.
fn images() -> Vec<(&'static str, Image)> {
    let check = |words: serde_json::Value| json!({ "Test": words, "Interval": 100_000_000, "Timeout": 60_000_000_000_i64, "Retries": 2 });
    let idle = |name: &str| Image::idle(name, name);
    let stubborn = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    vec![
        ("idle", idle("idle")),
        ("web", Image::web("web", "1")),
        ("broken", Image::broken_entrypoint("broken")),
        ("crash", Image::crash_loop("crash", 0)),
        ("ender", Image::new("ender").cmd(["/bin/true"])),
        ("stubborn", Image::new("stubborn").cmd(stubborn)),
        (
            "healthy",
            idle("healthy").config("Healthcheck", check(json!(["CMD", "/bin/true"]))),
        ),
        (
            "sick",
            idle("sick").config("Healthcheck", check(json!(["CMD", "/bin/false"]))),
        ),
        (
            "no-probe",
            idle("no-probe").config("Healthcheck", check(json!(["CMD", "/not-there"]))),
        ),
        ("slow", idle("slow")),
        ("nothing", idle("nothing")),
        ("down", idle("down")),
    ]
}

fn service(pushed: &Pushed, name: &str) -> anyhow::Result<ServiceTarget> {
    let child = pushed.child("linux/amd64");
    let host = match name {
        // A registry that nobody serves.
        "down" => "127.0.0.1:9/down".to_owned(),
        // An image that was never pushed there.
        "nothing" => format!("{}-of-it", pushed.name),
        _ => pushed.name.clone(),
    };
    Ok(ServiceTarget {
        service_id: serde_json::from_value(json!(1))?,
        service_name: name.parse()?,
        image_name: format!("{host}@{}", pushed.top_digest),
        config: serde_json::from_value(json!({}))?,
        pin: Some(Pin {
            registry: "lab".to_owned(),
            repository: name.to_owned(),
            reference: pushed.reference().parse()?,
            index_digest: pushed
                .index_digest
                .as_deref()
                .map(str::parse)
                .transpose()?
                .map(IndexDigest),
            expected: Some(Expected {
                manifest_digest: ManifestDigest(child.manifest_digest.parse()?),
                config_digest: ConfigDigest(child.config_digest.parse()?),
                size_bytes: child.layers_size_bytes,
            }),
            platform: Some(Platform::new("linux", "amd64", None)),
            resolved_at: None,
            resolution: Resolution {
                status: ResolutionStatus::Resolved,
                at: Timestamp::from_millis(0),
                error: None,
                stale_since: None,
            },
            pull_login: false,
        }),
    })
}

impl Scene {
    pub(crate) async fn set() -> anyhow::Result<Self> {
        let registry = Registry::open().await?;
        let mut cast = BTreeMap::new();
        for (name, image) in images() {
            let pushed = image.push(&registry, "1").await?;
            cast.insert(name, service(&pushed, name)?);
        }
        let ports = vec![Port::take()?, Port::take()?];
        let numbers = ports.iter().enumerate();
        Ok(Self {
            cast: Cast {
                device: "8f0e6f0a-5f5e-4f36-9c2f-0d6f7d1f1d22".parse()?,
                images: cast,
                ports: numbers
                    .map(|(at, port)| ((at + 1).to_string(), port.number()))
                    .collect(),
            },
            _registry: registry,
            _ports: ports,
        })
    }
}

struct RealSide<'a> {
    engine: &'a Engine,
    cast: &'a Cast,
    occupied: RefCell<BTreeMap<String, TcpListener>>,
}

/// Plays the script on a real engine of its own.
pub(crate) async fn play(engine: &Engine, cast: &Cast, script: &str) -> anyhow::Result<Vec<Row>> {
    let runtime_dir = tempfile::tempdir()?;
    let docker = DockerEngine::new(engine.socket(), runtime_dir.path(), Policy::unrestricted());
    let outside = RealSide {
        engine,
        cast,
        occupied: RefCell::default(),
    };
    let play = Play {
        engine: &docker,
        outside: &outside,
        cast,
        ids: RefCell::default(),
    };
    play.play(script).await
}

impl RealSide<'_> {
    fn docker(&self) -> &Docker {
        self.engine.docker()
    }

    async fn ask(&self, method: Method, path: &str) -> anyhow::Result<()> {
        let answer = self.docker().call(method, path, None).await?;
        anyhow::ensure!(
            answer.status.is_success(),
            "{path}: {} {}",
            answer.status,
            answer.json()
        );
        Ok(())
    }
}

impl Outside for RealSide<'_> {
    async fn act(&self, words: &[&str], id: &dyn Fn(&str) -> String) -> anyhow::Result<()> {
        match words {
            ["prune"] => self.ask(Method::POST, "/images/prune").await,
            ["prune-all"] => {
                let filters = encode(r#"{"dangling":["false"]}"#);
                self.ask(Method::POST, &format!("/images/prune?filters={filters}"))
                    .await
            }
            ["rmi-f", image] => {
                let image = self.cast.image(image);
                self.ask(Method::DELETE, &format!("/images/{image}?force=true"))
                    .await
            }
            ["pause", name] => {
                self.docker()
                    .post(&format!("/containers/{}/pause", id(name)))
                    .await
            }
            ["kill", name] => {
                let name = id(name);
                self.docker().kill(&name).await?;
                // The engine answers before it knows of the end.
                self.docker()
                    .post(&format!("/containers/{name}/wait"))
                    .await
            }
            ["rm", name] => self.docker().remove(&id(name)).await,
            ["rename", name, new] => {
                let path = format!("/containers/{}/rename?name={}", id(name), named(new));
                self.docker().post(&path).await
            }
            ["foreign", name] => {
                let body = json!({ "Image": self.cast.image("idle") });
                self.docker().run(&named(name), &body).await.map(drop)
            }
            ["rm-foreign", name] => self.docker().remove(&named(name)).await,
            ["occupy", port] => {
                let taken = TcpListener::bind(("127.0.0.1", self.cast.ports[*port]))?;
                self.occupied.borrow_mut().insert((*port).to_owned(), taken);
                Ok(())
            }
            ["release", port] => {
                let freed = self.occupied.borrow_mut().remove(*port);
                freed.map(drop).context("it was not taken")
            }
            ["foreign-network", name] => {
                let body = json!({ "Name": named(name) });
                let made = self
                    .docker()
                    .call(Method::POST, "/networks/create", Some(&body));
                anyhow::ensure!(made.await?.status.is_success(), "create network {name}");
                Ok(())
            }
            ["rm-network", name] => {
                self.ask(Method::DELETE, &format!("/networks/{}", named(name)))
                    .await
            }
            ["net-disconnect", name, container] => {
                let body = json!({ "Container": id(container), "Force": true });
                let path = format!("/networks/{}/disconnect", named(name));
                let done = self.docker().call(Method::POST, &path, Some(&body));
                anyhow::ensure!(done.await?.status.is_success(), "{path}");
                Ok(())
            }
            ["kill-engine"] => self.engine.kill9().await,
            ["power-cut"] => self.engine.power_cut().await,
            ["start-engine"] => self.engine.start().await,
            ["hang"] => self.engine.hang().await,
            ["go-on"] => self.engine.go_on(),
            ["fill-disk"] => fill(&self.engine.data()?.join(FILLER)),
            ["free-disk"] => Ok(std::fs::remove_file(self.engine.data()?.join(FILLER))?),
            other => anyhow::bail!("the real side cannot {other:?}"),
        }
    }

    async fn ready_to_stop(&self, id: &str) {
        let end = tokio::time::Instant::now() + READY_WITHIN;
        while tokio::time::Instant::now() < end {
            // An engine that does not answer is what the script is about then.
            let Ok(Some(found)) = self.docker().container(id).await else {
                return;
            };
            let pid = found["State"]["Pid"].as_i64().unwrap_or_default();
            let is_sandbox = found["Path"] == "/pause"; // It ends by SIGKILL.
            if is_sandbox || pid == 0 || minds_sigterm(pid) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

/// By then a shell has read its first line; whatever never minds SIGTERM costs no more than this.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Whether a process catches, ignores or waits for SIGTERM, or is gone (proc(5), `SigCgt`).
fn minds_sigterm(pid: i64) -> bool {
    const SIGTERM: u64 = 1 << (15 - 1);
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    let masks = status.lines().filter_map(|line| {
        let (name, mask) = line.split_once(':')?;
        let asked = matches!(name, "SigBlk" | "SigIgn" | "SigCgt");
        asked.then(|| u64::from_str_radix(mask.trim(), 16).ok())?
    });
    masks.into_iter().any(|mask| mask & SIGTERM != 0)
}

/// The file that takes the rest of the disk.
const FILLER: &str = "filler";

/// Writes until nothing fits any more.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(path)?;
    let mut bytes = 1 << 20;
    while bytes > 0 {
        match file.write(&vec![1; bytes]) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => bytes /= 2,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
