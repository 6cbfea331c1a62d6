//! A few runs of every measurement, so that none of them rots: what happened is judged, times are not.

use std::time::Duration;

use holdfast_tests::binaries;
use holdfast_tests::tcp_tap::Mode;
use holdfast_tests::tls_front::Line;

use crate::downtime::{App, rounds};
use crate::rollback::{Trouble, rollbacks};
use crate::transport::{capped, kills, memory, over, speed, stalls};
use crate::{footprint, handover, resolution, rollout, steady};

#[tokio::test(flavor = "multi_thread")]
async fn swaps_of_all_three_kinds_can_be_measured() -> anyhow::Result<()> {
    for app in [App::Obeys, App::Ignores] {
        assert_eq!(rounds(app, 2).await?.counts(), [2, 2, 2]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_a_service_is_handed_over() -> anyhow::Result<()> {
    let seen = handover::updates(3).await?;
    assert_eq!(seen.failed, 0, "{:?}", seen.failures);
    assert!(seen.requests > 3, "{seen:?}");
    assert_eq!(seen.pages, ["0", "1", "2", "3"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rollbacks_succeed_without_api_and_registry() -> anyhow::Result<()> {
    assert_eq!(rollbacks(Trouble::Offline, 3).await?.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rollbacks_succeed_on_a_full_disk() -> anyhow::Result<()> {
    assert_eq!(rollbacks(Trouble::DiskFull, 3).await?.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_at_rest_changes_and_writes_nothing() -> anyhow::Result<()> {
    let steady = steady::reconciles(50).await?;
    assert!(steady.reconciles >= 50, "{steady:?}");
    assert_eq!(steady.mutations, [], "{steady:?}");
    assert_eq!(steady.disk_bytes, 0, "{steady:?}");
    assert!(steady.changed_files.is_empty(), "{steady:?}");
    assert!(steady.handles.1 <= steady.handles.0 + 2, "{steady:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_services_can_be_resolved_and_measured() -> anyhow::Result<()> {
    let times = resolution::rounds(1).await?;
    let of = [times.first, times.kept, times.confirmed, times.heads];
    assert_eq!(of.map(|figures| figures.len()), [1; 4]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_stand_still_leave_nothing_behind() -> anyhow::Result<()> {
    let found = stalls(3, 1).await?;
    assert_eq!((found.ours.len(), found.engines.len()), (3, 1));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn few_bytes_come_twice_over_a_bad_line() -> anyhow::Result<()> {
    for bytes in [
        over(Mode::EndsAfter { bytes: 1_000_000 }, 4_000_000).await?,
        kills(5, 8_000_000).await?,
    ] {
        let wasted = bytes.ours.saturating_sub(bytes.image);
        assert!(wasted * 20 < bytes.image, "{bytes:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_over_a_good_line_can_be_measured() -> anyhow::Result<()> {
    let (ours, engines) = speed(1, 2_000_000).await?;
    assert_eq!((ours.len(), engines.len()), (1, 1));
    assert!(memory(2_000_000).await? > 0);
    assert!(capped(2_000_000, 2_000_000).await? > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_a_fleet_can_be_measured() -> anyhow::Result<()> {
    let travels = rollout::pushes(1).await?;
    let times = [
        travels.first,
        travels.last,
        travels.script_first,
        travels.script_last,
    ];
    let [first, last, script_first, script_last] = times.map(|times| times[0]);
    assert!(first <= last && script_first <= script_last);
    let cost = rollout::cost(20).await?;
    assert!(!cost.processor.is_zero() && cost.rss_kb > 0, "{cost:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_at_rest_can_be_weighed() -> anyhow::Result<()> {
    let agent = binaries::agent()?;
    let one = footprint::rest(&agent, &agent, 3, Line::Tls, true).await?;
    let weight = one.weigh(Duration::from_secs(5)).await?;
    assert!(
        weight.rss_kb >= weight.pss_kb && weight.pss_kb > 1_000,
        "{weight:?}"
    );
    assert!(weight.processor < weight.over, "{weight:?}");
    assert!(weight.file > 1_000_000 && weight.wire > 0, "{weight:?}");
    assert_eq!(weight.written, 0, "{weight:?}");
    // The goal; whether it is kept does not depend on the machine.
    let bytes = footprint::poll_bytes(5).await?;
    assert!((100..1_000).contains(&bytes), "{bytes}");
    Ok(())
}
