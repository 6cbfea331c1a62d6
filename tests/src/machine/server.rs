//! The life of a control API that was installed from its package, on a machine of its own.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::Machine;
use super::checks::{Ledger, inventory};
use super::owner::{Rights, STARTS_WITHIN};
use super::packages::{self, Packages};
use super::root::Architecture;
use crate::clock::Stopwatch;
use crate::engine::Engine;
use crate::place;

const API: &str = "holdfast-api.service";
/// The shipped watchdog's minute, systemd's patience with what it aborts, and a start.
const COMES_BACK_WITHIN: Duration = Duration::from_mins(3);

/// A machine with the package, and where its API listens.
struct Server {
    machine: Machine,
    port: place::Port,
}

impl Server {
    /// Waits until it runs, told systemd so, and answers; its process.
    async fn is_up(&self) -> anyhow::Result<String> {
        self.machine
            .wait_for(API, "ActiveState", "active", STARTS_WITHIN)
            .await?;
        // What told systemd that it listens is asked once, and answers.
        let ready = format!(
            "curl -sSf --max-time 30 http://{}/readyz",
            self.port.address()
        );
        self.machine.run(&ready).await?;
        self.machine.property(API, "MainPID").await
    }

    /// Asks it as its owner does, with the token that the first start left.
    async fn ask(&self, words: &str, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{}/api/v1{path}", self.port.address());
        let token = "Authorization: Bearer $(cat /var/lib/holdfast-api/admin-token)";
        self.machine
            .run(&format!(
                "curl -sSf --max-time 30 -H \"{token}\" {words} {url}"
            ))
            .await
    }

    /// What was made before is still there.
    async fn knows_its_fleet(&self) -> anyhow::Result<()> {
        let fleets = self.ask("", "/fleets").await?;
        ensure!(fleets.contains("\"kept\""), "{fleets}");
        Ok(())
    }

    async fn dpkg(&self, words: &str) -> anyhow::Result<String> {
        self.machine
            .run(&format!("DEBIAN_FRONTEND=noninteractive dpkg {words}"))
            .await
    }
}

/// Installs it, uses it, hangs it, cuts its power, upgrades it and takes it away.
pub async fn package(ledger: &mut Ledger<'_>, packages: &Packages) -> anyhow::Result<()> {
    let deb = packages.deb("holdfast-api", Architecture::Amd64)?;
    let engine = Engine::private().await?;
    let server = Server {
        machine: Machine::boot(Architecture::Amd64, &engine).await?,
        port: place::Port::take()?,
    };
    let machine = &server.machine;
    let empty = inventory(machine).await?;

    ledger
        .check(
            "the package installs; with its owner's settings it runs, listens and has an admin token",
            async {
                let given = machine.give(&deb)?;
                server.dpkg(&format!("--install {given}")).await?;
                let settings = format!("listen: \"{}\"\n", server.port.address());
                let place = "/etc/holdfast/api.yaml";
                machine
                    .run(&format!("printf '%s' '{settings}' > {place}"))
                    .await?;
                machine
                    .run(&format!("systemctl enable {API} && systemctl restart {API}"))
                    .await?;
                server.is_up().await?;
                server.ask("--json '{\"name\":\"kept\"}'", "/fleets").await?;
                server.knows_its_fleet().await?;
                let stranger = format!(
                    "curl -s --max-time 30 -o /dev/null -w '%{{http_code}}' http://{}/api/v1/fleets",
                    server.port.address()
                );
                let code = machine.run(&stranger).await?;
                ensure!(code.trim() == "401", "a stranger is answered {code}");
                Ok(((), packages::version(&deb)?))
            },
        )
        .await?;
    let installed = inventory(machine).await?;

    ledger
        .check("it has no right but its own user", async {
            let rights = Rights::of(machine, &server.is_up().await?).await?;
            let none = |set: &String| set.trim_start_matches('0').is_empty();
            ensure!(
                rights.user == "holdfast-api"
                    && rights.groups == "holdfast-api"
                    && rights.capabilities.iter().all(none)
                    && rights.no_new_privileges
                    && rights.filtered,
                "{rights:?}"
            );
            let closed = "stat -c '%a %U' /var/lib/holdfast-api /var/lib/holdfast-api/admin-token";
            let modes = machine.run(closed).await?;
            ensure!(
                modes.lines().eq(["700 holdfast-api", "600 holdfast-api"]),
                "{modes}"
            );
            let found = "no capability, no new privileges, system calls filtered; its folder and token are closed to others";
            Ok(((), found.to_owned()))
        })
        .await?;

    ledger
        .check(
            "the shipped watchdog ends one that stands still, and systemd starts another",
            async {
                let pid = server.is_up().await?;
                let limit = machine.property(API, "WatchdogUSec").await?;
                let clock = Stopwatch::start();
                machine.run(&format!("kill -STOP {pid}")).await?;
                machine
                    .wait_for(API, "NRestarts", "1", COMES_BACK_WITHIN)
                    .await?;
                let new = server.is_up().await?;
                ensure!(new != pid, "the same process {pid}");
                server.knows_its_fleet().await?;
                let back = clock.elapsed().as_secs();
                Ok(((), format!("limit {limit}, back after {back} s")))
            },
        )
        .await?;

    for (how, cut) in [("shut down in good order", false), ("its power cut", true)] {
        let what = format!("the machine is started again, {how}: the API comes back by itself");
        ledger
            .check(&what, async {
                if cut {
                    machine.cut_power().await?;
                } else {
                    machine.shut_down().await?;
                }
                machine.start().await?;
                server.is_up().await?;
                server.knows_its_fleet().await?;
                Ok(((), "it knows what it knew".to_owned()))
            })
            .await?;
    }

    ledger
        .check("an upgrade keeps its settings and what it knows", async {
            let later = packages::later(&deb, machine.share())?;
            let name = later.file_name().context("a package has a name")?;
            let given = machine.shared(&name.to_string_lossy());
            let pid = server.is_up().await?;
            server
                .dpkg(&format!(
                    "--force-confdef --force-confold --install {given}"
                ))
                .await?;
            let new = server.is_up().await?;
            ensure!(new != pid, "process {pid} of the old package still runs");
            server.knows_its_fleet().await?;
            Ok(((), packages::version(&later)?))
        })
        .await?;

    ledger
        .check("purging it leaves the machine as it was before", async {
            server.dpkg("--purge holdfast-api").await?;
            machine
                .run("systemctl daemon-reload; systemctl reset-failed")
                .await?;
            let left = inventory(machine).await?;
            let changed: Vec<&String> = left.symmetric_difference(&empty).collect();
            ensure!(changed.is_empty(), "changed: {changed:#?}");
            let made = installed.difference(&empty).count();
            Ok((
                (),
                format!("{made} files, users, groups and units came, none is left"),
            ))
        })
        .await?;
    Ok(())
}
