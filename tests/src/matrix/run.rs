//! One run: images are pushed and pulled, time passes at the registry, and everybody is asked.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::Method;
use serde_json::{Value, json};

use super::document::{Press, Pushed, VERSION, place, version};
use super::recipe::{Question, Recipe, Said};
use super::shape::{Base, Change, Entry, Pull, Store, Structure, Truth};
use super::stand_in::{Documents, StandIn};
use crate::docker::{Docker, encode};
use crate::engine::Engine;
use crate::http_tap::HttpTap;
use crate::registry::{Options, Registry};
use crate::{binaries, place as lab};

/// Images at work at a time: the engine pulls three at most anyway.
const AT_ONCE: usize = 4;
/// A scan of a few hundred containers takes seconds; a busy machine more.
const SCAN_ENDS_WITHIN: Duration = Duration::from_mins(5);

/// How the second repository's name ends.
const OTHER: &str = "-other";

/// One answer of the agent, and what it should have been.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The image and how it was pulled, for people.
    pub base: String,
    /// Its structure.
    pub structure: Structure,
    /// How it was pulled.
    pub pull: Pull,
    /// What changed.
    pub change: Change,
    /// Whose word was taken for what runs.
    pub store: Store,
    /// What is so.
    pub truth: Truth,
    /// What is wrong with the answer; none when it is right.
    pub wrong: Option<String>,
    /// What each recipe said; only of the classic store.
    pub recipes: BTreeMap<Recipe, Said>,
}

/// Everything that one image led to.
struct Asked {
    base: Base,
    /// The host part of its name.
    host: String,
    /// What the engine says of it; none where it cannot have it.
    pulled: Option<Value>,
    first: Pushed,
    /// What was pulled last.
    last: Pushed,
    after: BTreeMap<Change, Option<Pushed>>,
    recipes: BTreeMap<Change, BTreeMap<Recipe, Said>>,
}

/// The registry, the engine and the proxy of a run.
#[derive(Debug)]
pub struct Matrix {
    engine: Engine,
    registry: Registry,
    proxy: HttpTap,
    repository: String,
    client: reqwest::Client,
}

impl Matrix {
    /// Starts all three.
    pub async fn start() -> anyhow::Result<Self> {
        let registry = Registry::start(Options {
            delete: true,
            ..Options::default()
        });
        let registry = registry.await?;
        let proxy = HttpTap::start(registry.host()).await?;
        proxy.alter(|_, mut answer| {
            answer.headers_mut().remove("docker-content-digest");
            answer.headers_mut().remove("etag");
            answer
        });
        Ok(Self {
            engine: Engine::shared().await?,
            registry,
            proxy,
            repository: format!("matrix/{}", lab::unique()),
            client: crate::api::client(),
        })
    }

    /// The engine's version.
    pub async fn engine_version(&self) -> anyhow::Result<String> {
        let version = self.docker().get("/version").await?;
        Ok(version["Version"].as_str().unwrap_or_default().to_owned())
    }

    /// The second repository.
    fn other(&self) -> String {
        format!("{}{OTHER}", self.repository)
    }

    fn docker(&self) -> &Docker {
        self.engine.docker()
    }

    /// Asks about each image and its changes; `tell` hears how far it is.
    pub async fn run(
        &self,
        cases: Vec<(Base, Vec<Change>)>,
        tell: impl Fn(&str),
    ) -> anyhow::Result<Vec<Answer>> {
        let press = Press::new(&self.registry)?;
        for repository in [self.repository.clone(), self.other()] {
            press.begin(&repository).await?;
        }
        let total = cases.len();
        let asked = cases.into_iter();
        let asked = asked.map(|(base, changes)| self.prepare(&press, base, changes));
        let asked: Vec<Asked> = futures_util::stream::iter(asked)
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        tell(&format!("{total} images pushed and pulled"));
        let mut answers = Vec::new();
        let machines: std::collections::BTreeSet<&str> =
            asked.iter().map(|one| one.base.offer.machine).collect();
        for store in Store::ALL {
            for machine in &machines {
                let found = self.scan(&asked, store, machine).await;
                answers.extend(found.with_context(|| format!("{store:?} on {machine}"))?);
            }
            tell(&format!("{} answers so far", answers.len()));
        }
        Ok(answers)
    }

    /// Pushes and pulls one image, and then lets everything happen to it that may.
    async fn prepare(
        &self,
        press: &Press<'_>,
        base: Base,
        changes: Vec<Change>,
    ) -> anyhow::Result<Asked> {
        let said = base.to_string();
        let asked = self.prepare_one(press, base, changes).await;
        asked.context(said)
    }

    async fn prepare_one(
        &self,
        press: &Press<'_>,
        base: Base,
        changes: Vec<Change>,
    ) -> anyhow::Result<Asked> {
        let host = if base.headerless {
            self.proxy.address()
        } else {
            self.registry.host()
        };
        let (id, tag) = (base.id, format!("t{}", base.id));
        let own = &self.repository;
        let other = self.other();
        let first = press.push(own, &tag, &base.image, id).await?;
        let mut last = first.clone();
        let name = format!("{host}/{own}");
        let by_tag = format!("{name}:{tag}");
        // The engine here refuses an index in an index.
        let cannot = base.image.structure == Structure::Nested && base.pull != Pull::Platform;
        let mut pulled = by_tag.clone();
        match base.pull {
            Pull::Tag | Pull::Index if cannot => {}
            Pull::Tag => self.pull(&by_tag, &base).await?,
            Pull::Index => {
                pulled = format!("{name}@{}", first.top.digest);
                self.pull(&pulled, &base).await?;
            }
            Pull::Platform => {
                let right = base.right_entry().platform;
                pulled = format!("{name}@{}", first.child(right)?.digest);
                self.pull(&pulled, &base).await?;
            }
            Pull::Twice => {
                self.pull(&by_tag, &base).await?;
                let (after, _) = base
                    .after(Change::Rewritten)
                    .context("it can be rewritten")?;
                let after = after.context("it stays")?;
                last = press.push(own, &tag, &after, id).await?;
                self.pull(&by_tag, &base).await?;
            }
            Pull::TwoRepositories | Pull::OtherRepository => {
                press.push(&other, &tag, &base.image, id).await?;
                if base.pull == Pull::TwoRepositories {
                    self.pull(&by_tag, &base).await?;
                }
                pulled = format!("{host}/{other}:{tag}");
                self.pull(&pulled, &base).await?;
            }
        }
        let pulled = if cannot {
            None
        } else {
            let image = self.docker().image(&pulled).await?;
            Some(image.with_context(|| format!("the engine lost {pulled}"))?)
        };
        if let Some(image) = &pulled {
            let found = &image["Config"]["Labels"][VERSION];
            let right = version(base.right_entry());
            ensure!(*found == *right, "the engine chose {found}, not {right}");
        }
        let mut after = BTreeMap::new();
        for change in changes {
            let tag = changed_tag(&base, change);
            let (image, _) = base.after(change).context("a change without meaning")?;
            let Some(image) = image else {
                after.insert(change, None);
                continue;
            };
            if change == Change::MovedBack {
                let (away, _) = base.after(Change::This).context("it can change")?;
                let away = away.context("it stays")?;
                press.push(own, &tag, &away, id).await?;
            }
            let pushed = press.push(own, &tag, &image, id).await?;
            after.insert(change, Some(pushed));
            if change.forgets() {
                let mut old = vec![&first.top.digest];
                if change == Change::ThisForgotten {
                    old.push(&first.child(base.right_entry().platform)?.digest);
                }
                old.dedup();
                for digest in old {
                    let status = self.registry.delete(own, digest).await?;
                    ensure!(status.is_success(), "{digest} was not deleted: {status}");
                }
            }
        }
        let mut asked = Asked {
            base,
            host,
            pulled,
            first,
            last,
            after,
            recipes: BTreeMap::new(),
        };
        self.follow_recipes(&mut asked).await?;
        if let Some(id) = asked.pulled.as_ref().and_then(|image| image["Id"].as_str()) {
            self.docker().remove_image(id).await?;
        }
        Ok(asked)
    }

    async fn pull(&self, name: &str, base: &Base) -> anyhow::Result<()> {
        let path = format!(
            "/images/create?fromImage={}&platform={}",
            encode(name),
            // Asked for a variant that is not listed, Docker 20.10 takes the first 32-bit entry.
            encode(base.right_entry().platform)
        );
        let answer = self.docker().call(Method::POST, &path, None).await?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let failed = text.lines().find(|line| line.contains("\"error\""));
        if let Some(line) = failed {
            bail!("pull {name}: {line}");
        }
        ensure!(answer.status.is_success(), "pull {name}: {text}");
        Ok(())
    }

    async fn follow_recipes(&self, asked: &mut Asked) -> anyhow::Result<()> {
        let Some(image) = &asked.pulled else {
            return Ok(());
        };
        let platform = place(asked.base.right_entry().platform);
        for change in asked.after.keys() {
            // None of them looks at a pinned container.
            if *change == Change::Pinned {
                continue;
            }
            let question = Question {
                host: &asked.host,
                repository: &self.repository,
                tag: &changed_tag(&asked.base, *change),
                platform: &platform,
                image,
            };
            let mut said = BTreeMap::new();
            for recipe in Recipe::ALL {
                said.insert(recipe, question.follow(recipe, &self.client).await?);
            }
            asked.recipes.insert(*change, said);
        }
        Ok(())
    }

    /// Lets the agent scan a machine on which all these images run.
    async fn scan(
        &self,
        asked: &[Asked],
        store: Store,
        machine: &str,
    ) -> anyhow::Result<Vec<Answer>> {
        let mut info = self.docker().get("/info").await?;
        info["Architecture"] = json!(machine);
        if store != Store::Classic {
            info["Driver"] = json!("overlayfs");
            info["DriverStatus"] = json!([["driver-type", "io.containerd.snapshotter.v1"]]);
        }
        let version = self.docker().get("/version").await?;
        let mut documents = Documents::new(version, info);
        let mut expected = BTreeMap::new();
        for one in asked.iter().filter(|one| one.base.offer.machine == machine) {
            for change in one.after.keys() {
                let Some(truth) = one.base.truth(*change, store) else {
                    continue;
                };
                let name = format!("c{}-{change:?}", one.base.id).to_lowercase();
                let reference = self.reference(one, *change);
                let (image, more) = self.inspected(one, store)?;
                documents.add(&name, &reference, &image, &more);
                expected.insert(name, (one, *change, truth));
            }
        }
        let stand_in = StandIn::start(documents)?;
        let folder = lab::temporary("scan")?;
        let mut command = tokio::process::Command::new(binaries::agent()?);
        command
            .args(["scan", "--output", "json"])
            .env_clear()
            .env("HOLDFAST_DOCKER__SOCKET", stand_in.socket())
            .env("HOLDFAST_STATE_DIR", folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(SCAN_ENDS_WITHIN, command.output()).await??;
        let reports: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let mut answers = Vec::new();
        for report in reports {
            let name = report["containerName"].as_str().unwrap_or_default();
            let (one, change, truth) = expected.remove(name).context("an unknown container")?;
            let recipes = match store {
                Store::Classic => one.recipes.get(&change).cloned().unwrap_or_default(),
                Store::Docker25 | Store::Docker28 => BTreeMap::new(),
            };
            answers.push(Answer {
                base: one.base.to_string(),
                structure: one.base.image.structure,
                pull: one.base.pull,
                change,
                store,
                truth,
                wrong: wrong(one, change, truth, &report),
                recipes,
            });
        }
        ensure!(
            expected.is_empty(),
            "{} containers are missing",
            expected.len()
        );
        Ok(answers)
    }

    /// The image as the container names it.
    fn reference(&self, one: &Asked, change: Change) -> String {
        let name = format!("{}/{}", one.host, self.repository);
        if change == Change::Pinned {
            format!("{name}@{}", target(one))
        } else {
            format!("{name}:{}", changed_tag(&one.base, change))
        }
    }

    /// What such an engine says of the image and of a container that runs it.
    ///
    /// Of the classic store the real engine's own words. The containerd store's are written from the
    /// fields that its API documents: no engine that has it can be installed here.
    fn inspected(&self, one: &Asked, store: Store) -> anyhow::Result<(Value, Value)> {
        if store == Store::Classic {
            let image = one.pulled.clone().context("an image that the engine has")?;
            return Ok((image, json!({})));
        }
        let right = one.base.right_entry();
        let (target, child) = (target(one), one.last.child(right.platform)?);
        let top = &one.last.top;
        let names = match one.base.pull {
            Pull::Tag | Pull::Index | Pull::Platform | Pull::Twice => vec![""],
            Pull::TwoRepositories => vec!["", OTHER],
            Pull::OtherRepository => vec![OTHER],
        };
        let names = names.iter();
        let digests = names.map(|end| format!("{}/{}{end}@{target}", one.host, self.repository));
        let digests: Vec<String> = digests.collect();
        let mut image = json!({
            "Id": target, "RepoTags": [], "RepoDigests": digests,
            "Created": "2026-01-01T00:00:00Z", "Size": 1,
            "Config": { "Labels": { VERSION: version(right) } },
            "RootFS": { "Type": "layers", "Layers": [] },
        });
        let mut place = place(right.platform);
        for (name, key) in [
            ("Os", "os"),
            ("Architecture", "architecture"),
            ("Variant", "variant"),
        ] {
            if !place[key].is_null() {
                image[name] = place[key].take();
            }
        }
        let mut container = json!({});
        if store == Store::Docker28 {
            let own = if *target == child.digest { child } else { top };
            image["Descriptor"] = json!({
                "mediaType": own.media_type, "digest": own.digest, "size": own.size,
            });
            container["ImageManifestDescriptor"] = json!({
                "mediaType": child.media_type, "digest": child.digest, "size": child.size,
            });
        }
        Ok((image, container))
    }
}

/// What is wrong with a report.
fn wrong(one: &Asked, change: Change, truth: Truth, report: &Value) -> Option<String> {
    let after = one.after.get(&change).and_then(Option::as_ref);
    let mut wrong = Vec::new();
    let mut must = |what: &str, found: &Value, expected: Value| {
        if *found != expected {
            wrong.push(format!("{what} is {found}, not {expected}"));
        }
    };
    let expected = match truth {
        Truth::Update(_) => json!(true),
        Truth::NoUpdate => json!(false),
        Truth::Unknowable => json!(null),
    };
    must("hasUpdate", &report["hasUpdate"], expected);
    let to = match truth {
        Truth::Update((platform, number)) => json!(version(Entry {
            platform,
            version: number
        })),
        Truth::NoUpdate | Truth::Unknowable => json!(null),
    };
    must("the update", &report["change"]["to"], to);
    if change == Change::Pinned {
        must("status", &report["status"], json!("pinned"));
        must("the digest", &report["registryDigest"], json!(target(one)));
    } else if let Some(after) = after {
        must(
            "the digest",
            &report["registryDigest"],
            json!(after.top.digest),
        );
        let is_list =
            after.top.media_type.contains("index") || after.top.media_type.contains("list");
        must("isManifestList", &report["isManifestList"], json!(is_list));
    }
    must(
        "the reason",
        &json!(report["error"].is_string()),
        json!(truth == Truth::Unknowable),
    );
    (!wrong.is_empty()).then(|| format!("{} ({})", wrong.join("; "), report["error"]))
}

/// The digest that the image was pulled by last.
fn target(one: &Asked) -> &String {
    let right = one.base.right_entry().platform;
    match one.first.child(right) {
        Ok(child) if one.base.pull == Pull::Platform => &child.digest,
        Ok(_) | Err(_) => &one.last.top.digest,
    }
}

/// The tag that a container names after a change.
fn changed_tag(base: &Base, change: Change) -> String {
    format!("t{}-{change:?}", base.id).to_lowercase()
}
