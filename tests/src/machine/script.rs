//! The line that an owner copies: `curl … | sh`, on a fresh machine, from a real control API.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::json;

use super::Machine;
use super::checks::{Ledger, inventory};
use super::owner::{self, AGENT, Resident, STARTS_WITHIN};
use super::packages::Packages;
use super::release::Release;
use super::root::Architecture;
use crate::engine::Engine;
use crate::images::Image;
use crate::site::{Site, service, target};
use crate::{api, place, registry};

/// What the script itself must leave as it is when it is run again: files with content and time, and processes.
const CONTENT: &str = "set -- /etc /usr /var/lib/holdfast -xdev -type f -not -path '*/agent.db*'; \
                       find \"$@\" -printf '%p %m %u:%g %T@\\n'; find \"$@\" -exec sha256sum {} + ; \
                       systemctl show --property=MainPID --value holdfast-agent";

/// Refused while something is wrong, works when nothing is, twice, and leaves nothing when it is told to go.
pub async fn install(ledger: &mut Ledger<'_>, packages: &Packages) -> anyhow::Result<()> {
    let deb = packages.deb("holdfast-agent", Architecture::Amd64)?;
    let name = deb.file_name().context("a package has a name")?.to_owned();
    let release = Release::of(&[&deb])?;
    let engine = Engine::private().await?;
    let machine = Machine::boot(Architecture::Amd64, &engine).await?;
    owner::engine_group(&machine, &engine).await?;
    let releases = json!({ "dir": release.path(), "key": release.key() });
    let options = api::Options::default().set("releases", releases);
    let site = Site::on(engine, options, registry::Login::Open, None).await?;
    let line = format!("curl -fsSL {}/install.sh | sh -s --", site.api.url());
    let empty = inventory(&machine).await?;
    let refused = async |words: &str, says: &str| {
        let ran = machine.ask(&format!("{line} {words}")).await?;
        ensure!(
            ran.code == 1 && ran.said.contains(says),
            "{}: {}",
            ran.code,
            ran.said
        );
        let left = inventory(&machine).await?;
        let changed: Vec<&String> = left.symmetric_difference(&empty).collect();
        ensure!(changed.is_empty(), "changed: {changed:#?}");
        let last = ran
            .said
            .trim()
            .lines()
            .last()
            .unwrap_or_default()
            .to_owned();
        Ok(((), format!("exit code 1, nothing changed: {last}")))
    };

    let nobody = place::Port::take()?;
    let away = format!("--base-url http://{}", nobody.address());
    ledger
        .check(
            "offline: the release's server is away",
            refused(&away, "cannot be fetched"),
        )
        .await?;
    let gone = format!(
        "set -o pipefail; curl -fsSL http://{}/install.sh | sh -s --",
        nobody.address()
    );
    ledger
        .check("offline: the script's own server is away", async {
            let ran = machine.ask(&format!("bash -c '{gone}'")).await?;
            ensure!(ran.code != 0, "{}", ran.said);
            let left = inventory(&machine).await?;
            ensure!(left == empty, "something changed");
            Ok(((), format!("exit code {}, nothing changed", ran.code)))
        })
        .await?;
    let served = release.path().join(&name);
    let good = fs::read(&served)?;
    fs::write(&served, [&good[..], b"x"].concat())?;
    ledger
        .check(
            "a package with another checksum",
            refused("", "is not what SHA256SUMS says"),
        )
        .await?;
    fs::write(&served, &good)?;
    let list = release.path().join("SHA256SUMS");
    let sums = fs::read_to_string(&list)?;
    fs::write(&list, sums.replacen('a', "b", 1))?;
    ledger
        .check(
            "a list that was changed after it was signed",
            refused("", "is not signed"),
        )
        .await?;
    fs::write(&list, &sums)?;
    let stranger = Release::of(&[&deb])?;
    let signature = "SHA256SUMS.minisig";
    let own = fs::read(release.path().join(signature))?;
    fs::copy(
        stranger.path().join(signature),
        release.path().join(signature),
    )?;
    ledger
        .check("a signature by another key", refused("", "is not signed"))
        .await?;
    fs::write(release.path().join(signature), own)?;

    let key = site.enrolment_key().await?;
    let whole = format!("{line} --key {key}");
    ledger
        .check(
            "it installs the package, enrols and starts the agent",
            async {
                let said = machine.run(&whole).await?;
                machine
                    .wait_for(AGENT, "ActiveState", "active", STARTS_WITHIN)
                    .await?;
                ensure!(!said.contains(&key), "the key is shown: {said}");
                Ok(((), said.trim().replace('\n', "; ")))
            },
        )
        .await?;
    let device = Resident::of(&machine, site.engine.docker()).await?;
    ledger
        .check("the device converges", async {
            let image = Image::healthy_web(format!("web-{}", place::unique()), "one");
            let image = image.push(&site.registry, "one").await?;
            let target = target(&[service("web", &image.reference(), &json!({}))]);
            device.converges(&site, &target).await?;
            Ok((
                (),
                device.wait_running("web").await?["Id"]
                    .as_str()
                    .unwrap_or_default()
                    .chars()
                    .take(12)
                    .collect(),
            ))
        })
        .await?;
    ledger
        .check("a second run changes nothing", async {
            let (before, lives) = (machine.run(CONTENT).await?, device.lives().await?);
            let said = machine.run(&whole).await?;
            let after = machine.run(CONTENT).await?;
            ensure!(before == after, "before: {before}, after: {after}");
            ensure!(lives == device.lives().await?, "containers changed");
            Ok(((), said.trim().replace('\n', "; ")))
        })
        .await?;
    ledger
        .check(
            "`--uninstall --purge` leaves the machine as it was; its containers go on",
            async {
                let lives = device.lives().await?;
                machine.run(&format!("{line} --uninstall --purge")).await?;
                machine
                    .run("systemctl daemon-reload; systemctl reset-failed")
                    .await?;
                let left = inventory(&machine).await?;
                let changed: Vec<&String> = left.symmetric_difference(&empty).collect();
                ensure!(changed.is_empty(), "changed: {changed:#?}");
                ensure!(lives == device.lives().await?, "containers changed");
                Ok((
                    (),
                    format!(
                        "{} containers with the same ids and start times",
                        lives.len()
                    ),
                ))
            },
        )
        .await
}
