//! Whole apps: services that wait for each other, share networks, volumes, secrets and a network namespace.

use std::path::PathBuf;

use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::place;
use holdfast_tests::serving::{id, life};
use holdfast_tests::site::{CONVERGES_WITHIN, Device, Site, service, target, wait_for_page};
use holdfast_tests::wait::try_wait_for;
use serde_json::{Value, json};

/// A site whose device runs the services of an app.
struct App {
    site: Site,
    device: Device,
    port: u16,
    repository: String,
    /// Of this test alone: the engine is shared, and so is a volume by its name.
    volume: String,
    db: Pushed,
    migration: Pushed,
    side: Pushed,
}

impl App {
    async fn new() -> anyhow::Result<Self> {
        let site = Site::start().await?;
        let repository = format!("app-{}", place::unique());
        let db = Image::healthy_web(format!("{repository}/db"), "db");
        // It can only end well once the database answers by its name.
        let migrate = "wget -q -O - http://db:8080/ >> /data/migrations";
        let migration =
            Image::new(format!("{repository}/migration")).cmd(["/bin/sh", "-c", migrate]);
        let helper = Image::idle(format!("{repository}/side"), "side");
        let mut device = site.device().await?;
        let app = Self {
            db: db.push(&site.registry, "1").await?,
            migration: migration.push(&site.registry, "1").await?,
            side: helper.push(&site.registry, "1").await?,
            port: device.port()?,
            site,
            device,
            volume: format!("{repository}-data"),
            repository,
        };
        Ok(app)
    }

    async fn web(&self, version: &str) -> anyhow::Result<Pushed> {
        let image = Image::healthy_web(format!("{}/web", self.repository), version);
        image.push(&self.site.registry, version).await
    }

    /// The whole app with this version of `web`, and more of its fields.
    fn target(&self, web: &Pushed, more: &Value) -> Value {
        let mut config = json!({
            "ports": [format!("127.0.0.1:{}:8080", self.port)],
            "networks": { "front": { "aliases": ["www"] }, "back": null },
            "depends_on": { "migration": { "condition": "service_completed_successfully" } },
            "secrets": [{ "source": "key", "content": "hunter2", "mode": 0o400 }],
            "configs": [{ "source": "app", "target": "/etc/app.conf", "content": "colour=blue" }],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        target(&[
            // The names in an order that is not the one of their starts.
            service(
                "side",
                &self.side.reference(),
                &json!({
                    "network_mode": "service:web",
                    "depends_on": { "web": { "condition": "service_healthy" } },
                }),
            ),
            service("web", &web.reference(), &config),
            service(
                "migration",
                &self.migration.reference(),
                &json!({
                    "restart": "no",
                    "networks": ["back"],
                    "volumes": [format!("{}:/data", self.volume)],
                    "depends_on": { "db": { "condition": "service_healthy" } },
                }),
            ),
            service(
                "db",
                &self.db.reference(),
                &json!({ "networks": ["back"], "volumes": [format!("{}:/data", self.volume)] }),
            ),
        ])
    }

    async fn converge(&self, target: &Value) -> anyhow::Result<()> {
        self.site.converge(&self.device, target).await?;
        Ok(())
    }

    /// Ends the agent and removes what of this test would stay on the engine.
    async fn sweep(mut self) -> anyhow::Result<()> {
        self.device.agent.kill9();
        let docker = self.device.docker();
        for container in self.device.containers().await? {
            docker.remove(id(&container)).await?;
        }
        docker
            .cli(&["volume", "rm", &format!("1001_{}", self.volume)])
            .await?;
        Ok(())
    }

    async fn sh(&self, service: &str, script: &str) -> anyhow::Result<String> {
        let container = self.device.running(service).await?;
        let words = ["exec", id(&container), "/bin/sh", "-c", script];
        let said = self.device.docker().cli(&words).await?;
        Ok(said.trim().to_owned())
    }

    /// When each service's container was started, in the engine's words.
    async fn started(&self, service: &str) -> anyhow::Result<String> {
        let found = self.device.containers_of(service).await?;
        let one = found.first().map(life);
        Ok(one.map(|(_, started)| started).unwrap_or_default())
    }

    /// The folders with files of secrets and configs of `web`.
    fn files(&self) -> Vec<PathBuf> {
        let all = self.device.agent.runtime().join("files/1001/web");
        let found = std::fs::read_dir(all).into_iter().flatten();
        found.flatten().map(|entry| entry.path()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_starts_in_order_and_its_services_find_each_other() -> anyhow::Result<()> {
    let mut app = App::new().await?;
    app.device.agent.run()?;
    let one = app.web("one").await?;
    app.converge(&app.target(&one, &json!({}))).await?;
    wait_for_page(app.port, "one").await;

    let [db, migration, web, side] = ["db", "migration", "web", "side"];
    let order = [
        app.started(db).await?,
        app.started(migration).await?,
        app.started(web).await?,
        app.started(side).await?,
    ];
    assert!(order.is_sorted(), "started out of order: {order:?}");
    assert_eq!(app.sh(db, "cat /data/migrations").await?, "db");
    assert_eq!(app.sh(web, "wget -q -O - http://db:8080/").await?, "db");
    assert_eq!(app.sh(web, "wget -q -O - http://www:8080/").await?, "one");
    assert_eq!(
        app.sh(side, "wget -q -O - http://127.0.0.1:8080/").await?,
        "one",
        "the side car shares web's network"
    );
    let hidden = app.sh(db, "wget -q -O - http://www:8080/ 2>&1 || true");
    assert!(
        hidden.await?.contains("bad address"),
        "db is not in the network where this name is known"
    );
    assert_eq!(
        app.sh(web, "cat /run/secrets/key /etc/app.conf").await?,
        "hunter2colour=blue"
    );
    assert!(
        !app.device
            .running(web)
            .await?
            .to_string()
            .contains("hunter2"),
        "a secret is in no description"
    );

    // An update of web alone: what it depends on is left alone, the one-shot does not run again.
    let kept = |service| app.device.containers_of(service);
    let before = (kept(db).await?, kept(migration).await?, kept(side).await?);
    let two = app.web("two").await?;
    app.converge(&app.target(&two, &json!({}))).await?;
    wait_for_page(app.port, "two").await;
    let after = (kept(db).await?, kept(migration).await?, kept(side).await?);
    for (before, after) in [
        (&before.0, &after.0),
        (&before.1, &after.1),
        // The network is the sandbox's, so that even the side car stays.
        (&before.2, &after.2),
    ] {
        assert_eq!(life(&before[0]), life(&after[0]), "{after:?}");
    }
    assert_eq!(app.sh(db, "cat /data/migrations").await?, "db");
    assert_eq!(
        app.sh(side, "wget -q -O - http://127.0.0.1:8080/").await?,
        "two"
    );
    app.sweep().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_car_follows_the_network_that_it_shares() -> anyhow::Result<()> {
    let mut app = App::new().await?;
    app.device.agent.run()?;
    let one = app.web("one").await?;
    app.converge(&app.target(&one, &json!({}))).await?;
    let share = async |service| -> anyhow::Result<Value> {
        Ok(app.device.running(service).await?["HostConfig"]["NetworkMode"].take())
    };
    let before = share("web").await?;
    assert_eq!(share("side").await?, before);

    // Without ports there is another network, which is still more than web's own container's.
    app.converge(&app.target(&one, &json!({ "ports": [] })))
        .await?;
    let after = share("web").await?;
    assert_ne!(before, after);
    assert_eq!(share("side").await?, after);
    let asks = "wget -q -O - http://127.0.0.1:8080/";
    assert_eq!(app.sh("side", asks).await?, "one");
    app.sweep().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_reaches_the_service_and_the_old_one_leaves_the_device()
-> anyhow::Result<()> {
    let mut app = App::new().await?;
    app.device.agent.run()?;
    let one = app.web("one").await?;
    app.converge(&app.target(&one, &json!({}))).await?;
    let before = app.files();
    assert_eq!(before.len(), 1, "{before:?}");

    let changed = json!({ "secrets": [{ "source": "key", "content": "correct horse" }] });
    app.converge(&app.target(&one, &changed)).await?;
    assert_eq!(
        app.sh("web", "cat /run/secrets/key").await?,
        "correct horse"
    );
    try_wait_for("the old files to go", CONVERGES_WITHIN, async || {
        let now = app.files();
        let gone = now.len() == 1 && now != before;
        if gone {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await?;

    // A rebooted device has lost its memory file system; the files are written before the start.
    let web = app.device.running("web").await?;
    app.device.agent.kill9();
    app.device.docker().kill(id(&web)).await?;
    std::fs::remove_dir_all(app.device.agent.runtime().join("files"))?;
    app.device.agent.run()?;
    wait_for_page(app.port, "one").await;
    let same = app.device.wait_running("web").await?;
    assert_eq!(id(&same), id(&web));
    assert_eq!(
        app.sh("web", "cat /run/secrets/key").await?,
        "correct horse"
    );
    app.sweep().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_leaves_takes_all_with_it_but_its_volumes() -> anyhow::Result<()> {
    let mut app = App::new().await?;
    app.device.agent.run()?;
    let one = app.web("one").await?;
    app.converge(&app.target(&one, &json!({}))).await?;
    let docker = app.device.docker();
    let ours = format!("label=io.holdfast.device={}", app.device.uuid);
    let networks = ["network", "ls", "--quiet", "--filter", &ours];
    let volumes = ["volume", "ls", "--quiet", "--filter", &ours];
    assert_eq!(docker.cli(&networks).await?.lines().count(), 2);
    let kept = docker.cli(&volumes).await?;
    assert_eq!(kept.lines().count(), 1, "{kept}");

    app.converge(&json!({ "apps": {} })).await?;
    assert_eq!(app.device.containers().await?.len(), 0);
    assert_eq!(docker.cli(&networks).await?.trim(), "");
    assert_eq!(docker.cli(&volumes).await?, kept, "data is never removed");
    assert!(app.files().is_empty());
    app.sweep().await
}
