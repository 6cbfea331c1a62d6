//! The checker must be able to fail: wrongs are planted through the engine, and each is found.

use anyhow::Context;
use http::Method;
use serde_json::{Value, json};

use super::check::{Bounds, Violation, always, between, intent_first, quiet, same_end};
use super::journal::open_intents;
use super::lane::Lane;
use super::scenario::{SERVICE, Scenario};
use crate::docker::Docker;
use crate::site::CONVERGES_WITHIN;
use crate::wait::wait_for;

fn rules(found: &[Violation]) -> Vec<&str> {
    let mut rules: Vec<&str> = found.iter().map(|one| one.rule.as_str()).collect();
    rules.dedup();
    rules
}

/// Runs another container that says it is the device's, made like the one that serves.
async fn plant_double(docker: &Docker, container: &Value) -> anyhow::Result<String> {
    let mut labels = container["Config"]["Labels"].clone();
    labels["io.holdfast.generation"] = json!("99");
    let body = json!({
        "Image": container["Image"], "Labels": labels,
        "HostConfig": { "RestartPolicy": { "Name": "always" } },
    });
    docker.run("planted", &body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_wrong_is_found() -> anyhow::Result<()> {
    let mut lane = Lane::start().await?;
    lane.prepare(Scenario::Swap).await?;
    lane.device.agent.kill9();
    let docker = lane.site.engine.docker().clone();
    let container = lane.device.running(SERVICE).await?;
    let image = container["Image"].as_str().context("an image")?.to_owned();
    let bounds = Bounds {
        generation: 1,
        last_good: Some(image.clone()),
        target: Some("sha256:never-made".to_owned()),
        replaces: true,
        allowed: [image.clone()].into(),
        fails: Some(image.clone()),
        ..Bounds::default()
    };
    let right = lane.snapshot().await?;
    assert_eq!(always(&right, &bounds), []);
    assert_eq!(lane.witness.check(&docker).await?, []);
    lane.watch.begin();
    assert_eq!(between(&lane.watch.seen(), &bounds), []);

    // A second one runs and would come back, and is ahead of the target.
    lane.device.tap.forget();
    let tapped = Docker::at(&lane.device.tap.socket());
    let double = plant_double(&tapped, &container).await?;
    assert_eq!(
        rules(&always(&lane.snapshot().await?, &bounds)),
        ["I1", "I2", "I6"]
    );
    let strict = Bounds {
        allowed: [].into(),
        ..bounds.clone()
    };
    let found = always(&lane.snapshot().await?, &strict);
    assert!(rules(&found).contains(&"I5"), "{found:?}");
    wait_for("the double to be seen", CONVERGES_WITHIN, async || {
        rules(&between(&lane.watch.seen(), &bounds)) == ["I1"]
    })
    .await;
    for _ in 0..3 {
        tapped
            .post(&format!("/containers/{double}/restart?t=0"))
            .await?;
    }
    wait_for("the attempts to be seen", CONVERGES_WITHIN, async || {
        rules(&between(&lane.watch.seen(), &bounds)).contains(&"I13")
    })
    .await;
    assert_eq!(rules(&quiet(&lane.device.tap.mutations())), ["I8"]);
    let open = open_intents(&lane.device.agent.state()).await?;
    assert_eq!(rules(&intent_first(open, "create")), ["I11"]);
    let cast = super::state::Cast::default();
    let end = lane.snapshot().await?.signature(&cast);
    assert_eq!(rules(&same_end(&right.signature(&cast), &end, 0)), ["I7"]);
    docker.remove(&double).await?;

    // The good one is stopped before there is another; then nothing is left of it.
    let id = container["Id"].as_str().context("an id")?;
    docker.post(&format!("/containers/{id}/stop?t=0")).await?;
    assert_eq!(rules(&always(&lane.snapshot().await?, &bounds)), ["I3"]);
    docker.remove(id).await?;
    docker.remove_image(&image).await?;
    assert_eq!(
        rules(&always(&lane.snapshot().await?, &bounds)),
        ["I4", "I3"]
    );

    // What is not ours is changed.
    lane.witness.spoil_volume()?;
    assert_eq!(rules(&lane.witness.check(&docker).await?), ["I10"]);
    let name = lane.witness.name().to_owned();
    let call = format!("/containers/{name}-created/rename?name={name}-other");
    docker.call(Method::POST, &call, None).await?;
    let found = lane.witness.check(&docker).await?;
    assert_eq!(rules(&found), ["I9", "I10"], "{found:?}");
    Ok(())
}
