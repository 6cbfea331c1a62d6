//! What policies say, over simulated fleets: budgets, windows, another try; and how rollouts begin by a release of a
//! fleet and by a registry's webhook.

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context;
use holdfast_tests::fleet::machine::Nature;
use holdfast_tests::fleet::{Order, Pace};
use holdfast_tests::invariants::rows::Rows;
use holdfast_tests::simulation::{Setting, Simulation};
use reqwest::Method;
use serde_json::{Value, json};
use sim::{count, settled};

/// A rollout of a small fleet on a busy machine.
const SOON: Duration = Duration::from_mins(2);
/// What is drawn is drawn from this.
const SEED: u64 = 20_261_123;
const ENDS: [&str; 5] = ["succeeded", "rolled_back", "failed", "paused", "cancelled"];
const MINUTE_MS: i64 = 60_000;

/// So many devices, three sites in turn, that talk often.
fn of_sites(many: usize) -> Order {
    let mut order = Order::of(many, SEED);
    order.labels = |number| BTreeMap::from([("site".to_owned(), format!("site-{}", number % 3))]);
    order.pace = Pace {
        wait_s: 1,
        heartbeat: Duration::from_millis(700),
        ..order.pace
    };
    order
}

/// The most devices of a site that were on their way at once, after any line of a rollout's log.
fn most_at_once(simulation: &Simulation, rows: &Rows, id: i64) -> BTreeMap<String, usize> {
    let mut on_their_way: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut most = BTreeMap::new();
    for line in rows.log.iter().filter(|line| line.rollout == id) {
        let Some(uuid) = line.device.as_deref() else {
            continue;
        };
        let device = simulation.fleet.device(uuid).expect("one of ours");
        let site = format!("site-{}", device.number % 3);
        let there = on_their_way.entry(site.clone()).or_default();
        if line.what == "told" {
            there.insert(uuid);
        } else {
            there.remove(uuid);
        }
        let known = most.entry(site).or_insert(0);
        *known = there.len().max(*known);
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn of_each_site_no_more_devices_than_the_budget_are_ever_on_their_way() -> anyhow::Result<()>
{
    for budget in [1, 2] {
        let (simulation, _) = settled(Setting::of(of_sites(12))).await?;
        let policy = json!({
            "update_strategy": "immediate", "disruption_budget": { "label": "site", "most": budget },
        });
        simulation.policy(&policy).await?;
        let new = simulation.push("new");
        let id = simulation.begin().await?;
        let shown = simulation.until(id, &ENDS, SOON).await?;
        assert_eq!(shown["state"], "succeeded", "{shown}");
        assert_eq!(count(&shown, "verified"), 12, "{shown}");
        let rows = simulation.look().await?;
        let most = most_at_once(&simulation, &rows, id);
        assert_eq!(most.len(), 3, "{most:?}");
        // All of it is used, and no more.
        assert!(most.values().all(|most| *most == budget), "{most:?}");
        simulation.runs(&new, 12, SOON).await?;
    }
    Ok(())
}

/// The time of day, in UTC.
fn time_of_day(at_ms: i64) -> String {
    let minutes = (at_ms / MINUTE_MS).rem_euclid(24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_closes_in_the_middle_holds_the_next_batch_until_it_opens()
-> anyhow::Result<()> {
    let setting = Setting {
        // A clock of their own, that this test moves.
        skews_ms: vec![0],
        ..Setting::of(of_sites(6))
    };
    let (simulation, _) = settled(setting).await?;
    let now = simulation.now_ms();
    let window = json!({
        "start": time_of_day(now - 30 * MINUTE_MS), "end": time_of_day(now + 10 * MINUTE_MS),
        "timezone": "UTC",
    });
    let policy = json!({
        "batch_size": 2, "approve_batches": true, "windows": [window], "health_timeout_minutes": 30,
        "update_strategy": "scheduled",
    });
    simulation.policy(&policy).await?;
    let new = simulation.push("new");
    let id = simulation.begin().await?;
    let verified = async |rows: &Rows, wanted: usize| {
        let verified = rows.of(id).filter(|member| member.standing == "verified");
        Ok((verified.count() == wanted).then_some(()))
    };
    let first = async |rows: &Rows| verified(rows, 2).await;
    simulation.watch("the first batch", SOON, first).await?;
    let wall = simulation.wall.as_ref().context("a clock of their own")?;
    wall.advance(Duration::from_mins(20))?;
    // Leave does not open it.
    simulation.act(id, "approve-batch").await?.good()?;
    simulation
        .watch("the closed window to be waited for", SOON, async |_| {
            let shown = simulation.rollout(id).await?;
            assert_eq!(shown["state"], "running", "{shown}");
            Ok((shown["waits_for"] == "its window is closed").then_some(()))
        })
        .await?;
    let shown = simulation.shown(id).await?;
    assert_eq!((&shown["opened"], count(&shown, "waiting")), (&json!(1), 4));
    assert_eq!(simulation.fleet.told(&new).len(), 2);
    // A day later it is open again.
    wall.advance(Duration::from_mins(24 * 60 - 20))?;
    let second = async |rows: &Rows| verified(rows, 4).await;
    simulation.watch("the second batch", SOON, second).await?;
    simulation.act(id, "approve-batch").await?.good()?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    simulation.runs(&new, 6, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_devices_are_tried_again_and_no_other_one_is_touched() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(of_sites(12))).await?;
    let policy = json!({ "batch_size": 6, "max_failure_rate": 50, "min_success": 50 });
    simulation.policy(&policy).await?;
    let failing = &simulation.fleet.devices()[..3];
    for device in failing {
        device.set_nature(Nature::Failing);
    }
    let new = simulation.push_troubled("new");
    let id = simulation.begin().await?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(
        (count(&shown, "verified"), count(&shown, "failed")),
        (9, 3),
        "{shown}"
    );
    let generations = |rows: &Rows| -> BTreeMap<String, i64> {
        let others = simulation.fleet.devices().iter().skip(3);
        let targets =
            others.filter_map(|one| Some((one.uuid.clone(), *rows.targets.get(&one.uuid)?)));
        targets.collect()
    };
    let before = generations(&simulation.look().await?);
    assert_eq!(before.len(), 9);
    // They fail once more, as nothing is mended yet.
    simulation.act(id, "retry").await?.good()?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(
        (count(&shown, "verified"), count(&shown, "failed")),
        (9, 3),
        "{shown}"
    );
    for device in failing {
        device.set_nature(Nature::Good);
    }
    simulation.act(id, "retry").await?.good()?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(count(&shown, "verified"), 12, "{shown}");
    assert_eq!(generations(&simulation.look().await?), before);
    simulation.runs(&new, 12, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_of_a_fleet_travels_in_batches_and_a_bad_one_goes_back() -> anyhow::Result<()> {
    let mut order = of_sites(12);
    order.labels = |number| {
        let fleet = if number < 10 { "shops" } else { "kiosks" };
        BTreeMap::from([("fleet".to_owned(), fleet.to_owned())])
    };
    let simulation = Simulation::start(Setting::of(order)).await?;
    for name in ["shops", "kiosks"] {
        let made = simulation
            .api()
            .post("/fleets", &json!({ "name": name }))
            .await?;
        assert!([201, 409].contains(&made.status.as_u16()), "{}", made.json);
    }
    simulation.policy(&json!({ "batch_size": 5 })).await?;
    let policies = simulation.api().get("/policies").await?.good()?;
    let policy = &policies.json["items"][0]["id"];
    let path = format!("/fleets/shops/target-state?policy={policy}");
    let release = async |reference: &str| -> anyhow::Result<i64> {
        let service = holdfast_tests::site::service("web", reference, &json!({}));
        let body = holdfast_tests::site::target(&[service]);
        let made = simulation.api().put(&path, &body).await?.good()?;
        made.json["rollout"]
            .as_i64()
            .with_context(|| made.json.to_string())
    };
    let old = simulation.push("old");
    let id = release(&old.reference).await?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(
        (count(&shown, "verified"), &shown["opened"]),
        (10, &json!(2)),
        "{shown}"
    );
    simulation.runs(&old, 10, SOON).await?;
    for device in simulation.fleet.devices() {
        device.set_nature(Nature::Failing);
    }
    let bad = simulation.push_troubled("bad");
    let id = release(&bad.reference).await?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "rolled_back", "{shown}");
    assert_eq!(
        (count(&shown, "returned"), count(&shown, "waiting")),
        (5, 5),
        "{shown}"
    );
    assert_eq!(simulation.fleet.told(&bad).len(), 5);
    // The other fleet heard of none of it.
    simulation.runs(&old, 10, SOON).await?;
    let kiosks = &simulation.fleet.devices()[10..];
    assert!(kiosks.iter().all(|device| !device.was_told(old.content)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registrys_webhook_begins_what_reaches_every_device() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(of_sites(10))).await?;
    simulation.policy(&json!({ "batch_size": 4 })).await?;
    let new = simulation.push("new");
    let (image, _) = new.reference.rsplit_once(':').context("a tag")?;
    let body =
        json!({ "image": image, "tag": new.tag, "digest": format!("sha256:{}", "0".repeat(64)) });
    let told = async |secret: &str| {
        let path = "/webhooks/docker-registry";
        simulation
            .api()
            .call_patiently(secret, Method::POST, path, &body)
            .await
    };
    let refused = told("a-secret-that-nobody-configured").await?;
    assert_eq!(refused.status.as_u16(), 401);
    for _ in 0..3 {
        let answer = told(simulation.webhook_secret()).await?;
        assert!(
            [200, 202].contains(&answer.status.as_u16()),
            "{}",
            answer.json
        );
    }
    let rollouts = async || -> anyhow::Result<Vec<Value>> {
        let page = simulation.api().get("/rollouts").await?.good()?;
        Ok(page.json["items"].as_array().cloned().unwrap_or_default())
    };
    let id = simulation
        .watch("a rollout to begin", SOON, async |_| {
            let all = rollouts().await?;
            Ok(all.first().and_then(|one| one["id"].as_i64()))
        })
        .await?;
    let shown = simulation.until(id, &ENDS, SOON).await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(
        (count(&shown, "verified"), &shown["opened"]),
        (10, &json!(3)),
        "{shown}"
    );
    // What the registry says counts, not what the push said.
    assert_eq!(shown["digest"], new.digest.to_string());
    assert_eq!(rollouts().await?.len(), 1);
    simulation.runs(&new, 10, SOON).await
}
