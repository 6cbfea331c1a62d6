//! The script's lines as calls on any engine, and each answer as a word that two engines can share.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_agent::engine::member::Piece;
use holdfast_agent::engine::{
    Engine, EngineContainer, EngineError, Fetch, NewContainer, NewNetwork, NewSandbox, ReadError,
};
use holdfast_plan::{Amounts, ContainerState, NetworkKey, SandboxSpec};
use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::spec::ServiceSpec;
use holdfast_proto::target::ServiceTarget;
use serde_json::json;

/// A wait of the script ends by then on a busy machine too.
const WAITS_AT_MOST: Duration = Duration::from_mins(1);
/// How often a wait looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A pull that stands still is given up after so long: no pull of the script does, however busy
/// the machine's disk is.
const NO_PROGRESS_MS: u64 = 30_000;
/// A program inside a container ends by then, for the same reason.
const EXEC_MS: u64 = 60_000;
/// No file of the script is as long.
const MOST_BYTES: u64 = 1 << 20;

/// One line of the script and what the engine made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) number: usize,
    pub(crate) line: String,
    pub(crate) answer: String,
}

/// What is the same on both sides, so that their answers can be compared.
pub(crate) struct Cast {
    pub(crate) device: DeviceId,
    /// Images by their names in the script: what the target says of them.
    pub(crate) images: BTreeMap<&'static str, ServiceTarget>,
    /// The device's ports by their numbers in the script.
    pub(crate) ports: BTreeMap<String, u16>,
}

/// What is done behind the agent's back on one side.
pub(crate) trait Outside {
    /// Does it; `id` gives the engine's id of a container of the script.
    async fn act(&self, words: &[&str], id: &dyn Fn(&str) -> String) -> anyhow::Result<()>;

    /// Waits until a container's process, if it has one, knows what it does on SIGTERM: a shell that
    /// is stopped before it reached its `trap` would be killed after the grace instead.
    async fn ready_to_stop(&self, id: &str);
}

pub(crate) struct Play<'a, E, O> {
    pub(crate) engine: &'a E,
    pub(crate) outside: &'a O,
    pub(crate) cast: &'a Cast,
    pub(crate) ids: RefCell<BTreeMap<String, String>>,
}

impl<E: Engine, O: Outside> Play<'_, E, O> {
    /// Plays a script; comments and empty lines are skipped.
    pub(crate) async fn play(&self, script: &str) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (index, line) in script.lines().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] | ["#", ..] => {}
                ["!", what @ ..] => {
                    let id = |name: &str| self.id(name);
                    let done = self.outside.act(what, &id).await;
                    done.map_err(|error| error.context(format!("line {}: {line}", index + 1)))?;
                }
                ["~", name, state] => self.wait(name, state).await?,
                call => rows.push(Row {
                    number: index + 1,
                    line: line.to_owned(),
                    answer: self.call(call).await,
                }),
            }
        }
        Ok(rows)
    }

    fn id(&self, name: &str) -> String {
        let ids = self.ids.borrow();
        ids.get(name).cloned().unwrap_or_else(|| named(name))
    }

    async fn wait(&self, name: &str, state: &str) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + WAITS_AT_MOST;
        let mut last = String::new();
        while tokio::time::Instant::now() < end {
            if let Some(found) = self.engine.container(&self.id(name)).await? {
                let health = found.health.map_or("", |health| health.word());
                if found.state.word() == state || health == state {
                    return Ok(());
                }
                last = format!("{} {health}", found.state.word());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        anyhow::bail!("{name} never was {state}, last {last}")
    }

    async fn call(&self, words: &[&str]) -> String {
        let engine = self.engine;
        let device = &self.cast.device;
        let network = named;
        match words {
            ["describe"] => said(
                engine
                    .describe()
                    .await
                    .map(|info| format!("{} {} {:?}", info.api_version, info.platform, info.store)),
            ),
            ["list"] => said(engine.containers(device).await.map(|all| {
                let mut names: Vec<String> = all.iter().map(|found| self.told(found)).collect();
                names.sort();
                names.join(" | ")
            })),
            ["networks"] => said(engine.networks(device).await.map(|all| {
                let names = all.iter().map(|found| unnamed(&found.name));
                let mut names: Vec<String> = names.collect();
                names.sort();
                names.join(" ")
            })),
            ["look", name] => {
                let found = engine.container(&self.id(name)).await;
                said(found.map(|found| found.map_or("none".to_owned(), |found| self.told(&found))))
            }
            ["create", name, image, how @ ..] => self.create(name, image, how).await,
            ["sandbox", name, how @ ..] => self.sandbox(name, how).await,
            ["start", name] => done(engine.start(&self.id(name)).await),
            ["stop", name] => {
                let id = self.id(name);
                self.outside.ready_to_stop(&id).await;
                done(engine.stop(&id).await)
            }
            ["unpause", name] => done(engine.unpause(&self.id(name)).await),
            ["remove", name] => done(engine.remove(&self.id(name)).await),
            ["policy", name, policy] => {
                let policy = policy.parse().expect("a policy of the script");
                done(engine.set_restart(&self.id(name), policy).await)
            }
            ["rename", name, new] => done(engine.rename(&self.id(name), &named(new)).await),
            ["amounts", name, how @ ..] => {
                let amount =
                    |key| value(how, key).map_or(0, |text| text.parse().expect("a number"));
                let amounts = Amounts {
                    memory: amount("mem"),
                    memory_reservation: 0,
                    nano_cpus: amount("cpus"),
                    pids: amount("pids"),
                };
                done(engine.set_amounts(&self.id(name), amounts).await)
            }
            ["network", name] => {
                let key = NetworkKey {
                    app: "1".parse().expect("an app"),
                    network: name.parse().expect("a network"),
                };
                done(engine.create_network(device, &key, &network(name)).await)
            }
            ["remove-network", name] => done(engine.remove_network(&network(name)).await),
            ["connect", name, container, aliases @ ..] => {
                let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
                let container = self.id(container);
                done(engine.connect(&network(name), &container, &aliases).await)
            }
            ["disconnect", name, container] => {
                done(engine.disconnect(&network(name), &self.id(container)).await)
            }
            ["pull", image] => {
                let pinned = self.cast.image(image);
                let platform = holdfast_proto::image::Platform::new("linux", "amd64", None);
                let fetch = Fetch {
                    pinned: &pinned,
                    from: &pinned,
                    platform: &platform,
                    auth: None,
                    no_progress_ms: NO_PROGRESS_MS,
                };
                done(engine.pull(&fetch).await)
            }
            ["image", image] => {
                let found = engine.image(&self.cast.image(image)).await;
                said(found.map(|found| {
                    found.map_or("none".to_owned(), |found| {
                        let id = found.ids.first().map(ToString::to_string);
                        format!(
                            "{} {}",
                            self.cast.image_of(&id.unwrap_or_default()),
                            found.platform
                        )
                    })
                }))
            }
            ["images"] => said(engine.images().await.map(|all| self.stored(&all))),
            ["tag", image, name] => {
                let name = tag(name);
                done(engine.tag(&self.cast.image(image), &name).await)
            }
            ["remove-image", image] => done(engine.remove_image(&self.cast.image(image)).await),
            ["exec", name, program @ ..] => {
                let program: Vec<String> = program.iter().map(ToString::to_string).collect();
                let ran = engine.exec(&self.id(name), &program, EXEC_MS).await;
                said(ran.map(|ran| format!("{:?}", ran.exit_code)))
            }
            ["read", name, path] => {
                let mut take = |_: Piece<'_>| Ok(());
                let id = self.id(name);
                match engine.read_file(&id, path, MOST_BYTES, &mut take).await {
                    Err(ReadError::Engine(error)) => said(Err(error)),
                    Err(other) => other.to_string(),
                    Ok(()) => "read".to_owned(),
                }
            }
            _ => panic!("no such call: {words:?}"),
        }
    }

    fn stored(&self, all: &[holdfast_agent::engine::StoredImage]) -> String {
        let mut lines: Vec<String> = all
            .iter()
            .map(|image| {
                let mut tags = image.tags.iter().map(|tag| untag(tag)).collect::<Vec<_>>();
                tags.sort();
                let digests = image.digests.len();
                format!(
                    "{} {tags:?} {digests} digests",
                    self.cast.image_of(&image.id)
                )
            })
            .collect();
        lines.sort();
        lines.join(" | ")
    }

    async fn create(&self, name: &str, image: &str, how: &[&str]) -> String {
        let mut target = self.cast.images[image].clone();
        let mut spec = json!({ "image": target.image_name, "restart": "always" });
        if let Some(port) = value(how, "port") {
            spec["ports"] = json!([self.cast.port(port)]);
        }
        if let Some(grace) = value(how, "grace") {
            spec["stop_grace_period"] = json!(format!("{grace}s"));
        }
        if let Some(bytes) = value(how, "mem") {
            spec["mem_limit"] = json!(bytes.parse::<u64>().expect("a number"));
        }
        if let Some(mode) = value(how, "mode") {
            spec["network_mode"] = json!(mode);
        }
        if how.contains(&"nocheck") {
            spec["healthcheck"] = json!({ "disable": true });
        }
        target.config = serde_json::from_value::<ServiceSpec>(spec).expect("a spec");
        let networks = networks(how);
        let lender = value(how, "in").map(|name| self.id(name));
        let new = NewContainer {
            device: &self.cast.device,
            key: &key(name),
            name: &named(name),
            generation: value(how, "gen").map_or(1, |text| text.parse().expect("a number")),
            service: &target,
            network: lender
                .as_deref()
                .map_or(NewNetwork::Own(&networks), NewNetwork::Shared),
        };
        self.made(name, self.engine.create(&new).await)
    }

    async fn sandbox(&self, name: &str, how: &[&str]) -> String {
        let ports = value(how, "port").map(|port| self.cast.port(port));
        let spec = json!({ "ports": ports.into_iter().collect::<Vec<_>>() });
        let spec: ServiceSpec = serde_json::from_value(spec).expect("a spec");
        let service = key(name);
        let networks = networks(how);
        let new = NewSandbox {
            device: &self.cast.device,
            key: &service,
            name: &named(name),
            generation: 1,
            spec: &SandboxSpec::of(&service.service, &spec),
            networks: &networks,
        };
        self.made(name, self.engine.create_sandbox(&new).await)
    }

    fn made(&self, name: &str, outcome: Result<String, EngineError>) -> String {
        let mut ids = self.ids.borrow_mut();
        said(outcome.map(|id| {
            let before = ids.insert(name.to_owned(), id.clone());
            if before == Some(id) { "there" } else { "made" }.to_owned()
        }))
    }

    /// A container as the agent sees it, without what differs between two machines.
    fn told(&self, found: &EngineContainer) -> String {
        let mut told = vec![unnamed(&found.name)];
        told.push(match found.state {
            ContainerState::Exited { code } => format!("exited {code}"),
            other => other.word().to_owned(),
        });
        told.push(format!("restart {}", found.restart));
        if found.restart_count > 0 {
            told.push("restarted".to_owned());
        }
        told.extend(found.health.map(|health| health.word().to_owned()));
        told.extend(
            found
                .probe_error
                .as_ref()
                .map(|_| "its check cannot run".to_owned()),
        );
        if !found.start_error.is_empty() {
            told.push("start failed".to_owned());
        }
        if let Some(lender) = &found.shares {
            let ids = self.ids.borrow();
            let known = ids.iter().find(|(_, id)| *id == lender);
            told.push(format!("in {}", known.map_or("nothing", |(name, _)| name)));
        }
        for (name, attached) in &found.networks {
            let known = |alias: &&String| !found.id.starts_with(alias.as_str());
            let aliases: Vec<&String> = attached.aliases.iter().filter(known).collect();
            let joined = if attached.network_id.is_empty() {
                "not yet"
            } else {
                "joined"
            };
            told.push(format!("{} {aliases:?} {joined}", unnamed(name)));
        }
        for published in &found.published {
            told.push(format!(
                "{} on {}",
                published.target,
                self.cast.port_of(published.host)
            ));
        }
        if found.amounts != Amounts::default() {
            told.push(format!("{:?}", found.amounts));
        }
        let made_from = found.image_id.map(|id| id.to_string()).unwrap_or_default();
        told.push(format!("of {}", self.cast.image_of(&made_from)));
        told.join(", ")
    }
}

/// A name of the script in the engine.
pub(crate) fn named(name: &str) -> String {
    format!("conformance-{name}")
}

fn unnamed(name: &str) -> String {
    name.strip_prefix("conformance-").unwrap_or(name).to_owned()
}

fn tag(name: &str) -> String {
    if name.starts_with(char::is_uppercase) {
        return name.to_owned();
    }
    format!("conformance/{name}")
}

fn untag(name: &str) -> String {
    name.strip_prefix("conformance/").unwrap_or(name).to_owned()
}

fn networks(how: &[&str]) -> Vec<(String, Vec<String>)> {
    let split = |text: &str| {
        let (network, alias) = text.split_once(':').unwrap_or((text, "web"));
        (named(network), vec![alias.to_owned()])
    };
    value(how, "net").map(split).into_iter().collect()
}

impl Cast {
    /// An image's name in the engine: pinned, a tag, or its id.
    pub(crate) fn image(&self, word: &str) -> String {
        if let Some(service) = self.images.get(word) {
            return service.image_name.clone();
        }
        match word.strip_prefix("id:") {
            Some(image) => self.config_of(image),
            None => tag(word),
        }
    }

    pub(crate) fn config_of(&self, image: &str) -> String {
        let pin = self.images[image].pin.as_ref();
        let expected = pin.and_then(|pin| pin.expected.as_ref());
        expected
            .expect("a resolved image")
            .config_digest
            .0
            .to_string()
    }

    fn image_of(&self, id: &str) -> &str {
        let found = self.images.keys().find(|name| self.config_of(name) == id);
        found.copied().unwrap_or("another")
    }

    fn port(&self, number: &str) -> String {
        format!("127.0.0.1:{}:80", self.ports[number])
    }

    fn port_of(&self, host: u16) -> String {
        let known = self.ports.iter().find(|(_, port)| **port == host);
        known.map_or("another port".to_owned(), |(number, _)| {
            format!("port {number}")
        })
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey {
        app: "1".parse().expect("an app"),
        service: name.parse().expect("a service"),
    }
}

fn value<'w>(how: &[&'w str], key: &str) -> Option<&'w str> {
    let mut found = how.iter();
    found.find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

fn done(outcome: Result<(), EngineError>) -> String {
    said(outcome.map(|()| "done".to_owned()))
}

/// An answer, or the failure as far as the agent tells failures apart.
fn said(outcome: Result<String, EngineError>) -> String {
    match outcome {
        Ok(answer) => answer,
        Err(EngineError::TimedOut { operation, .. }) => format!("timed out: {operation:?}"),
        // At which of its looks a call found nobody there tells nothing.
        Err(EngineError::Unreachable { .. }) => "unreachable".to_owned(),
        Err(EngineError::Refused {
            operation, status, ..
        }) => format!("refused: {operation:?} {status}"),
        Err(EngineError::PullBroke { .. }) => "the pull broke".to_owned(),
        Err(EngineError::PullStalled { .. }) => "the pull stalled".to_owned(),
        Err(EngineError::ForeignName { .. }) => "a stranger's name".to_owned(),
        Err(EngineError::Unsupported(_)) => "unsupported".to_owned(),
        Err(EngineError::Forbidden(_)) => "forbidden".to_owned(),
        Err(EngineError::Files(_)) => "no files".to_owned(),
        Err(EngineError::Program(_)) => "no program".to_owned(),
        Err(EngineError::Nonsense { .. }) => "nonsense".to_owned(),
    }
}
