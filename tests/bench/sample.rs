//! A few runs of every measurement, so that none of them rots: what happened is judged, times are not.

use crate::downtime::{App, rounds};
use crate::rollback::{Trouble, rollbacks};
use crate::{handover, resolution, steady};

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
