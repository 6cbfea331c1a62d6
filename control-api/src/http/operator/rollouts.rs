//! Owns rollouts as operators see and order them: begun, shown with what they wait for, paused, ended, rolled back.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use holdfast_domain::principal::Principal;
use holdfast_domain::resolution::Key;
use holdfast_domain::rollout::state::State as RolloutState;
use holdfast_domain::rollout::tick::{Decision, decide};
use holdfast_proto::current::{CurrentState, PullReport};
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{Reference, ReferenceError, Repository};
use holdfast_proto::operator::Page;
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tokens::PageParams;
use crate::app::Shared;
use crate::clock;
use crate::http::auth::actor;
use crate::http::extract::{NumberPath, Params, Strict, cursor, next_cursor, page, page_size};
use crate::http::finish::RequestId;
use crate::http::problem::Refusal;
use crate::rollouts::begin::{self, Halt, Plan, Wanted};
use crate::rollouts::facts::{self, Circumstances};
use crate::rollouts::orders::{self, Order, Ordered};
use crate::store::rollouts::members::{self, Happening, Shown};
use crate::store::rollouts::{self as stored, Content, Stored};
use crate::store::{Tx, devices};

/// Longest reason that is kept.
const MAX_REASON: usize = 500;

/// A rollout to begin.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    /// The image with its tag, as targets name it: what the tag means now goes to the devices.
    image: String,
    /// The policy; the one that is for the image without, or batches of a tenth where none is.
    #[serde(default)]
    policy: Option<i64>,
    /// Only devices with these labels.
    #[serde(default)]
    selector: BTreeMap<String, String>,
    /// Only devices of this fleet.
    #[serde(default)]
    fleet: Option<String>,
}

/// How a rollout is begun.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BeginParams {
    /// Only say what would be.
    #[serde(default)]
    dry_run: bool,
}

/// A device by its identifier and its name.
#[derive(Debug, Serialize, ToSchema)]
pub struct NamedDevice {
    /// The device.
    #[schema(value_type = String)]
    uuid: DeviceId,
    /// What people call it.
    name: String,
}

/// A batch as it would be.
#[derive(Debug, Serialize, ToSchema)]
pub struct PreviewBatch {
    /// Its number, from 1.
    batch: usize,
    /// Who goes with it.
    devices: Vec<NamedDevice>,
}

/// A rollout as it would be.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutPreview {
    /// The digest that the tag means now; null for a release.
    digest: Option<String>,
    /// What devices have of it now.
    previous_digest: Option<String>,
    /// The policy's name.
    policy: String,
    /// Who goes when.
    batches: Vec<PreviewBatch>,
    /// Devices that run this content already.
    unchanged: usize,
    /// Devices for whose platform it has nothing.
    unsupported: usize,
}

/// A rollout, or a preview of one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum RolloutOrPreview {
    /// What was begun.
    Rollout(Box<RolloutSummary>),
    /// What would be.
    Preview(RolloutPreview),
}

/// How many devices stand how.
type Counts = BTreeMap<String, u64>;

/// A batch and how its devices stand.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchSummary {
    /// Its number, from 1.
    batch: usize,
    /// Whether it was opened.
    is_open: bool,
    /// How many of its devices stand how.
    #[schema(value_type = std::collections::HashMap<String, u64>)]
    counts: Counts,
}

/// A rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutSummary {
    /// Its number.
    id: i64,
    /// The fleet it is for, as `fleet:NAME`; empty for all devices.
    scope: String,
    /// The image with its tag; a release is written `fleet:NAME release N`.
    image: String,
    /// What it carries; null for a release.
    digest: Option<String>,
    /// What devices had when it began.
    previous_digest: Option<String>,
    /// Where it is: `pending`, `running`, `paused`, `rolling_back`, `succeeded`, `rolled_back`, `failed`,
    /// `cancelled`, `superseded`.
    #[schema(value_type = String)]
    state: RolloutState,
    /// Why it is there.
    reason: String,
    /// The policy that it was made by.
    policy: Option<i64>,
    /// How many batches were opened.
    opened: usize,
    /// How many may be, where somebody has to approve them.
    approved: usize,
    /// Who began it.
    created_by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Since when it is in its state.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

/// A rollout with its batches, and what it waits for.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDetail {
    /// The rollout.
    #[serde(flatten)]
    summary: RolloutSummary,
    /// What it waits for, in words; null when something is done at once.
    waits_for: Option<String>,
    /// Until when at the latest, if that is known.
    #[schema(value_type = Option<String>, format = DateTime)]
    waits_until: Option<Timestamp>,
    /// How many batches there are.
    batch_count: usize,
    /// How many devices stand how: `waiting`, `updating`, `verified`, `failed`, `lost`, `unchanged`, `skipped`,
    /// `gone`, `unsupported`, `readying`, `returning`, `returned`, `not_returned`.
    #[schema(value_type = std::collections::HashMap<String, u64>)]
    counts: Counts,
    /// The same by batch.
    batches: Vec<BatchSummary>,
    /// When it may end if everything goes well; null when it is over or rests.
    #[schema(value_type = Option<String>, format = DateTime)]
    estimated_end: Option<Timestamp>,
}

/// A device of a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutDevice {
    /// The device.
    #[schema(value_type = String)]
    uuid: DeviceId,
    /// What people call it; null when it is gone.
    name: Option<String>,
    /// Its batch, from 1.
    batch: usize,
    /// How it stands: see the counts of a rollout.
    standing: &'static str,
    /// Why, in words.
    why: String,
    /// Since when it stands so.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// The generation that it was told last.
    generation: Option<u64>,
    /// The generation that was verified on it before.
    back_to: Option<u64>,
    /// Images on their way to it, as it said last.
    pulls: Vec<PullReport>,
}

/// Something that happened in a rollout.
#[derive(Debug, Serialize, ToSchema)]
pub struct RolloutHappening {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// To which device, if to one.
    #[schema(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// What: how a device stands from then on, `told`, `batch_opened`, `batch_approved`, `turned`.
    what: String,
    /// In words.
    detail: String,
}

/// Which happenings are shown.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TimelineParams {
    /// Only of this device.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
}

/// Which rollouts are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListParams {
    /// Only those in this state.
    #[param(value_type = Option<String>)]
    state: Option<RolloutState>,
    /// Only those of this image, without a tag, however it is written: `redis`, `docker.io/library/redis`.
    image: Option<String>,
    /// Only those in this fleet.
    fleet: Option<String>,
    /// Only those in which this device takes part.
    #[param(value_type = Option<String>)]
    device: Option<DeviceId>,
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
}

/// Why something is ordered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// For the timeline and the audit log, at most 500 characters.
    #[serde(default)]
    reason: Option<String>,
}

impl From<Stored> for RolloutSummary {
    fn from(found: Stored) -> Self {
        Self {
            image: found.subject(),
            digest: match &found.content {
                Content::Image(image) => Some(image.top.digest().to_string()),
                Content::Release(_) => None,
            },
            id: found.id,
            scope: found.scope,
            previous_digest: found.previous_digest.map(|digest| digest.to_string()),
            state: found.state,
            reason: found.reason,
            policy: found.policy_id,
            opened: found.opened,
            approved: found.approved,
            created_by: found.created_by,
            created_at: found.created_at,
            since: found.since,
            ended_at: found.ended_at,
        }
    }
}

fn refused(halt: Halt) -> Refusal {
    match halt {
        Halt::Nothing(why) => Refusal::new(StatusCode::CONFLICT, "nothing_to_roll_out", why),
        Halt::NotApproved(why) => Refusal::new(StatusCode::FORBIDDEN, "image_not_approved", why),
        Halt::Unresolved(why) => Refusal::new(StatusCode::FAILED_DEPENDENCY, "unresolved", why),
        Halt::Store(error) => error.into(),
    }
}

/// Begins a rollout of what a tag means now, or says what it would be.
#[utoipa::path(
    post, path = "/api/v1/rollouts", tag = "rollouts", params(BeginParams), request_body = NewRollout,
    responses(
        (status = 200, description = "What it would be", body = RolloutPreview),
        (status = 201, description = "Begun", body = RolloutSummary),
    )
)]
pub async fn create(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Params(params): Params<BeginParams>,
    Strict(new): Strict<NewRollout>,
) -> Result<(StatusCode, Json<RolloutOrPreview>), Refusal> {
    let reference: Reference = new
        .image
        .parse()
        .map_err(|error| Refusal::invalid_field("/image", format!("{error}")))?;
    if reference.digest().is_some() {
        let detail = "write a tag: devices are found by the tag in their targets";
        return Err(Refusal::invalid_field("/image", detail));
    }
    let wanted = Wanted {
        key: Key::of(&reference),
        policy: new.policy,
        selector: new.selector,
        fleet: new.fleet,
        actor: actor(&principal, &request_id),
        is_ordered: true,
    };
    if params.dry_run {
        let plan = begin::preview(&app, &wanted).await.map_err(refused)?;
        let preview = app
            .store
            .read(move |tx| Ok::<_, Refusal>(preview(tx, &plan)?))
            .await?;
        return Ok((StatusCode::OK, Json(RolloutOrPreview::Preview(preview))));
    }
    let id = begin::begin(&app, &wanted).await.map_err(refused)?;
    let found = app
        .store
        .read(move |tx| stored::find(tx, id)?.ok_or_else(Refusal::not_found))
        .await?;
    let summary = RolloutOrPreview::Rollout(Box::new(found.into()));
    Ok((StatusCode::CREATED, Json(summary)))
}

fn preview(tx: &mut Tx<'_>, plan: &Plan) -> Result<RolloutPreview, crate::store::StoreError> {
    let mut batches = Vec::new();
    for (at, members) in plan.batches.iter().enumerate() {
        let mut named = Vec::new();
        for uuid in members {
            if let Some(device) = devices::find(tx, *uuid)? {
                named.push(NamedDevice {
                    uuid: *uuid,
                    name: device.name,
                });
            }
        }
        batches.push(PreviewBatch {
            batch: at + 1,
            devices: named,
        });
    }
    Ok(RolloutPreview {
        digest: match &plan.content {
            Content::Image(image) => Some(image.top.digest().to_string()),
            Content::Release(_) => None,
        },
        previous_digest: plan.previous.map(|digest| digest.to_string()),
        policy: plan.policy.input.name.clone(),
        batches,
        unchanged: plan.unchanged.len(),
        unsupported: plan.unsupported.len(),
    })
}

/// Lists rollouts, the newest first.
#[utoipa::path(
    get, path = "/api/v1/rollouts", tag = "rollouts", params(ListParams),
    responses((status = 200, description = "One page of rollouts", body = Page<RolloutSummary>))
)]
pub async fn list(
    State(app): State<Shared>,
    Params(params): Params<ListParams>,
) -> Result<Json<Page<RolloutSummary>>, Refusal> {
    let size = page_size(params.limit)?;
    let before = cursor(params.cursor.as_deref(), i64::MAX)?;
    let named = params.image.as_deref().map(str::parse::<Repository>);
    let wrong = |error: ReferenceError| Refusal::invalid_field("/image", error.to_string());
    let filter = stored::Filter {
        state: params.state,
        repository: named.transpose().map_err(wrong)?,
        scope: params.fleet.map(|fleet| format!("fleet:{fleet}")),
        device: params.device,
    };
    let found = app
        .store
        .read(move |tx| Ok::<_, Refusal>(stored::list(tx, &filter, before, size)?))
        .await?;
    Ok(Json(page(found, size, |found| found.id)))
}

/// Shows a rollout: its batches, how devices stand, and what it waits for.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}", tag = "rollouts",
    params(("id" = i64, Path, description = "Number of the rollout")),
    responses((status = 200, description = "The rollout", body = RolloutDetail))
)]
pub async fn show(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
) -> Result<Json<RolloutDetail>, Refusal> {
    let (internal, poll_interval_s) = (app.pushes.internal.clone(), app.poll_interval_s);
    let (logins, now) = (app.logins.clone(), clock::now());
    let detail = app
        .store
        .read(move |tx| {
            let around = Circumstances {
                logins: &logins,
                internal: &internal,
                poll_interval_s,
                now,
            };
            detail(tx, id, around)
        })
        .await?;
    Ok(Json(detail))
}

fn detail(tx: &mut Tx<'_>, id: i64, around: Circumstances<'_>) -> Result<RolloutDetail, Refusal> {
    let found = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
    let all = members::all(tx, id)?;
    let rollout = facts::gather(tx, &found, &all, around)?;
    let (waits_until, waits_for) = match decide(&rollout, around.now) {
        Decision::Wait(until, why) => (until, Some(why)),
        _ => (None, None),
    };
    let mut counts_of_all = Counts::new();
    let mut batches: BTreeMap<usize, Counts> = BTreeMap::new();
    for (batch, standing, many) in members::counts(tx, id)? {
        *counts_of_all.entry(standing.clone()).or_default() += many;
        batches.entry(batch).or_default().insert(standing, many);
    }
    let batch_count = batches.len();
    let batches = batches.into_iter().map(|(batch, counts)| BatchSummary {
        batch: batch + 1,
        is_open: batch < found.opened,
        counts,
    });
    Ok(RolloutDetail {
        waits_for,
        waits_until,
        batch_count,
        counts: counts_of_all,
        batches: batches.collect(),
        estimated_end: estimate(&found, batch_count, around.now),
        summary: found.into(),
    })
}

/// When it ends if the batches to come take as long as those before, or as their soak if there was none.
fn estimate(found: &Stored, batches: usize, now: Timestamp) -> Option<Timestamp> {
    if found.state != RolloutState::Running {
        return None;
    }
    let count = |many: usize| i64::try_from(many).unwrap_or(i64::MAX);
    let done = count(found.opened.saturating_sub(1));
    let took_ms = now.since_ms(found.created_at);
    let each_ms = match done {
        0 => found.rules.soak_ms,
        done => (took_ms / (done + 1)).max(found.rules.soak_ms),
    };
    let left = count(batches).saturating_sub(done);
    Some(now.plus_ms(each_ms.saturating_mul(left)))
}

/// Lists the devices of a rollout, batch by batch, and why each stands as it does.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}/devices", tag = "rollouts",
    params(("id" = i64, Path, description = "Number of the rollout"), PageParams),
    responses((status = 200, description = "One page of devices", body = Page<RolloutDevice>))
)]
pub async fn devices_of(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
    Params(params): Params<PageParams>,
) -> Result<Json<Page<RolloutDevice>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let found = app
        .store
        .read(move |tx| {
            stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(members::page(tx, id, after, size)?)
        })
        .await?;
    let next_cursor = next_cursor(&found, size, |_| after.saturating_add(size));
    let items = found.into_iter().map(device).collect();
    Ok(Json(Page { items, next_cursor }))
}

fn device(shown: Shown) -> RolloutDevice {
    let Shown {
        member,
        name,
        report,
    } = shown;
    let report = report.and_then(|body| serde_json::from_str::<CurrentState>(&body).ok());
    RolloutDevice {
        uuid: member.device,
        name,
        batch: member.batch + 1,
        standing: member.standing.word(),
        why: member.detail,
        since: member.changed_at,
        generation: member.generation,
        back_to: member.back_to,
        pulls: report.map(|report| report.pulls).unwrap_or_default(),
    }
}

/// Lists what happened in a rollout, in order.
#[utoipa::path(
    get, path = "/api/v1/rollouts/{id}/timeline", tag = "rollouts",
    params(("id" = i64, Path, description = "Number of the rollout"), TimelineParams),
    responses((status = 200, description = "One page of happenings", body = Page<RolloutHappening>))
)]
pub async fn timeline(
    State(app): State<Shared>,
    NumberPath(id): NumberPath,
    Params(params): Params<TimelineParams>,
) -> Result<Json<Page<RolloutHappening>>, Refusal> {
    let size = page_size(params.limit)?;
    let after = cursor(params.cursor.as_deref(), 0)?;
    let device = params.device;
    let found = app
        .store
        .read(move |tx| {
            stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(members::timeline(tx, id, device, after, size)?)
        })
        .await?;
    let next_cursor = next_cursor(&found, size, |happening| happening.id);
    let items = found.into_iter().map(|happening| {
        let Happening {
            device,
            what,
            detail,
            at,
            ..
        } = happening;
        RolloutHappening {
            at,
            device,
            what,
            detail,
        }
    });
    let items = items.collect();
    Ok(Json(Page { items, next_cursor }))
}

/// Orders something of a rollout: `start`, `pause`, `resume`, `cancel`, `retry`, `rollback` or `approve-batch`.
///
/// What means nothing in its state is refused, and why.
#[utoipa::path(
    post, path = "/api/v1/rollouts/{id}/{order}", tag = "rollouts",
    params(
        ("id" = i64, Path, description = "Number of the rollout"),
        ("order" = String, Path, description = "What is ordered"),
    ),
    request_body = Reason,
    responses((status = 200, description = "As it is now", body = RolloutSummary))
)]
pub async fn order(
    State(app): State<Shared>,
    Extension(principal): Extension<Principal>,
    Extension(request_id): Extension<RequestId>,
    Path((id, order)): Path<(String, String)>,
    Strict(Reason { reason }): Strict<Reason>,
) -> Result<Json<RolloutSummary>, Refusal> {
    let id: i64 = id.parse().map_err(|_| Refusal::not_found())?;
    let order = match order.as_str() {
        "start" => Order::Start,
        "pause" => Order::Pause,
        "resume" => Order::Resume,
        "cancel" => Order::Cancel,
        "retry" => Order::Retry,
        "rollback" => Order::RollBack,
        "approve-batch" => Order::ApproveBatch,
        _ => return Err(Refusal::not_found()),
    };
    if reason
        .as_ref()
        .is_some_and(|reason| reason.len() > MAX_REASON)
    {
        let detail = format!("write at most {MAX_REASON} characters");
        return Err(Refusal::invalid_field("/reason", detail));
    }
    let ordered = Ordered {
        order,
        reason,
        actor: actor(&principal, &request_id),
    };
    let (internal, now) = (app.pushes.internal.clone(), clock::now());
    let (found, touched) = app
        .store
        .transact(move |tx| -> Result<_, Refusal> {
            let touched = orders::carry_out(tx, id, &ordered, &internal, now)?;
            let found = stored::find(tx, id)?.ok_or_else(Refusal::not_found)?;
            Ok((found, touched))
        })
        .await?;
    for device in touched {
        app.live.refresh(&app.store, device).await?;
    }
    app.rollouts_soon.notify_one();
    Ok(Json(found.into()))
}
