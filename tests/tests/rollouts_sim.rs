//! Rollouts over simulated fleets: the bad release, and faults C03 to C05 and C21 to C36 as far as they are of
//! rollouts. Real control APIs, real HTTP, real rows; while a rollout goes on, its invariants are looked at.

mod sim;

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_tests::campaign::{self, Place};
use holdfast_tests::fleet::Order;
use holdfast_tests::fleet::draw::Draw;
use holdfast_tests::fleet::machine::Nature;
use holdfast_tests::simulation::{Setting, Simulation};
use serde_json::{Value, json};
use sim::{count, settled};

/// A rollout of a small fleet whose devices all answer: a second or two for each batch on a busy machine.
const SOON: Duration = Duration::from_mins(2);

/// What is drawn is drawn from this; another number must do as well.
const SEED: u64 = 20_261_121;

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_release_stops_within_its_first_batches_and_every_touched_device_goes_back()
-> anyhow::Result<()> {
    const DEVICES: usize = 500;
    const FAILING: usize = 75;
    let (simulation, old) = settled(Setting::of(Order::of(DEVICES, SEED))).await?;
    let policy = json!({ "batch_percent": 5, "max_failure_rate": 10, "min_success": 90 });
    simulation.policy(&policy).await?;
    let failing = Draw::new(SEED).some(FAILING, DEVICES);
    for number in &failing {
        simulation.fleet.devices()[*number].set_nature(Nature::Failing);
    }
    let bad = simulation.push_troubled("bad");
    let id = simulation.begin().await?;
    let shown = simulation
        .until(id, &["rolled_back", "failed", "succeeded", "paused"], SOON)
        .await?;
    assert_eq!(shown["state"], "rolled_back", "{shown}");

    // Which batch has to stop it is known from who is in it: the first with more than 10 of 100 failing.
    let rows = simulation.look().await?;
    let mut batches: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
    for member in rows.of(id) {
        let device = simulation
            .fleet
            .device(&member.device)
            .expect("one of ours");
        let (all, fails) = batches.entry(member.batch).or_default();
        *all += 1;
        *fails += usize::from(failing.contains(&device.number));
    }
    assert!(
        batches.values().all(|(all, _)| *all == DEVICES / 20),
        "{batches:?}"
    );
    let stops = |(_, (all, fails)): &(&i64, &(usize, usize))| *fails >= 2 && fails * 100 > all * 10;
    let (last, _) = batches
        .iter()
        .find(stops)
        .expect("a batch with too many of them");
    assert_eq!(shown["opened"], last + 1, "{batches:?}");
    assert!(
        *last < 4,
        "75 of 500 are in one of the first batches: {batches:?}"
    );
    let touched: usize = batches.range(..=last).map(|(_, (all, _))| all).sum();
    assert_eq!(count(&shown, "returned"), touched);
    assert_eq!(count(&shown, "waiting"), DEVICES - touched);
    let told = simulation.fleet.told(&bad);
    let members = rows.of(id).filter(|member| member.batch <= *last);
    let members = members.map(|member| member.device.clone()).collect();
    assert_eq!(told, members, "nobody else ever heard of it");
    simulation.runs(&old, DEVICES, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_killed_at_random_instants_a_rollout_goes_on_where_it_was() -> anyhow::Result<()> {
    let outcome = campaign::run(Place::Alone, 6, SEED, &mut |_| {}).await?;
    assert_eq!(outcome.wrong, None);
    assert!(outcome.instants() >= 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c04_c05_replicas_that_die_or_stand_still_do_nothing_twice() -> anyhow::Result<()> {
    let outcome = campaign::run(Place::Replicas, 6, SEED, &mut |_| {}).await?;
    assert_eq!(outcome.wrong, None);
    assert!(outcome.instants() >= 6);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c33_of_two_rollouts_of_one_image_that_begin_at_once_one_is() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(Order::of(10, SEED))).await?;
    simulation.policy(&json!({ "batch_size": 5 })).await?;
    let new = simulation.push("new");
    let begun = futures_util::future::join_all((0..8).map(|_| simulation.try_begin())).await;
    let mut ids = Vec::new();
    for answer in begun {
        let answer = answer?;
        let status = answer.status.as_u16();
        assert!(
            [200, 201, 409].contains(&status),
            "{status} {}",
            answer.json
        );
        ids.extend(answer.json["id"].as_i64().filter(|_| status == 201));
    }
    // Whichever are made: at no moment are two active, and the last one ends well.
    let last = ids.iter().max().expect("one of them began");
    simulation.until(*last, &["succeeded"], SOON).await?;
    let rows = simulation.look().await?;
    for (id, rollout) in &rows.rollouts {
        let wanted = if id == last {
            "succeeded"
        } else {
            "superseded"
        };
        assert_eq!(rollout.state, wanted, "rollout {id} of {ids:?}");
    }
    simulation.runs(&new, 10, SOON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c34_devices_go_back_although_the_registry_lost_what_they_ran() -> anyhow::Result<()> {
    let (simulation, old) = settled(Setting::of(Order::of(20, SEED))).await?;
    simulation
        .policy(&json!({ "batch_size": 5, "max_failure_rate": 20, "min_success": 80 }))
        .await?;
    for device in simulation.fleet.devices() {
        device.set_nature(Nature::Failing);
    }
    simulation.push_troubled("bad");
    let id = simulation.begin().await?;
    simulation.shelf.forget(&old);
    simulation.shelf.set_away(true);
    let shown = simulation
        .until(id, &["rolled_back", "failed", "succeeded"], SOON)
        .await?;
    assert_eq!(shown["state"], "rolled_back", "{shown}");
    assert_eq!(
        (count(&shown, "returned"), count(&shown, "waiting")),
        (5, 15),
        "{shown}"
    );
    simulation.runs(&old, 20, SOON).await
}

/// What each event does to a rollout, by the status of the answer and the state after it.
async fn does(
    simulation: &Simulation,
    id: i64,
    what: &str,
    wanted: (u16, &str),
) -> anyhow::Result<()> {
    let answer = simulation.act(id, what).await?;
    let shown = simulation.rollout(id).await?;
    let state = shown["state"].as_str().unwrap_or_default();
    assert_eq!(
        (answer.status.as_u16(), state),
        wanted,
        "{what}: {}",
        answer.json
    );
    simulation.look().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn c35_every_event_means_something_or_is_refused_in_every_state() -> anyhow::Result<()> {
    let (simulation, old) = settled(Setting::of(Order::of(10, SEED))).await?;
    let policy =
        json!({ "batch_size": 5, "update_strategy": "manual", "health_timeout_minutes": 30 });
    simulation.policy(&policy).await?;
    for device in simulation.fleet.devices() {
        device.set_nature(Nature::Stuck);
    }
    simulation.push_troubled("stuck");
    let id = simulation.begin().await?;
    for refused in ["resume", "retry", "rollback"] {
        does(&simulation, id, refused, (409, "pending")).await?;
    }
    does(&simulation, id, "start", (200, "running")).await?;
    for refused in ["start", "resume", "retry"] {
        does(&simulation, id, refused, (409, "running")).await?;
    }
    simulation
        .watch("the first batch to be told", SOON, async |rows| {
            let told = rows.of(id).filter(|member| member.standing == "updating");
            Ok((told.count() == 5).then_some(()))
        })
        .await?;
    does(&simulation, id, "pause", (200, "paused")).await?;
    does(&simulation, id, "start", (409, "paused")).await?;
    does(&simulation, id, "resume", (200, "running")).await?;
    does(&simulation, id, "pause", (200, "paused")).await?;
    let back = simulation.act(id, "rollback").await?;
    assert_eq!(back.status.as_u16(), 200, "{}", back.json);
    // A way back is not gone back on.
    let again = simulation.act(id, "rollback").await?;
    assert_eq!(again.status.as_u16(), 409, "{}", again.json);
    let shown = simulation
        .until(id, &["rolled_back", "failed"], SOON)
        .await?;
    assert_eq!(shown["state"], "rolled_back", "{shown}");
    assert_eq!(
        (count(&shown, "returned"), count(&shown, "waiting")),
        (5, 5),
        "{shown}"
    );
    for refused in [
        "start",
        "pause",
        "resume",
        "cancel",
        "rollback",
        "approve-batch",
    ] {
        does(&simulation, id, refused, (409, "rolled_back")).await?;
    }
    simulation.runs(&old, 10, SOON).await?;
    // One that is cancelled before it began has touched nobody.
    let never = simulation.push("never");
    let id = simulation.begin().await?;
    does(&simulation, id, "cancel", (200, "cancelled")).await?;
    assert_eq!(simulation.fleet.told(&never).len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c36_a_tag_that_moves_meanwhile_moves_no_rollout() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(Order::of(10, SEED))).await?;
    let policy = json!({ "batch_size": 5, "approve_batches": true });
    simulation.policy(&policy).await?;
    let new = simulation.push("new");
    let id = simulation.begin().await?;
    simulation.runs(&new, 5, SOON).await?;
    let newer = simulation.push("newer");
    let verified = async |rows: &holdfast_tests::invariants::rows::Rows| {
        let verified = rows.of(id).filter(|member| member.standing == "verified");
        Ok((verified.count() == 5).then_some(()))
    };
    simulation
        .watch("the first batch to be verified", SOON, verified)
        .await?;
    let approved = simulation.act(id, "approve-batch").await?.good()?;
    assert_eq!(approved.json["approved"], 2, "{}", approved.json);
    let shown = simulation
        .until(id, &["succeeded", "failed", "paused"], SOON)
        .await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(shown["digest"], Value::String(new.digest.to_string()));
    simulation.runs(&new, 10, SOON).await?;
    assert_eq!(simulation.fleet.told(&newer).len(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c27_an_old_report_changes_nothing_of_the_rollout_that_superseded_its_own()
-> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::of(Order::of(10, SEED))).await?;
    let policy = json!({ "batch_size": 10, "health_timeout_minutes": 30 });
    simulation.policy(&policy).await?;
    for device in simulation.fleet.devices() {
        device.set_nature(Nature::Stuck);
    }
    let stuck = simulation.push_troubled("stuck");
    let first = simulation.begin().await?;
    simulation
        .watch("every device to be told", SOON, async |_| {
            Ok((simulation.fleet.told(&stuck).len() == 10).then_some(()))
        })
        .await?;
    let new = simulation.push("new");
    let second = simulation.begin().await?;
    for device in simulation.fleet.devices() {
        device.replay();
    }
    let shown = simulation
        .until(second, &["succeeded", "failed", "paused"], SOON)
        .await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(simulation.rollout(first).await?["state"], "superseded");
    for device in simulation.fleet.devices() {
        device.replay();
    }
    simulation.runs(&new, 10, SOON).await?;
    assert_eq!(count(&simulation.shown(second).await?, "verified"), 10);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c31_devices_that_are_deleted_or_moved_meanwhile_hold_nothing_up() -> anyhow::Result<()> {
    let (simulation, _) = settled(Setting::hurried(Order::of(20, SEED))).await?;
    simulation
        .policy(&json!({ "batch_size": 10, "health_timeout_minutes": 30 }))
        .await?;
    for number in [0, 1, 2] {
        simulation.fleet.devices()[number].set_nature(Nature::Stuck);
    }
    simulation.push_troubled("new");
    let id = simulation.begin().await?;
    let [deleted, retargeted, moved] =
        [0, 1, 2].map(|n| simulation.fleet.devices()[n].uuid.clone());
    // Each is taken away as soon as it is on its way, in whichever batch it is.
    let other = simulation.shelf.push("acme/other", "1", "other");
    simulation.approve("acme/other").await?;
    let (mut is_deleted, mut is_retargeted, mut is_moved) = (false, false, false);
    simulation
        .watch("three devices to be on their way", SOON, async |rows| {
            let members: Vec<_> = rows.of(id).cloned().collect();
            for member in members
                .iter()
                .filter(|member| member.standing == "updating")
            {
                let path = format!("/devices/{}", member.device);
                if member.device == deleted && !is_deleted {
                    is_deleted = true;
                    simulation
                        .api()
                        .call(http::Method::DELETE, &path, None)
                        .await?
                        .good()?;
                } else if member.device == retargeted && !is_retargeted {
                    is_retargeted = true;
                    simulation
                        .set_target(&member.device, &other.reference)
                        .await?;
                } else if member.device == moved && !is_moved {
                    is_moved = true;
                    let labels = json!({ "labels": { "fleet": "elsewhere" } });
                    simulation
                        .api()
                        .call(http::Method::PATCH, &path, Some(&labels))
                        .await?
                        .good()?;
                    // It gets well there: its own version goes on.
                    let device = simulation
                        .fleet
                        .device(&member.device)
                        .expect("one of ours");
                    device.set_nature(Nature::Good);
                    device.set_online(true);
                }
            }
            Ok((is_deleted && is_retargeted && is_moved).then_some(()))
        })
        .await?;
    let shown = simulation
        .until(id, &["succeeded", "rolled_back", "failed", "paused"], SOON)
        .await?;
    assert_eq!(shown["state"], "succeeded", "{shown}");
    assert_eq!(
        (count(&shown, "gone"), count(&shown, "verified")),
        (2, 18),
        "{shown}"
    );
    assert!(simulation.fleet.devices()[0].is_disowned());
    Ok(())
}
