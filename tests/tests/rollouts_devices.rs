//! Faults C21 to C28: devices that lie, stand still, are away, change their minds or talk out of turn, in rollouts
//! over simulated fleets.

mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::time::Timestamp;
use holdfast_tests::fleet::device::Manner;
use holdfast_tests::fleet::machine::Nature;
use holdfast_tests::fleet::{Order, Pace};
use holdfast_tests::simulation::{Setting, Simulation};
use serde_json::{Value, json};
use sim::{count, settled};

/// Some minutes of a policy, ten seconds each, and a busy machine.
const IN_TIME: Duration = Duration::from_mins(3);
/// What is drawn is drawn from this.
const SEED: u64 = 20_261_122;
const YEAR_MS: i64 = 365 * 24 * 3_600_000;
const ENDS: [&str; 5] = ["succeeded", "rolled_back", "failed", "paused", "cancelled"];

fn troubles(simulation: &Simulation, nature: Nature, numbers: std::ops::Range<usize>) {
    for device in &simulation.fleet.devices()[numbers] {
        device.set_nature(nature);
    }
}

/// Switches devices off, and waits until the API takes them for away.
async fn switch_off(
    simulation: &Simulation,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<()> {
    for device in &simulation.fleet.devices()[numbers.clone()] {
        device.set_online(false);
    }
    let wanted = numbers.len();
    simulation
        .watch("devices to be taken for away", IN_TIME, async |_| {
            let devices = simulation.api().get("/devices?limit=200").await?.good()?;
            let items = devices.json["items"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let away = items
                .iter()
                .filter(|device| device["presence"] == "offline");
            Ok((away.count() == wanted).then_some(()))
        })
        .await
}

/// Begins a rollout of what was pushed, and waits for its end in this state.
async fn travel(simulation: &Simulation, state: &str) -> anyhow::Result<(i64, Value)> {
    let id = simulation.begin().await?;
    let shown = simulation.until(id, &ENDS, IN_TIME).await?;
    assert_eq!(shown["state"], state, "{shown}");
    Ok((id, shown))
}

/// So many devices stand so, word by word.
fn assert_counts(shown: &Value, wanted: &[(&str, usize)]) {
    let found: Vec<_> = wanted
        .iter()
        .map(|(word, _)| (*word, count(shown, word)))
        .collect();
    assert_eq!(found, wanted, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c21_devices_whose_clocks_are_years_off_count_by_the_servers_clock() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(Order::of(20, SEED))).await?;
    simulation.policy(&json!({ "batch_size": 20 })).await?;
    for (number, device) in simulation.fleet.devices().iter().enumerate() {
        device.set_clock_off_ms(if number.is_multiple_of(2) {
            YEAR_MS
        } else {
            -YEAR_MS
        });
    }
    troubles(&simulation, Nature::Failing, 0..2);
    simulation.push_troubled("new");
    let begun = simulation.now_ms();
    let (id, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 18), ("failed", 2)]);
    let timeline = simulation
        .api()
        .get(&format!("/rollouts/{id}/timeline?limit=200"))
        .await?
        .good()?;
    let lines = timeline.json["items"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert!(!lines.is_empty());
    for line in lines {
        let at: Timestamp = serde_json::from_value(line["at"].clone())?;
        let within = begun - 60_000..=simulation.now_ms() + 60_000;
        assert!(within.contains(&at.as_millis()), "{line}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c22_a_device_that_lies_is_never_counted_as_healthy() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::hurried(Order::of(10, SEED))).await?;
    let policy = json!({ "batch_size": 10, "max_failure_rate": 40, "min_success": 60 });
    simulation.policy(&policy).await?;
    troubles(&simulation, Nature::Lying, 0..3);
    let new = simulation.push_troubled("new");
    let (id, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 7), ("failed", 3)]);
    let rows = simulation.look().await?;
    for member in rows.of(id).filter(|member| member.standing == "verified") {
        let device = simulation
            .fleet
            .device(&member.device)
            .expect("one of ours");
        assert!(
            device.runs(new.content),
            "{} runs something else",
            device.uuid
        );
    }
    // Nor is what it lied about a place to go back to.
    for device in &simulation.fleet.devices()[..3] {
        let mut told = rows.told_by(id).filter(|(uuid, ..)| *uuid == device.uuid);
        let (_, generation, told) = told.next().expect("it was told");
        assert_eq!(
            told.verified_at, None,
            "generation {generation} of {}",
            device.uuid
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c23_a_device_that_never_gets_there_is_late_and_the_rollout_ends() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::hurried(Order::of(10, SEED))).await?;
    let policy = json!({ "batch_size": 5, "max_failure_rate": 40, "min_success": 60 });
    simulation.policy(&policy).await?;
    troubles(&simulation, Nature::Stuck, 0..2);
    simulation.push_troubled("new");
    let (_, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 8), ("failed", 2)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c24_half_of_the_fleet_is_away_and_the_rollout_ends_and_they_catch_up() -> anyhow::Result<()>
{
    let (simulation, _) = settled(Setting::hurried(Order::of(40, SEED))).await?;
    simulation
        .policy(&json!({ "batch_size": 10, "offline_devices": "skip" }))
        .await?;
    switch_off(&simulation, 0..20).await?;
    let new = simulation.push("new");
    let (_, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 20), ("skipped", 20)]);
    assert_eq!(simulation.fleet.running(&new), 20);
    for device in simulation.fleet.devices() {
        device.set_online(true);
    }
    simulation.runs(&new, 40, IN_TIME).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c24_devices_that_are_waited_for_are_lost_in_bounded_time_and_found_again()
-> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::hurried(Order::of(20, SEED))).await?;
    let policy = json!({ "batch_size": 20, "max_failure_rate": 40, "min_success": 50 });
    simulation.policy(&policy).await?;
    switch_off(&simulation, 0..10).await?;
    let new = simulation.push("new");
    let (_, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 10), ("lost", 10)]);
    for device in simulation.fleet.devices() {
        device.set_online(true);
    }
    simulation.runs(&new, 20, IN_TIME).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_a_batch_of_which_nobody_answers_is_no_success() -> anyhow::Result<()> {
    let mut order = Order::of(12, SEED);
    order.labels = |number| {
        let ring = if number < 3 { "canary" } else { "wide" };
        BTreeMap::from([("ring".to_owned(), ring.to_owned())])
    };
    let (simulation, old) = settled(Setting::hurried(order)).await?;
    let policy = json!({
        "update_strategy": "canary", "stages": [{ "selector": { "ring": "canary" } }], "batch_size": 9,
    });
    simulation.policy(&policy).await?;
    switch_off(&simulation, 0..3).await?;
    let new = simulation.push("new");
    let (_, shown) = travel(&simulation, "paused").await?;
    assert_eq!(shown["opened"], 1, "{shown}");
    assert_counts(&shown, &[("lost", 3), ("waiting", 9)]);
    assert_eq!(simulation.fleet.told(&new).len(), 0);
    assert_eq!(simulation.fleet.running(&old), 12);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c26_one_flapping_device_neither_counts_nor_stops_a_fleet() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::hurried(Order::of(10, SEED))).await?;
    let policy = json!({ "batch_size": 10, "batch_delay_minutes": 1, "health_timeout_minutes": 2 });
    simulation.policy(&policy).await?;
    troubles(&simulation, Nature::Flapping, 0..1);
    simulation.push_troubled("new");
    let (_, shown) = travel(&simulation, "succeeded").await?;
    assert_counts(&shown, &[("verified", 9), ("failed", 1)]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c28_reports_that_come_twice_or_out_of_order_change_nothing() -> anyhow::Result<()> {
    let mut order = Order::of(30, SEED);
    order.pace = Pace {
        heartbeat: Duration::from_millis(500),
        ..order.pace
    };
    let (simulation, _) = settled(Setting::of(order)).await?;
    simulation
        .policy(&json!({ "batch_size": 10, "max_failure_rate": 20, "min_success": 80 }))
        .await?;
    for (number, device) in simulation.fleet.devices().iter().enumerate() {
        let manners = [Manner::Orderly, Manner::Twice, Manner::Shuffled];
        device.set_manner(manners[number % manners.len()]);
    }
    // Old reports of a version that was refused come in while a good one is on its way.
    troubles(&simulation, Nature::Failing, 0..30);
    simulation.push_troubled("bad");
    let (_, shown) = travel(&simulation, "rolled_back").await?;
    assert_counts(&shown, &[("returned", 10), ("waiting", 20)]);
    let new = simulation.push("new");
    let (_, shown) = travel(&simulation, "succeeded").await?;
    assert_eq!(count(&shown, "verified"), 30, "{shown}");
    simulation.runs(&new, 30, IN_TIME).await
}
