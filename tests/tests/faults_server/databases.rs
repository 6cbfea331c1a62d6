//! Faults C10, C11 and C18: a PostgreSQL that dies, stands still, loses connections or is slow.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use holdfast_tests::api::Options;
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::place;
use holdfast_tests::postgres::{self, Postgres};
use holdfast_tests::process::Signal;
use holdfast_tests::tcp_tap::{Mode, TcpTap};

use super::{Office, RECOVERS_WITHIN, REFUSES_WITHIN, judged, tap, walk, write};

/// A control API whose way to its `PostgreSQL` goes through a tap.
async fn tapped() -> anyhow::Result<(Postgres, TcpTap, Office)> {
    let cluster = Postgres::start().await?;
    let (tap, url) = tap(&cluster).await?;
    let office = Office::open(Options {
        database: Some(url),
        ..Options::default()
    });
    let office = office.await?;
    Ok((cluster, tap, office))
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_a_database_that_stands_still_drops_connections_or_is_slow_costs_only_writes()
-> anyhow::Result<()> {
    let (_cluster, tap, mut office) = tapped().await?;
    // It stands still: more writers come than there are connections. Whoever has none is told to come back; the
    // others are done when it goes on.
    tap.set(Mode::Stall);
    let names: Vec<String> = (0..30).map(|_| place::unique()).collect();
    let (told, mut refusals) = tokio::sync::mpsc::unbounded_channel();
    let writes = join_all(names.iter().map(|name| {
        let (api, told) = (&office.api, told.clone());
        async move {
            let answer = write(api, name).await?;
            let done = judged(&answer)?;
            if !done {
                let _ = told.send(());
            }
            anyhow::Ok(done)
        }
    }));
    let meanwhile = async {
        let clock = Stopwatch::start();
        for _ in 0..15 {
            let refusal = tokio::time::timeout(REFUSES_WITHIN, refusals.recv()).await;
            refusal.context("writers are left waiting")?;
            office.polls().await?;
        }
        ensure!(clock.elapsed() < REFUSES_WITHIN, "{:?}", clock.elapsed());
        tap.set(Mode::Open);
        anyhow::Ok(())
    };
    let (written, meanwhile) = tokio::join!(writes, meanwhile);
    meanwhile?;
    for (name, done) in names.into_iter().zip(written) {
        if done? {
            office.acknowledged.push(name);
        }
    }
    office.recovers().await?;
    // Every connection ends in the middle of something.
    tap.set(Mode::EndsAfter { bytes: 2_500 });
    for _ in 0..40 {
        office.writes().await?;
        office.polls().await?;
    }
    tap.set(Mode::Open);
    office.recovers().await?;
    // It is away.
    tap.set(Mode::Cut);
    for _ in 0..5 {
        ensure!(!office.writes().await?);
        office.polls().await?;
    }
    tap.set(Mode::Open);
    office.recovers().await?;
    // It is slow: a transaction takes seconds.
    tap.set(Mode::Slow {
        bytes_per_second: 400,
    });
    let slow = Stopwatch::start();
    office.writes().await?;
    ensure!(
        slow.elapsed() > Duration::from_millis(500),
        "it is not slow"
    );
    ensure!(slow.elapsed() < REFUSES_WITHIN, "{:?}", slow.elapsed());
    office.polls().await?;
    tap.set(Mode::Open);
    office.recovers().await?;
    office.has_all().await
}

/// Asks the program to end, which it does as one that was asked to.
async fn ends_within(office: &mut Office, within: Duration) -> anyhow::Result<()> {
    let process = office.api.process();
    process.signal(Signal::TERM);
    let status = process.wait_for_end(within).await?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c18_asked_to_end_it_ends_also_when_its_database_does_not_answer() -> anyhow::Result<()> {
    let (_cluster, tap, mut office) = tapped().await?;
    tap.set(Mode::Stall);
    let stuck = async {
        let _ = write(&office.api, "stuck").await;
    };
    let polled = office.polls();
    // The write is under way: the poll came after it.
    tokio::select! {
        () = stuck => anyhow::bail!("the database answered"),
        polled = polled => polled?,
    }
    ends_within(&mut office, Duration::from_secs(35)).await?;
    // In the ordinary case it takes no time.
    tap.set(Mode::Open);
    office.api.process().restart()?;
    office.api.ready().await?;
    ends_within(&mut office, Duration::from_secs(10)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_standby_takes_over_without_the_loss_of_anything_acknowledged() -> anyhow::Result<()>
{
    let mut primary = Postgres::start().await?;
    let standby = primary.standby().await?;
    let url = primary.database().await?;
    let (before, name) = url.rsplit_once('/').context("a URL")?;
    let second = standby.url(name);
    let (_, address) = second.rsplit_once('@').context("an address")?;
    // Drivers take whichever of the two can be written to.
    let both = format!("{before},{address}?target_session_attrs=read-write");
    let mut office = Office::open(Options {
        database: Some(both),
        ..Options::default()
    })
    .await?;
    for _ in 0..20 {
        ensure!(office.writes().await?);
    }
    // Whoever writes at that instant is told to come back, and nothing else.
    let names: Vec<String> = (0..200).map(|_| place::unique()).collect();
    let writes = join_all(names.iter().map(|name| async {
        let answer = write(&office.api, name).await?;
        judged(&answer)
    }));
    let killed = async {
        while walk(&office.api, "/tokens").await?.len() < 30 {}
        // What `pg_ctl -m immediate stop` sends: everything ends, nothing is written.
        primary.process().signal(Signal::QUIT);
        primary.process().wait_for_end(RECOVERS_WITHIN).await?;
        office.polls().await
    };
    let (written, killed) = tokio::join!(writes, killed);
    killed?;
    for (name, done) in names.into_iter().zip(written) {
        if done? {
            office.acknowledged.push(name);
        }
    }
    ensure!(!office.writes().await?, "a standby takes no writes");
    office.polls().await?;
    let promoted = postgres::query(&second, "select pg_promote()").await?;
    ensure!(promoted == ["t"], "{promoted:?}");
    office.recovers().await?;
    office.has_all().await
}
