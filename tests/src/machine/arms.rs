//! Agents built for other processors, on the real engine: what a device of each kind does with its target.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::checks::Ledger;
use super::emulation;
use super::root::{Architecture, Root};
use crate::images::Image;
use crate::place;
use crate::serving::{Serving, life};
use crate::site::Site;
use crate::wait::try_wait_for;

/// What agents are built for, and what runs them here when this machine is another. The first Raspberry Pi's processor is
/// an arm1176: a program for a newer one ends on it at once.
pub const TARGETS: [(&str, &[&str]); 6] = [
    ("x86_64-unknown-linux-gnu", &[]),
    ("x86_64-unknown-linux-musl", &[]),
    (GNU_ARM64, &["qemu-aarch64-static"]),
    ("aarch64-unknown-linux-musl", &["qemu-aarch64-static"]),
    (
        "armv7-unknown-linux-musleabihf",
        &["qemu-arm-static", "-cpu", "cortex-a7"],
    ),
    (
        "arm-unknown-linux-musleabihf",
        &["qemu-arm-static", "-cpu", "arm1176"],
    ),
];
/// Needs its system's libraries; they are a machine's.
const GNU_ARM64: &str = "aarch64-unknown-linux-gnu";
/// Of each of these one must be there: what most devices are, and the oldest that must not be forgotten.
const NEEDED: [&[&str]; 2] = [
    &[GNU_ARM64, "aarch64-unknown-linux-musl"],
    &["arm-unknown-linux-musleabihf"],
];

/// The file of a target's agent: `DIR/TARGET/holdfast-agent`, or `DIR/holdfast-agent_VERSION_TARGET` as in a release.
pub fn file(cross: &Path, target: &str) -> anyhow::Result<Option<PathBuf>> {
    let alone = cross.join(target).join("holdfast-agent");
    if alone.exists() {
        return Ok(Some(alone));
    }
    let ends = format!("_{target}");
    for entry in fs::read_dir(cross).with_context(|| format!("read {}", cross.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("holdfast-agent_") && name.ends_with(&ends) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A target's agent as a program of this machine.
pub fn program(cross: &Path, target: &str, folder: &Path) -> anyhow::Result<Option<PathBuf>> {
    let known = TARGETS.iter().find(|(name, _)| *name == target);
    let (Some((_, words)), Some(binary)) = (known, file(cross, target)?) else {
        return Ok(None);
    };
    if words.is_empty() {
        return Ok(Some(binary));
    }
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    if target == GNU_ARM64 {
        let root = folder.join("root");
        Root::of(Architecture::Arm64)?.unpack(&root)?;
        words.extend(["-L".to_owned(), root.display().to_string()]);
    }
    emulation::wrapper(folder, &words, &binary).map(Some)
}

/// One journey for each agent that is there.
pub async fn journeys(ledger: &mut Ledger<'_>, cross: &Path) {
    for targets in NEEDED {
        let there = targets
            .iter()
            .any(|target| matches!(file(cross, target), Ok(Some(_))));
        ledger
            .at(&targets.join(" or "), async |_: &mut Ledger<'_>| {
                ensure!(there, "there is no agent for it in {}", cross.display());
                Ok(())
            })
            .await;
    }
    for (target, words) in TARGETS {
        let folder = place::temporary("cross");
        let program =
            folder.and_then(|folder| Ok((program(cross, target, folder.path())?, folder)));
        let found = match program {
            Ok((Some(program), folder)) => Ok((program, folder)),
            Ok((None, _)) => continue,
            Err(error) => Err(error),
        };
        let how = if words.is_empty() {
            "native".to_owned()
        } else {
            words.join(" ")
        };
        ledger
            .at(
                &format!("{target} ({how})"),
                async |ledger: &mut Ledger<'_>| {
                    let (program, _folder) = found?;
                    journey(ledger, &program).await
                },
            )
            .await;
    }
}

async fn journey(ledger: &mut Ledger<'_>, program: &Path) -> anyhow::Result<()> {
    let serving = ledger
        .check("a device is enrolled, polls, pulls and converges", async {
            let site = Site::start().await?;
            let serving = Serving::at(site, |mut options| {
                options.program = Some(program.to_owned());
                options
            })
            .await?;
            let found = serving.only_container().await?["Id"].to_string();
            Ok((serving, found.trim_matches('"').chars().take(12).collect()))
        })
        .await?;
    let two = serving.good("two").await?;
    ledger
        .check("another version takes its place", async {
            let before = life(&serving.only_container().await?);
            serving.converge(&two).await?;
            serving.serves("two").await;
            let after = life(&serving.only_container().await?);
            ensure!(before.0 != after.0, "the same container");
            Ok(((), "another container, the old one gone".to_owned()))
        })
        .await?;
    ledger
        .check(
            "a version that never becomes healthy goes, and the one before comes back",
            async {
                let before = serving.only_container().await?;
                let bad = serving
                    .push(Image::never_healthy(&serving.repository, "bad"), "bad")
                    .await?;
                let generation = serving.set(&bad).await?;
                let rejected = async || {
                    let report = serving.site.report(&serving.device.uuid).await;
                    let text = report.map_err(|error| error.to_string())?.to_string();
                    let words = [
                        "\"rejected\"".to_owned(),
                        format!("\"generation\":{generation}"),
                    ];
                    if words.iter().all(|word| text.contains(word)) {
                        Ok(())
                    } else {
                        Err(text)
                    }
                };
                try_wait_for("the rejection", crate::site::CONVERGES_WITHIN, rejected).await?;
                serving.serves("two").await;
                ensure!(
                    serving.device.running("web").await?["Id"] == before["Id"],
                    "another container serves"
                );
                Ok(((), "the very container of before".to_owned()))
            },
        )
        .await?;
    ledger
        .check("killed and started again, it touches nothing", async {
            let mut serving = serving;
            let before = life(&serving.only_container().await?);
            serving.device.agent.kill9();
            serving.device.agent.run()?;
            serving.at_rest().await?;
            ensure!(
                before == life(&serving.device.running("web").await?),
                "the container was touched"
            );
            Ok(((), "same id, same start time".to_owned()))
        })
        .await
}
