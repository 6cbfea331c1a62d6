//! What the tests of simulated rollouts share.

use holdfast_tests::fleet::shelf::Version;
use holdfast_tests::simulation::{Setting, Simulation};
use serde_json::Value;

/// An installation in which every device runs a first version, and the API knows it.
pub(crate) async fn settled(setting: Setting) -> anyhow::Result<(Simulation, Version)> {
    let simulation = Simulation::start(setting).await?;
    let old = simulation.push("old");
    simulation.settle(&old).await?;
    Ok((simulation, old))
}

/// How many devices stand so.
pub(crate) fn count(shown: &Value, standing: &str) -> usize {
    let count = shown["counts"][standing].as_u64().unwrap_or(0);
    usize::try_from(count).unwrap_or(usize::MAX)
}
