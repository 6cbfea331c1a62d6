//! What is tried on machines, one check after the other; each says what it found.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::Machine;
use super::owner::{self, AGENT, Resident, Rights, STARTS_WITHIN};
use super::packages::{self, Packages};
use super::root::Architecture;
use crate::clock::Stopwatch;
use crate::engine::Engine;
use crate::images::{Image, Pushed};
use crate::site::{CONVERGES_WITHIN, Site, page, service, target};
use crate::wait::try_wait_for;
use crate::{api, place, registry};

/// One check, as it ended.
#[derive(Debug, Clone)]
pub struct Row {
    /// Where: `amd64 package`.
    pub place: String,
    /// What was tried.
    pub what: String,
    /// What was found, or what was wrong.
    pub found: Result<String, String>,
    /// How long it took.
    pub took: Duration,
}

/// The checks so far.
pub struct Ledger<'a> {
    place: String,
    rows: Vec<Row>,
    tell: &'a mut (dyn FnMut(&Row) + Send),
}

impl<'a> Ledger<'a> {
    /// An empty one that tells each check as it ends.
    pub fn new(tell: &'a mut (dyn FnMut(&Row) + Send)) -> Self {
        Self {
            place: String::new(),
            rows: Vec::new(),
            tell,
        }
    }

    /// What was checked.
    pub fn rows(self) -> Vec<Row> {
        self.rows
    }

    /// Does all checks of one place. What ends it early is a failed check of it.
    pub async fn at(
        &mut self,
        place: &str,
        checks: impl AsyncFnOnce(&mut Self) -> anyhow::Result<()>,
    ) {
        place.clone_into(&mut self.place);
        let failed = |rows: &[Row]| rows.iter().filter(|row| row.found.is_err()).count();
        let before = failed(&self.rows);
        let clock = Stopwatch::start();
        if let Err(error) = checks(self).await
            && failed(&self.rows) == before
        {
            self.add("getting ready", Err(format!("{error:#}")), clock.elapsed());
        }
    }

    /// Does one check: what it is, and what came of it with a word on what was found.
    pub async fn check<T>(
        &mut self,
        what: &str,
        doing: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> anyhow::Result<T> {
        let clock = Stopwatch::start();
        match doing.await {
            Ok((thing, found)) => {
                self.add(what, Ok(found), clock.elapsed());
                Ok(thing)
            }
            Err(error) => {
                self.add(what, Err(format!("{error:#}")), clock.elapsed());
                Err(error)
            }
        }
    }

    fn add(&mut self, what: &str, found: Result<String, String>, took: Duration) {
        let row = Row {
            place: self.place.clone(),
            what: what.to_owned(),
            found,
            took,
        };
        (self.tell)(&row);
        self.rows.push(row);
    }
}

/// A client that asks a published page again and again, over a new connection each time.
struct Client {
    stop: Arc<AtomicBool>,
    counts: Arc<[AtomicU64; 2]>,
    task: tokio::task::JoinHandle<()>,
}

impl Client {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let (ends, count) = (Arc::clone(&stop), Arc::clone(&counts));
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::SeqCst) {
                let failed = page(port).await.is_err();
                count[usize::from(failed)].fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { stop, counts, task }
    }

    /// Ends it; an error when any question went without an answer.
    async fn end(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::SeqCst);
        self.task.await?;
        let [good, failed] = [0, 1].map(|which: usize| self.counts[which].load(Ordering::SeqCst));
        ensure!(
            failed == 0,
            "{failed} of {} questions went without an answer",
            good + failed
        );
        ensure!(good > 0, "nothing was asked");
        Ok(good)
    }
}

/// A machine, what it talks to, and one service that it runs.
struct Life {
    machine: Machine,
    site: Site,
    port: place::Port,
    repository: String,
}

impl Life {
    async fn begin(architecture: Architecture) -> anyhow::Result<Self> {
        let engine = Engine::private().await?;
        let machine = Machine::boot(architecture, &engine).await?;
        let site = Site::on(engine, api::Options::default(), registry::Login::Open, None).await?;
        let repository = format!("web-{}", place::unique());
        Ok(Self {
            machine,
            site,
            port: place::Port::take()?,
            repository,
        })
    }

    async fn push(&self, image: Image, tag: &str) -> anyhow::Result<Pushed> {
        image.push(&self.site.registry, tag).await
    }

    fn target(&self, image: &Pushed) -> Value {
        let config = json!({ "ports": [format!("{}:8080", self.port.address())] });
        target(&[service("web", &image.reference(), &config)])
    }

    async fn shows(&self, text: &str) -> anyhow::Result<()> {
        let shown = async || {
            let found = page(self.port.number()).await?;
            if found == text { Ok(()) } else { Err(found) }
        };
        try_wait_for(&format!("the page `{text}`"), CONVERGES_WITHIN, shown).await
    }

    /// Waits until the agent runs, told systemd so, and polls.
    async fn agent_is_up(&self) -> anyhow::Result<String> {
        self.machine
            .wait_for(AGENT, "ActiveState", "active", STARTS_WITHIN)
            .await?;
        let pid = self.machine.property(AGENT, "MainPID").await?;
        ensure!(pid != "0", "no main process");
        Ok(pid)
    }

    /// Does something to the machine, during which the service must go on as if nothing were.
    async fn untouched<T>(
        &self,
        device: &Resident,
        doing: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(T, String)> {
        let before = device.lives().await?;
        let client = Client::start(self.port.number());
        let thing = doing.await?;
        let asked = client.end().await?;
        let after = device.lives().await?;
        ensure!(
            before == after && !before.is_empty(),
            "containers before: {before:?}, after: {after:?}"
        );
        let same = before.len();
        Ok((
            thing,
            format!(
                "{same} containers with the same ids and start times; {asked} questions to the service, each answered"
            ),
        ))
    }
}

/// Folders whose content says nothing about a package: the kernel's, the test's, logs, caches, and what other
/// packages count in.
const NOT_COMPARED: &str = "/proc /sys /run /tmp /dev /srv /root /var/log /var/cache /var/tmp /var/lib/dpkg /var/lib/apt \
                            /var/lib/systemd/timers /var/lib/systemd/catalog";

/// Every file with mode and owner, every user, group and unit of a machine.
pub(super) async fn inventory(machine: &Machine) -> anyhow::Result<BTreeSet<String>> {
    let prune: Vec<String> = NOT_COMPARED
        .split_whitespace()
        .map(|path| format!("-path {path}"))
        .collect();
    let script = format!(
        "find / -xdev \\( {} \\) -prune -o -printf 'file %p %m %u:%g %l\\n'; \
         sed 's/^/user /' /etc/passwd; sed 's/^/group /' /etc/group; \
         systemctl list-unit-files --no-legend --no-pager | sed 's/^/unit /'",
        prune.join(" -o ")
    );
    let listed = machine.run(&script).await?;
    // What the account tools themselves leave beside the files that they write.
    let theirs = [
        "/etc/passwd-",
        "/etc/group-",
        "/etc/shadow-",
        "/etc/gshadow-",
        "/etc/.pwd.lock",
    ];
    let counts = |line: &&str| {
        !theirs
            .iter()
            .any(|path| line.starts_with(&format!("file {path} ")))
    };
    Ok(listed.lines().filter(counts).map(str::to_owned).collect())
}

/// The life of a device that was installed from the agent's package.
pub async fn package(
    ledger: &mut Ledger<'_>,
    packages: &Packages,
    architecture: Architecture,
) -> anyhow::Result<()> {
    let deb = packages.deb("holdfast-agent", architecture)?;
    let clock = Stopwatch::start();
    let life = Life::begin(architecture).await?;
    let boots = async { Ok(((), life.machine.run("uname -m").await?.trim().to_owned())) };
    ledger
        .check(
            &format!(
                "the machine boots ({} s with its lab)",
                clock.elapsed().as_secs()
            ),
            boots,
        )
        .await?;
    let machine = &life.machine;
    owner::engine_group(machine, &life.site.engine).await?;
    let empty = inventory(machine).await?;

    ledger.check("the package installs; nothing fails and nothing restarts before the owner said anything", async {
        let given = machine.give(&deb)?;
        machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install {given}")).await?;
        machine.booted().await?;
        let restarts = machine.property(AGENT, "NRestarts").await?;
        ensure!(restarts == "0", "{restarts} restarts: {}", machine.journal(AGENT).await);
        Ok(((), packages::version(&deb)?))
    }).await?;
    let installed = inventory(machine).await?;

    ledger
        .check(
            if architecture.is_native() {
                "a key in its place enrols the device and starts the agent; the key is gone"
            } else {
                "the device is enrolled by hand with a key's file, and its unit started"
            },
            async {
                owner::enrol_with_key(machine, &life.site).await?;
                let pid = life.agent_is_up().await?;
                let gone = machine
                    .run("test ! -e /etc/holdfast/enrolment-key && echo gone")
                    .await;
                gone.context("the key is still there")?;
                Ok(((), format!("process {pid}")))
            },
        )
        .await?;
    let device = Resident::of(machine, life.site.engine.docker()).await?;

    ledger
        .check(
            "the agent has no right but its own user, its groups and the socket's",
            async {
                let rights = Rights::of(machine, &life.agent_is_up().await?).await?;
                ensure!(
                    rights.user == "holdfast-agent" && rights.groups == "docker holdfast",
                    "{rights:?}"
                );
                ensure!(
                    rights
                        .capabilities
                        .iter()
                        .all(|set| set.trim_start_matches('0').is_empty()),
                    "{rights:?}"
                );
                // qemu-user knows no filters of system calls; systemd goes without where there are none.
                ensure!(
                    rights.no_new_privileges && rights.filtered == architecture.is_native(),
                    "{rights:?}"
                );
                let filter = if rights.filtered {
                    ", system calls filtered"
                } else {
                    ""
                };
                Ok(((), format!("no capability, no new privileges{filter}")))
            },
        )
        .await?;

    ledger
        .check(
            "the device converges, swaps, and goes back from a bad image",
            async {
                let one = life
                    .push(Image::healthy_web(&life.repository, "one"), "one")
                    .await?;
                device.converges(&life.site, &life.target(&one)).await?;
                life.shows("one").await?;
                let two = life
                    .push(Image::healthy_web(&life.repository, "two"), "two")
                    .await?;
                device.converges(&life.site, &life.target(&two)).await?;
                life.shows("two").await?;
                let before = device.wait_running("web").await?["Id"].clone();
                let bad = life
                    .push(Image::broken_entrypoint(&life.repository), "bad")
                    .await?;
                device.rejects(&life.site, &life.target(&bad)).await?;
                life.shows("two").await?;
                ensure!(
                    device.wait_running("web").await?["Id"] == before,
                    "another container serves"
                );
                device.converges(&life.site, &life.target(&two)).await?;
                Ok((
                    (),
                    "one, two, bad, two again in its own container".to_owned(),
                ))
            },
        )
        .await?;

    ledger
        .check(
            "the shipped watchdog ends an agent that stands still, and systemd starts another",
            async {
                let pid = life.agent_is_up().await?;
                let limit = machine.property(AGENT, "WatchdogUSec").await?;
                let clock = Stopwatch::start();
                let doing = async {
                    machine.run(&format!("kill -STOP {pid}")).await?;
                    machine
                        .wait_for(AGENT, "NRestarts", "1", Duration::from_mins(3))
                        .await?;
                    life.agent_is_up().await
                };
                let (new, same) = life.untouched(&device, doing).await?;
                ensure!(new != pid, "the same process {pid}");
                Ok((
                    (),
                    format!(
                        "limit {limit}, back after {} s; {same}",
                        clock.elapsed().as_secs()
                    ),
                ))
            },
        )
        .await?;

    for (how, cut) in [("shut down in good order", false), ("its power cut", true)] {
        ledger
            .check(
                &format!(
                    "the machine is started again, {how}: agent and service come back by themselves"
                ),
                async {
                    if cut {
                        machine.cut_power().await?;
                        life.site.engine.power_cut().await?;
                    } else {
                        machine.shut_down().await?;
                        life.site.engine.stop().await?;
                    }
                    let clock = Stopwatch::start();
                    let before = device.uuid.clone();
                    life.site.engine.start().await?;
                    machine.start().await?;
                    life.agent_is_up().await?;
                    life.shows("two").await?;
                    let now = Resident::uuid_in(machine).await?;
                    ensure!(now == before, "it was {before}, it is {now}");
                    device.at_rest(&life.site).await?;
                    Ok((
                        (),
                        format!("{} s, the same device", clock.elapsed().as_secs()),
                    ))
                },
            )
            .await?;
    }

    let later = packages::later(&deb, machine.share())?;
    for (what, file) in [("an upgrade", &later), ("a downgrade", &deb)] {
        ledger.check(&format!("{what} of the package while the service runs"), async {
            let pid = life.agent_is_up().await?;
            let given = if file == &deb { machine.give(file)? } else { machine.shared(&name(file)) };
            let doing = async {
                machine.run(&format!("DEBIAN_FRONTEND=noninteractive dpkg --install --force-downgrade {given}")).await?;
                let new = life.agent_is_up().await?;
                device.at_rest(&life.site).await?;
                Ok(new)
            };
            let (new, same) = life.untouched(&device, doing).await?;
            ensure!(new != pid, "process {pid} of the old package still runs");
            Ok(((), same))
        }).await?;
    }

    ledger
        .check(
            "removing the package ends the agent and nothing else",
            async {
                let doing = async {
                    machine
                        .run("DEBIAN_FRONTEND=noninteractive dpkg --remove holdfast-agent")
                        .await?;
                    let left = machine.ask("pgrep --exact holdfast-agent").await?;
                    ensure!(left.code == 1, "processes {}", left.said);
                    machine
                        .run("test -d /var/lib/holdfast && test -e /etc/holdfast/agent.yaml")
                        .await
                };
                let (_, same) = life.untouched(&device, doing).await?;
                Ok(((), same))
            },
        )
        .await?;

    ledger
        .check(
            "purging it leaves the machine as it was before; its containers go on",
            async {
                let doing = async {
                    machine
                        .run("DEBIAN_FRONTEND=noninteractive dpkg --purge holdfast-agent")
                        .await?;
                    machine
                        .run("systemctl daemon-reload; systemctl reset-failed")
                        .await
                };
                let (_, same) = life.untouched(&device, doing).await?;
                let left = inventory(machine).await?;
                let more: Vec<&String> = left.difference(&empty).collect();
                let gone: Vec<&String> = empty.difference(&left).collect();
                ensure!(
                    more.is_empty() && gone.is_empty(),
                    "left: {more:#?}, missing: {gone:#?}"
                );
                let made = installed.difference(&empty).count();
                Ok((
                    (),
                    format!("{made} files, users, groups and units came, none is left; {same}"),
                ))
            },
        )
        .await?;
    Ok(())
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
