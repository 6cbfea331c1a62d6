//! Faults C07 to C20 of a running control API: its disk, its database, its clock and its end.

#[path = "faults_server/databases.rs"]
mod databases;
#[path = "faults_server/disks.rs"]
mod disks;
#[path = "faults_server/migrations.rs"]
mod migrations;

use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::api::{Answer, Api, Options};
use holdfast_tests::clock::Stopwatch;
use holdfast_tests::place;
use holdfast_tests::postgres::Postgres;
use holdfast_tests::tcp_tap::TcpTap;
use holdfast_tests::wall::Wall;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// From the end of a fault to the first write: a few attempts.
const RECOVERS_WITHIN: Duration = Duration::from_secs(30);
/// A poll beside a store that stands still.
const POLLED_WITHIN: Duration = Duration::from_secs(3);
/// The queue for a connection, a statement's time-out, and what a busy machine adds.
const REFUSES_WITHIN: Duration = Duration::from_mins(1);

/// A control API with a device that polls.
struct Office {
    api: Api,
    uuid: String,
    token: String,
    etag: String,
    /// Names of operator tokens that it acknowledged.
    acknowledged: Vec<String>,
}

impl Office {
    async fn open(options: Options) -> anyhow::Result<Self> {
        let api = Api::start(options).await?;
        let wish = json!({ "name": "test" });
        let key = api.post("/enrolment-keys", &wish).await?.good()?;
        let key = key.json["key"].clone();
        let body = json!({ "name": "paper", "labels": {}, "agentVersion": "0",
            "platform": { "os": "linux", "architecture": "amd64" } });
        let made = api
            .call_as(key.as_str(), Method::POST, "/enroll", &[], Some(&body))
            .await?
            .good()?;
        let text = |name: &str| made.json[name].as_str().map(str::to_owned).context("text");
        let mut office = Self {
            uuid: text("uuid")?,
            token: text("token")?,
            etag: String::new(),
            acknowledged: Vec::new(),
            api,
        };
        let polled = office.poll().await?.good()?;
        let etag = polled.header("etag").context("an ETag")?;
        etag.clone_into(&mut office.etag);
        Ok(office)
    }

    async fn poll(&self) -> anyhow::Result<Answer> {
        let (path, etag) = (format!("/devices/{}/state", self.uuid), &*self.etag);
        let headers = [("if-none-match", etag)];
        self.api
            .call_as(Some(&self.token), Method::GET, &path, &headers, None)
            .await
    }

    /// A device is answered, soon.
    async fn polls(&self) -> anyhow::Result<()> {
        let clock = Stopwatch::start();
        let polled = self.poll().await?;
        ensure!(polled.status == StatusCode::NOT_MODIFIED, "{polled:?}");
        ensure!(clock.elapsed() < POLLED_WITHIN, "{:?}", clock.elapsed());
        Ok(())
    }

    /// Makes one operator token; false when the API says that it cannot now. Anything else is an error.
    async fn writes(&mut self) -> anyhow::Result<bool> {
        let name = place::unique();
        let answer = write(&self.api, &name).await?;
        let done = judged(&answer)?;
        if done {
            self.acknowledged.push(name);
        }
        Ok(done)
    }

    /// It writes again by itself.
    async fn recovers(&mut self) -> anyhow::Result<()> {
        let clock = Stopwatch::start();
        while !self.writes().await? {
            ensure!(clock.elapsed() < RECOVERS_WITHIN, "it does not recover");
        }
        Ok(())
    }

    /// Everything that was acknowledged is there, each with its audit row, and the log is unbroken.
    async fn has_all(&self) -> anyhow::Result<()> {
        has_all(&self.api, &self.acknowledged).await
    }
}

async fn write(api: &Api, name: &str) -> anyhow::Result<Answer> {
    let body = json!({ "name": name, "role": "viewer" });
    api.post("/tokens", &body).await
}

/// Whether a write was done; it may be refused only with 503 and when to come back.
fn judged(answer: &Answer) -> anyhow::Result<bool> {
    match answer.status {
        StatusCode::CREATED => Ok(true),
        StatusCode::SERVICE_UNAVAILABLE => {
            ensure!(answer.json["code"] == "busy", "{answer:?}");
            ensure!(answer.header("retry-after").is_some(), "{answer:?}");
            Ok(false)
        }
        _ => anyhow::bail!("{answer:?}"),
    }
}

async fn walk(api: &Api, path: &str) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    loop {
        let join = if path.contains('?') { '&' } else { '?' };
        let page = format!("{path}{join}limit=200{cursor}");
        let page = api.get(&page).await?.good()?.json;
        found.extend(page["items"].as_array().context("items")?.clone());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}

async fn has_all(api: &Api, acknowledged: &[String]) -> anyhow::Result<()> {
    let tokens = walk(api, "/tokens").await?;
    let names: Vec<&str> = tokens.iter().filter_map(|it| it["name"].as_str()).collect();
    for name in acknowledged {
        ensure!(names.contains(&name.as_str()), "{name} is lost");
    }
    let audit = walk(api, "/audit").await?;
    let rows = audit.iter().filter(|row| row["action"] == "token.create");
    let rows = rows.count();
    ensure!(rows == tokens.len(), "{} tokens, {rows} rows", tokens.len());
    let verdict = api.get("/audit/verify").await?.good()?.json;
    ensure!(verdict["unbroken"] == true, "{verdict}");
    Ok(())
}

async fn tap(cluster: &Postgres) -> anyhow::Result<(TcpTap, String)> {
    let url = cluster.database().await?;
    let (before, name) = url.rsplit_once('/').context("a URL")?;
    let (_, address) = before.split_once('@').context("an address")?;
    let tap = TcpTap::start(address).await?;
    let url = format!("postgres://postgres@{}/{name}", tap.address());
    Ok((tap, url))
}

#[tokio::test(flavor = "multi_thread")]
async fn c19_a_clock_that_jumps_by_a_year_locks_nobody_out() -> anyhow::Result<()> {
    let cluster = Postgres::start().await?;
    let year = Duration::from_hours(400 * 24);
    for database in [None, Some(cluster.database().await?)] {
        let wall = Wall::new()?;
        let options = Options {
            database,
            env: wall.env(0)?,
            ..Options::default()
        };
        let mut office = Office::open(options).await?;
        let path = format!("/devices/{}/current-state", office.uuid);
        let jumps: [fn(&Wall, Duration) -> anyhow::Result<()>; 4] =
            [Wall::advance, Wall::set_back, Wall::set_back, Wall::advance];
        for (sequence, jump) in jumps.into_iter().enumerate() {
            jump(&wall, year)?;
            office.polls().await?;
            ensure!(office.writes().await?);
            let report = json!({ "sequence": sequence + 1, "agentVersion": "0",
                "generation": 0, "status": "converged" });
            let token = Some(office.token.as_str());
            let report = office
                .api
                .call_as(token, Method::PUT, &path, &[], Some(&report));
            ensure!(report.await?.status == StatusCode::NO_CONTENT);
            let kept = office.api.get(&path).await?.good()?.json;
            ensure!(kept["sequence"] == sequence + 1, "{kept}");
            // A start in the other time finds nothing too old or not yet begun either.
            let process = office.api.process();
            ensure!(process.ended().is_none());
            process.restart()?;
            office.api.ready().await?;
        }
        office.has_all().await?;
    }
    Ok(())
}
