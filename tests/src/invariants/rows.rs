//! The rows that the invariants are about, as they stood in the control API's database at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, anyhow};
use holdfast_proto::image::ConfigDigest;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use serde_json::Value;

use crate::apt;

/// What stands between two values of a row that `sqlite3` prints, between two rows, and for no value: characters
/// that no column of these has.
const BETWEEN: [char; 3] = ['\u{1f}', '\u{1e}', '\u{2}'];

/// Each query's rows begin with its name, so that one answer may hold all of them.
const QUERIES: [&str; 7] = [
    "select 'rollout', id, scope, registry, repository, tag, image, rules, state, opened, since, ended_at
     from rollouts where id >= FIRST order by id",
    "select 'member', rollout_id, device, batch, standing, budget_group, generation, back_to
     from rollout_devices where rollout_id >= FIRST order by rollout_id, device",
    "select 'log', rollout_id, device, what, detail, at from rollout_log
     where rollout_id >= FIRST order by id",
    "select 'told', d.uuid, g.generation, g.cause, g.at, g.verified_at, g.body from generations g
     join devices d on d.id = g.device_id order by d.uuid, g.generation",
    "select 'target', d.uuid, t.generation from targets t join devices d on d.id = t.device_id",
    "select 'report', d.uuid, r.generation, r.sequence from reports r join devices d on d.id = r.device_id",
    "select 'image', i.registry, i.repository, i.approval, a.digest from images i
     left join approved_digests a on a.image_id = i.id",
];

/// A rollout.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// Which devices it is for.
    pub scope: String,
    /// The image's registry, path and tag.
    pub image: (String, String, String),
    /// What it carries; nothing of its own if it is a fleet's release.
    pub digest: Option<String>,
    /// The same, for each platform.
    pub contents: BTreeSet<ConfigDigest>,
    /// What its policy said.
    pub rules: Rules,
    /// Where it is.
    pub state: String,
    /// How many batches were opened.
    pub opened: i64,
    /// Since when it is where it is.
    pub since: i64,
    /// When it ended.
    pub ended_at: Option<i64>,
}

/// What a policy said, as far as the invariants need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// For so long a device stays healthy before it counts.
    pub soak_ms: i64,
    /// A device that is not healthy after so long failed.
    pub health_timeout_ms: i64,
    /// So many of a hundred devices are verified before the next batch.
    pub min_success_percent: i64,
    /// At most so many devices of a group are unavailable.
    pub budget: Option<i64>,
    /// Whether it may wait for people or for a window.
    pub waits_for_people: bool,
}

/// A device of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The rollout.
    pub rollout: i64,
    /// The device.
    pub device: String,
    /// Its batch.
    pub batch: i64,
    /// How it stands, in one word.
    pub standing: String,
    /// Its group in the budget.
    pub group: Option<String>,
    /// The generation that it was told last.
    pub generation: Option<i64>,
    /// The generation to which it goes back.
    pub back_to: Option<i64>,
}

/// One line of a rollout's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The rollout.
    pub rollout: i64,
    /// The device, if it is about one.
    pub device: Option<String>,
    /// What happened.
    pub what: String,
    /// In words.
    pub detail: String,
    /// When.
    pub at: i64,
}

/// What a device was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Why.
    pub cause: String,
    /// When.
    pub at: i64,
    /// When the device said that all of it runs.
    pub verified_at: Option<i64>,
    /// Registry, path and content of each service that has one.
    pub contents: Vec<(String, String, ConfigDigest)>,
}

/// The rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// When they were read, by the lab's account of the API's clock.
    pub now: i64,
    /// How far the clocks of replicas may be apart.
    pub skew_ms: i64,
    /// Rollouts by their numbers.
    pub rollouts: BTreeMap<i64, Rollout>,
    /// Their devices.
    pub members: Vec<Member>,
    /// Their logs, in order.
    pub log: Vec<Line>,
    /// What each device was told, by generation.
    pub told: BTreeMap<(String, i64), Told>,
    /// The generation of each device's target.
    pub targets: BTreeMap<String, i64>,
    /// The generation and the number of each device's last report.
    pub reports: BTreeMap<String, (i64, i64)>,
    /// Images that people decided about: the decision, and the contents that were approved.
    pub images: BTreeMap<(String, String), (String, BTreeSet<String>)>,
    /// Rollouts in which somebody had devices tried again: those may move to another batch.
    pub retried: BTreeSet<i64>,
}

impl Rows {
    /// The devices of a rollout.
    pub fn of(&self, rollout: i64) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.rollout == rollout)
    }

    /// What a rollout told devices, with the device and the generation.
    pub fn told_by(&self, rollout: i64) -> impl Iterator<Item = (&str, i64, &Told)> {
        let release = self
            .rollouts
            .get(&rollout)
            .filter(|one| one.digest.is_none());
        let is_release = release.is_some();
        // A release gives its number, and two fleets count for themselves.
        let cause = release.map_or_else(
            || format!("rollout:{rollout}"),
            |release| format!("release:{}", release.image.2),
        );
        let members = self.of(rollout).filter(|_| is_release);
        let members: BTreeSet<&str> = members.map(|one| one.device.as_str()).collect();
        let told = self.told.iter().filter(move |((device, _), told)| {
            told.cause == cause && (!is_release || members.contains(device.as_str()))
        });
        told.map(|((device, generation), told)| (device.as_str(), *generation, told))
    }
}

/// Where the rows are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a file, which is only read.
    Sqlite(PathBuf),
    /// In a `PostgreSQL` database.
    Postgres(String),
}

impl Source {
    /// Reads everything about rollouts from this number on, as it stands at one moment.
    ///
    /// # Errors
    /// When it cannot be read, or is not of the shape that is known.
    pub async fn read(&self, first: i64, now: i64) -> anyhow::Result<Rows> {
        let (source, queries) = (
            self.clone(),
            QUERIES.map(|one| one.replace("FIRST", &first.to_string())),
        );
        let cells = tokio::task::spawn_blocking(move || source.cells(&queries)).await??;
        let mut rows = Rows {
            now,
            ..Rows::default()
        };
        for row in &cells {
            rows.add(&Cells(row))
                .with_context(|| format!("the row {row:?}"))?;
        }
        Ok(rows)
    }

    fn cells(&self, queries: &[String]) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        match self {
            Self::Sqlite(file) => {
                let mut command = Command::new(apt::require(&["sqlite3"])?.remove(0));
                let [value, row, none] = BETWEEN.map(String::from);
                command.args(["-readonly", "-batch", "-cmd", ".timeout 10000"]);
                command.args(["-separator", &value, "-newline", &row, "-nullvalue", &none]);
                command
                    .arg(file)
                    .arg(format!("begin; {}; commit;", queries.join("; ")));
                let text = apt::run(&mut command)?;
                let rows = text.split(BETWEEN[1]).filter(|row| !row.is_empty());
                let cell = |cell: &str| (cell != none).then(|| cell.to_owned());
                Ok(rows
                    .map(|row| row.split(BETWEEN[0]).map(cell).collect())
                    .collect())
            }
            Self::Postgres(url) => {
                let mut client = postgres::Client::connect(url, postgres::NoTls)?;
                let begin = "begin isolation level repeatable read read only";
                let messages =
                    client.simple_query(&format!("{begin}; {}; commit", queries.join("; ")))?;
                let rows = messages.iter().filter_map(|message| match message {
                    postgres::SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                });
                let cells = |row: &postgres::SimpleQueryRow| {
                    (0..row.len())
                        .map(|at| row.get(at).map(str::to_owned))
                        .collect()
                };
                Ok(rows.map(cells).collect())
            }
        }
    }
}

/// One row's values.
struct Cells<'a>(&'a [Option<String>]);

impl Cells<'_> {
    fn text(&self, at: usize) -> anyhow::Result<&str> {
        self.0.get(at).and_then(Option::as_deref).context("a value")
    }

    fn int(&self, at: usize) -> anyhow::Result<i64> {
        Ok(self.text(at)?.parse()?)
    }

    fn opt_int(&self, at: usize) -> anyhow::Result<Option<i64>> {
        match self.0.get(at).context("a column")? {
            None => Ok(None),
            Some(text) => Ok(Some(text.parse()?)),
        }
    }

    fn owned(&self, at: usize) -> anyhow::Result<String> {
        self.text(at).map(str::to_owned)
    }

    fn opt(&self, at: usize) -> Option<String> {
        self.0.get(at).cloned().flatten()
    }

    fn json(&self, at: usize) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(self.text(at)?)?)
    }
}

impl Rows {
    fn add(&mut self, row: &Cells<'_>) -> anyhow::Result<()> {
        match row.text(0)? {
            "rollout" => {
                let (digest, contents) = match row.opt(6) {
                    Some(image) => carried(&image)?,
                    None => (None, BTreeSet::new()),
                };
                let rollout = Rollout {
                    scope: row.owned(2)?,
                    image: (row.owned(3)?, row.owned(4)?, row.owned(5)?),
                    digest,
                    contents,
                    rules: rules(&row.json(7)?)?,
                    state: row.owned(8)?,
                    opened: row.int(9)?,
                    since: row.int(10)?,
                    ended_at: row.opt_int(11)?,
                };
                self.rollouts.insert(row.int(1)?, rollout);
            }
            "member" => {
                self.members.push(Member {
                    rollout: row.int(1)?,
                    device: row.owned(2)?,
                    batch: row.int(3)?,
                    standing: row.owned(4)?,
                    group: row.opt(5),
                    generation: row.opt_int(6)?,
                    back_to: row.opt_int(7)?,
                });
            }
            "log" => self.log.push(Line {
                rollout: row.int(1)?,
                device: row.opt(2),
                what: row.owned(3)?,
                detail: row.owned(4)?,
                at: row.int(5)?,
            }),
            "told" => {
                let told = Told {
                    cause: row.owned(3)?,
                    at: row.int(4)?,
                    verified_at: row.opt_int(5)?,
                    contents: contents(row.text(6)?)?,
                };
                self.told.insert((row.owned(1)?, row.int(2)?), told);
            }
            "target" => {
                self.targets.insert(row.owned(1)?, row.int(2)?);
            }
            "report" => {
                self.reports
                    .insert(row.owned(1)?, (row.int(2)?, row.int(3)?));
            }
            "image" => {
                let place = (row.owned(1)?, row.owned(2)?);
                let known = self.images.entry(place).or_default();
                row.text(3)?.clone_into(&mut known.0);
                known.1.extend(row.opt(4));
            }
            other => anyhow::bail!("nobody asked for {other}"),
        }
        Ok(())
    }
}

/// The digest of what a rollout carries, and its content for each platform.
fn carried(image: &str) -> anyhow::Result<(Option<String>, BTreeSet<ConfigDigest>)> {
    let image: Value = serde_json::from_str(image)?;
    let platforms = image["platforms"].as_array().context("platforms")?;
    let contents = platforms.iter().map(|one| {
        let content = one["configDigest"].clone();
        serde_json::from_value(content).context("a config digest")
    });
    let digest = image["digest"].as_str().context("a digest")?;
    Ok((
        Some(digest.to_owned()),
        contents.collect::<anyhow::Result<_>>()?,
    ))
}

fn rules(rules: &Value) -> anyhow::Result<Rules> {
    let int = |name: &str| {
        rules[name]
            .as_i64()
            .with_context(|| format!("{name} in {rules}"))
    };
    let is = |name: &str| {
        rules[name]
            .as_bool()
            .with_context(|| format!("{name} in {rules}"))
    };
    Ok(Rules {
        soak_ms: int("soak_ms")?,
        health_timeout_ms: int("health_timeout_ms")?,
        min_success_percent: int("min_success_percent")?,
        budget: rules["budget"]["most"].as_i64(),
        waits_for_people: is("approve_batches")? || is("manual_start")?,
    })
}

/// Registry, path and content of each service of a target.
fn contents(body: &str) -> anyhow::Result<Vec<(String, String, ConfigDigest)>> {
    let target = TargetState::parse(body.as_bytes())
        .map_err(|errors| anyhow!("a target that no device takes: {errors:?}"))?;
    let pins = target
        .services()
        .filter_map(|(_, service)| service.pin.clone());
    let contents = pins.filter_map(|pin| {
        let content = pin.expected?.config_digest;
        Some((pin.registry, pin.repository, content))
    });
    Ok(contents.collect())
}

/// A moment for people.
pub(super) fn when(at: i64) -> String {
    Timestamp::from_millis(at).to_string()
}
