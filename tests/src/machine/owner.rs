//! What a machine's owner does on it: settings, enrolment, and looking after the agent's unit.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use super::Machine;
use crate::docker::Docker;
use crate::engine::Engine;
use crate::serving::life;
use crate::site::{CONVERGES_WITHIN, Site};
use crate::wait::try_wait_for;

/// The agent's unit.
pub const AGENT: &str = "holdfast-agent.service";
/// Where the unit that enrols finds its key.
const KEY: &str = "/etc/holdfast/enrolment-key";
/// From the key in its place to an agent that runs: an emulated one on a busy machine included.
pub const STARTS_WITHIN: Duration = Duration::from_mins(3);

/// The settings file that tests give an agent in a machine: short intervals, the rest as shipped.
pub fn settings(api: &str) -> String {
    json!({
        "api": { "url": api },
        "poll": { "interval_seconds": 1 },
        "report": { "heartbeat_seconds": 5 },
        "gate": { "stable_seconds": 1, "healthy_timeout_seconds": 30, "soak_seconds": 0 },
        "disk": { "reserve_mb": 8 },
    })
    .to_string()
}

/// A device that lives in a machine.
#[derive(Debug)]
pub struct Resident {
    /// Its id.
    pub uuid: String,
    docker: Docker,
}

impl Resident {
    /// Waits for the enrolment that a machine's agent wrote.
    pub async fn of(machine: &Machine, docker: &Docker) -> anyhow::Result<Self> {
        Ok(Self {
            uuid: Self::uuid_in(machine).await?,
            docker: docker.clone(),
        })
    }

    /// The id in a machine's enrolment.
    pub async fn uuid_in(machine: &Machine) -> anyhow::Result<String> {
        let read = async || {
            let ran = machine.ask("cat /var/lib/holdfast/enrolment.json").await;
            let ran = ran.map_err(|error| format!("{error:#}"))?;
            let json: Value = serde_json::from_str(&ran.said).map_err(|_| ran.said.clone())?;
            json["uuid"].as_str().map(str::to_owned).ok_or(ran.said)
        };
        try_wait_for("the machine to be enrolled", STARTS_WITHIN, read).await
    }

    /// The engine's full account of the one running container of a service.
    pub async fn running(&self, service: &str) -> anyhow::Result<Value> {
        let label = format!("io.holdfast.device={}", self.uuid);
        let all = self.docker.labelled(&label).await?;
        let mut up = all.iter().filter(|container| {
            container["Labels"]["io.holdfast.service"] == service
                && container["Labels"]["io.holdfast.role"].is_null()
                && container["State"] == "running"
        });
        let found = up
            .next()
            .with_context(|| format!("no container of {service} runs: {all:?}"))?;
        anyhow::ensure!(up.next().is_none(), "two containers of {service} run");
        let id = found["Id"].as_str().unwrap_or_default();
        self.docker
            .container(id)
            .await?
            .context("it was just there")
    }

    /// Each of its containers with when it began, sandboxes too: the same twice means that nothing was touched.
    pub async fn lives(&self) -> anyhow::Result<BTreeSet<(String, String)>> {
        let label = format!("io.holdfast.device={}", self.uuid);
        let mut lives = BTreeSet::new();
        for container in self.docker.labelled(&label).await? {
            let id = container["Id"].as_str().unwrap_or_default();
            if let Some(container) = self.docker.container(id).await? {
                lives.insert(life(&container));
            }
        }
        Ok(lives)
    }

    /// Waits for the one running container of a service.
    pub async fn wait_running(&self, service: &str) -> anyhow::Result<Value> {
        let what = format!("one running container of {service}");
        try_wait_for(&what, CONVERGES_WITHIN, async || {
            self.running(service)
                .await
                .map_err(|error| format!("{error:#}"))
        })
        .await
    }

    /// Sets a target and waits until the device reports that it converged.
    pub async fn converges(&self, site: &Site, target: &Value) -> anyhow::Result<()> {
        let generation = site.set(&self.uuid, target).await?["generation"].clone();
        let what = format!("generation {generation} to be reported converged");
        let report =
            |state: &Value| state["generation"] == generation && state["status"] == "converged";
        self.reports(site, &what, report).await
    }

    /// Sets a target and waits until the device reports that it refuses to try that again.
    pub async fn rejects(&self, site: &Site, target: &Value) -> anyhow::Result<()> {
        let generation = site.set(&self.uuid, target).await?["generation"].clone();
        let what = format!("generation {generation} to be reported rejected");
        let report = |state: &Value| {
            state["generation"] == generation && state.to_string().contains("\"rejected\"")
        };
        self.reports(site, &what, report).await
    }

    /// Waits until the device reported twice more: it saw what happened, and had time to act on it.
    pub async fn at_rest(&self, site: &Site) -> anyhow::Result<()> {
        let sequence = |state: &Value| state["sequence"].as_u64().unwrap_or_default();
        let now = sequence(state_in(&site.report(&self.uuid).await?));
        self.reports(site, "two more reports", |state| sequence(state) >= now + 2)
            .await
    }

    async fn reports(
        &self,
        site: &Site,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<()> {
        try_wait_for(what, CONVERGES_WITHIN, async || {
            let report = site
                .report(&self.uuid)
                .await
                .map_err(|error| error.to_string())?;
            if is(state_in(&report)) {
                Ok(())
            } else {
                Err(report.to_string())
            }
        })
        .await
    }
}

/// The API wraps a report in its age and presence; the report itself has the `sequence`.
fn state_in(answer: &Value) -> &Value {
    if answer["sequence"].is_null() {
        &answer["state"]
    } else {
        answer
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        crate::site::remove_all(
            self.docker.socket(),
            &format!("io.holdfast.device={}", self.uuid),
        );
    }
}

/// Installs the agent by hand, from the work tree's units and a binary, as docs describe it for machines without
/// packages.
pub async fn install_by_hand(machine: &Machine, binary: &Path) -> anyhow::Result<()> {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd");
    for (from, to) in [
        ("", "/usr/lib/systemd/system"),
        ("sysusers.d", "/usr/lib/sysusers.d"),
        ("tmpfiles.d", "/usr/lib/tmpfiles.d"),
    ] {
        for entry in std::fs::read_dir(units.join(from))? {
            let path = entry?.path();
            let end = path.extension().unwrap_or_default();
            if end == "service" || end == "path" || end == "conf" {
                let given = machine.give(&path)?;
                machine
                    .run(&format!("install -D -m 0644 -t {to} {given}"))
                    .await?;
            }
        }
    }
    let given = machine.give(binary)?;
    let install = format!(
        "install -m 0755 {given} /usr/bin/holdfast-agent && systemd-sysusers \
         && systemd-tmpfiles --create && systemctl daemon-reload"
    );
    machine.run(&install).await.map(drop)
}

/// Makes the group that the engine's socket belongs to.
pub async fn engine_group(machine: &Machine, engine: &Engine) -> anyhow::Result<()> {
    let number = std::fs::metadata(engine.socket())?.gid();
    let make =
        format!("getent group docker || groupadd --system --non-unique --gid {number} docker");
    machine.run(&make).await.map(drop)
}

/// What a program may do, as the kernel sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct Rights {
    /// Its user.
    pub user: String,
    /// Its groups.
    pub groups: String,
    /// Its capabilities, all five sets.
    pub capabilities: Vec<String>,
    /// `NoNewPrivs` and `Seccomp` of `/proc/PID/status`.
    pub no_new_privileges: bool,
    /// Whether its system calls are filtered.
    pub filtered: bool,
}

impl Rights {
    /// Those of a process of the machine.
    pub async fn of(machine: &Machine, pid: &str) -> anyhow::Result<Self> {
        let status = machine.run(&format!("cat /proc/{pid}/status")).await?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default()
                .trim_start_matches(':')
                .trim()
                .to_owned()
        };
        let named = machine
            .run(&format!(
                "id -nu $(stat -c %u /proc/{pid}); for g in $(sed -n 's/^Groups://p' /proc/{pid}/status); \
                 do getent group $g | cut -d: -f1; done; getent group $(stat -c %g /proc/{pid}) | cut -d: -f1"
            ))
            .await?;
        let (user, groups) = named.split_once('\n').context("a user and groups")?;
        let mut groups: Vec<&str> = groups.split_whitespace().collect();
        groups.sort_unstable();
        groups.dedup();
        Ok(Self {
            user: user.to_owned(),
            groups: groups.join(" "),
            capabilities: ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
                .map(field)
                .to_vec(),
            no_new_privileges: field("NoNewPrivs") == "1",
            filtered: field("Seccomp") == "2",
        })
    }
}

/// Writes settings and enrolment key as an owner does, and has the unit enrol, which starts the agent.
///
/// An emulated systemd hands out no credentials, so there the owner does by hand what the unit would.
pub async fn enrol_with_key(machine: &Machine, site: &Site) -> anyhow::Result<()> {
    let config = "/etc/holdfast/agent.yaml";
    machine
        .write(config, "0640", &settings(&site.api.url()))
        .await?;
    machine
        .write(KEY, "0600", &site.enrolment_key().await?)
        .await?;
    machine
        .run("systemd-tmpfiles --create holdfast-agent.conf")
        .await?;
    let unit = "holdfast-agent-enroll.service";
    let script = if machine.architecture().is_native() {
        format!("systemctl start {unit}")
    } else {
        format!(
            "install -d -o holdfast-agent -g holdfast -m 0700 /var/lib/holdfast && chown holdfast-agent {KEY} \
             && setpriv --reuid holdfast-agent --regid holdfast --groups docker \
             holdfast-agent --config {config} enroll --key-file {KEY} && rm {KEY} && systemctl start {AGENT}"
        )
    };
    match machine.run(&script).await {
        Ok(_) => Ok(()),
        Err(error) => Err(error.context(machine.journal(unit).await)),
    }
}
