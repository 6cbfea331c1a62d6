//! Images in the swap, on the real engine: what stays, what comes back, what goes, and what is not ours.

use holdfast_tests::docker::Docker;
use holdfast_tests::engine::Engine;
use holdfast_tests::images::{Image, Pushed};
use holdfast_tests::serving::{Serving, life};
use holdfast_tests::site::CONVERGES_WITHIN;
use holdfast_tests::wait::try_wait_for;
use serde_json::Value;

/// The image's id, which is its configuration's digest on the classic store.
fn config(image: &Pushed) -> String {
    image.child("linux/amd64").config_digest.clone()
}

async fn is_there(docker: &Docker, image: &Pushed) -> Result<Value, String> {
    let found = docker.image(&config(image)).await;
    let found = found.map_err(|error| error.to_string())?;
    found.ok_or_else(|| format!("no image {}", config(image)))
}

async fn comes(docker: &Docker, image: &Pushed) -> anyhow::Result<Value> {
    try_wait_for("the image to be there", CONVERGES_WITHIN, async || {
        is_there(docker, image).await
    })
    .await
}

async fn goes(docker: &Docker, image: &Pushed) -> anyhow::Result<()> {
    try_wait_for(
        "the image to be gone",
        CONVERGES_WITHIN,
        async || match is_there(docker, image).await {
            Err(_) => Ok(()),
            Ok(found) => Err(found["RepoTags"].to_string()),
        },
    )
    .await
}

/// The tags that the agent gave an image.
fn keep_tags(image: &Value) -> Vec<&str> {
    let tags = image["RepoTags"].as_array().into_iter().flatten();
    tags.filter_map(Value::as_str)
        .filter(|tag| tag.starts_with("holdfast.local/keep/"))
        .collect()
}

fn pulls(serving: &Serving) -> usize {
    let calls = serving.device.tap.calls();
    let pull = |path: &str| path.ends_with("/images/create");
    calls.iter().filter(|call| pull(&call.path)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_three_updates_what_runs_and_what_was_good_before_are_left() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let docker = serving.device.docker();
    let two = serving.good("two").await?;
    let three = serving.good("three").await?;
    let four = serving.good("four").await?;
    for version in [&two, &three, &four] {
        serving.converge(version).await?;
    }
    goes(docker, &serving.one).await?;
    goes(docker, &two).await?;
    for kept in [&three, &four] {
        let image = comes(docker, kept).await?;
        let tags = keep_tags(&image);
        assert_eq!(tags.len(), 1, "{tags:?}");
        let (_, digits) = tags[0].rsplit_once(':').unwrap_or_default();
        assert!(config(kept).contains(digits), "{tags:?}");
    }
    serving.says(&["\"rollbackReady\":true"]).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_of_what_has_no_tag_takes_nothing_and_nothing_is_fetched_again()
-> anyhow::Result<()> {
    let serving = Serving::on(Engine::private().await?).await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.says(&["\"rollbackReady\":true"]).await;
    let before = pulls(&serving);
    let docker = serving.device.docker();
    docker.cli(&["image", "prune", "-f"]).await?;
    for kept in [&serving.one, &two] {
        let found = is_there(docker, kept).await;
        assert!(found.is_ok(), "{found:?}");
    }
    serving.at_rest().await?;
    assert_eq!(pulls(&serving), before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_back_removed_by_force_is_fetched_again_and_what_runs_is_not_touched()
-> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    serving.says(&["\"rollbackReady\":true"]).await;
    let before = serving.only_container().await?;
    let docker = serving.device.docker();
    docker.cli(&["rmi", "-f", &config(&serving.one)]).await?;
    let image = comes(docker, &serving.one).await?;
    try_wait_for("its tag", CONVERGES_WITHIN, async || {
        let found = is_there(docker, &serving.one).await?;
        match keep_tags(&found).len() {
            1 => Ok(()),
            other => Err(format!("{other} tags of {image}")),
        }
    })
    .await?;
    serving.says(&["\"rollbackReady\":true"]).await;
    let after = serving.only_container().await?;
    assert_eq!(life(&before), life(&after));
    assert_eq!(serving.page().await, Ok("two".to_owned()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_somebody_named_or_runs_stays_when_its_service_is_done_with_it()
-> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let docker = serving.device.docker();
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    let mine = format!("{}:mine", serving.repository);
    docker.cli(&["tag", &config(&serving.one), &mine]).await?;
    let name = format!("{}-theirs", serving.repository);
    let theirs = ["run", "-d", "--name", &name, &config(&two)];
    docker.cli(&theirs).await?;
    let outcome = async {
        let three = serving.good("three").await?;
        let four = serving.good("four").await?;
        for version in [&three, &four] {
            serving.converge(version).await?;
        }
        // What somebody named keeps that name alone; what somebody runs keeps the agent's, its only one.
        try_wait_for("the agent's tag to go", CONVERGES_WITHIN, async || {
            let found = is_there(docker, &serving.one).await?;
            match keep_tags(&found).len() {
                0 => Ok(()),
                other => Err(format!("{other} tags")),
            }
        })
        .await?;
        serving.at_rest().await?;
        let named = is_there(docker, &serving.one).await;
        assert!(named.is_ok(), "{named:?}");
        let used = is_there(docker, &two).await;
        assert!(used.is_ok(), "{used:?}");
        serving.device.tap.forget();
        serving.at_rest().await?;
        assert_eq!(serving.device.tap.mutations(), [], "it is asked for once");
        anyhow::Ok(())
    }
    .await;
    docker.remove(&name).await?;
    docker.cli(&["rmi", &mine]).await?;
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_failed_its_gate_goes_with_the_target_that_named_it() -> anyhow::Result<()> {
    let serving = Serving::start().await?;
    let docker = serving.device.docker();
    let bad = Image::never_healthy(&serving.repository, "bad");
    let bad = serving.push(bad, "bad").await?;
    let generation = serving.set(&bad).await?;
    serving.reports(&generation, "holding").await;
    serving.says(&["\"rejected\":{"]).await;
    comes(docker, &bad).await?;
    let two = serving.good("two").await?;
    serving.converge(&two).await?;
    goes(docker, &bad).await?;
    comes(docker, &serving.one).await?;
    Ok(())
}
