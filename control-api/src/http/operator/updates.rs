//! Owns telling what could be updated: from the store alone, for a device, a fleet or an image.
//!
//! Refuses to ask registries for a report: what they said when last asked is what it says.

use std::collections::{BTreeSet, HashMap};

use axum::Json;
use axum::extract::{Path, State};
use holdfast_domain::resolution::{Key, Known};
use holdfast_domain::scope::{FLEET_LABEL, Scope};
use holdfast_domain::updates::of_device;
use holdfast_proto::current::CurrentState;
use holdfast_proto::id::DeviceId;
use holdfast_proto::image::{Platform, Reference};
use holdfast_proto::operator::Page;
use holdfast_proto::target::TargetState;
use holdfast_proto::time::Timestamp;
use holdfast_proto::updates::{
    AvailableUpdate, FleetUpdate, TagCandidate, UpdateReport, fleet as join,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::app::Shared;
use crate::http::extract::{DevicePath, Params, page_size};
use crate::http::problem::Refusal;
use crate::logins;
use crate::store::devices::{self, Device, Filter};
use crate::store::{StoreError, Tx, credentials, reports, resolutions, tag_candidates, targets};

/// Devices read in one transaction.
const BATCH: i64 = 500;

/// What is known of updates for one device.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceUpdates {
    /// The device.
    #[schema(value_type = String)]
    device_uuid: DeviceId,
    /// When it last reported what it runs; null when it never did.
    #[schema(value_type = Option<String>, format = DateTime)]
    reported_at: Option<Timestamp>,
    /// One entry for each container that it reported.
    updates: Vec<UpdateReport>,
}

/// What was read once and holds for many devices.
#[derive(Default)]
struct Recalled {
    scopes: BTreeSet<(String, String)>,
    known: HashMap<(Key, Scope), Option<Known>>,
    candidates: HashMap<(Key, Platform), Vec<TagCandidate>>,
}

impl Recalled {
    fn read(tx: &mut Tx<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            scopes: credentials::scopes(tx)?,
            ..Self::default()
        })
    }

    /// Whose credentials count for a device.
    fn scope(&self, device: &Device, registry: &str) -> Scope {
        let mut scopes = Scope::of_device(device.uuid, logins::fleet(device));
        let held = |scope: &Scope| {
            self.scopes
                .contains(&(registry.to_owned(), scope.to_string()))
        };
        scopes.find(held).unwrap_or(Scope::Registry)
    }

    fn of(
        &mut self,
        tx: &mut Tx<'_>,
        device: &Device,
        reference: &Reference,
    ) -> Result<Option<Known>, StoreError> {
        let key = Key::of(reference);
        let scope = self.scope(device, &key.registry);
        let asked = (key, scope);
        if let Some(known) = self.known.get(&asked) {
            return Ok(known.clone());
        }
        // Only what was found out with these credentials: others' answers are not this device's.
        let known = resolutions::find(tx, &asked.0, &asked.1)?.map(|row| row.known);
        self.known.insert(asked, known.clone());
        Ok(known)
    }

    fn candidates(
        &mut self,
        tx: &mut Tx<'_>,
        device: &Device,
        reference: &Reference,
    ) -> Result<Vec<TagCandidate>, StoreError> {
        let wanted = (Key::of(reference), device.platform.clone());
        if let Some(found) = self.candidates.get(&wanted) {
            return Ok(found.clone());
        }
        let found = tag_candidates::find(tx, &wanted.0, &wanted.1)?;
        self.candidates.insert(wanted, found.clone());
        Ok(found)
    }
}

/// The report on one device, and when it reported.
fn report(
    tx: &mut Tx<'_>,
    device: &Device,
    recalled: &mut Recalled,
) -> Result<(Option<Timestamp>, Vec<UpdateReport>), StoreError> {
    let Some(stored) = reports::find(tx, device.id)? else {
        return Ok((None, Vec::new()));
    };
    let state: CurrentState =
        serde_json::from_str(&stored.body).map_err(|source| StoreError::Document {
            what: "report",
            source,
        })?;
    let target: Option<TargetState> = targets::find(tx, device.id)?
        .map(|target| {
            serde_json::from_str(&target.body).map_err(|source| StoreError::Document {
                what: "target",
                source,
            })
        })
        .transpose()?;
    let mut failed = None;
    let found = of_device(&device.platform, &state, target.as_ref(), |reference| {
        recalled.of(tx, device, reference).unwrap_or_else(|error| {
            failed = Some(error);
            None
        })
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let mut updates = Vec::with_capacity(found.len());
    for (reference, mut update) in found {
        if let Some(reference) = reference.filter(|reference| reference.digest().is_none()) {
            update.candidates = recalled.candidates(tx, device, &reference)?;
        }
        updates.push(update);
    }
    Ok((Some(stored.received_at), updates))
}

/// Shows for each container of a device whether its registry has an update.
///
/// `hasUpdate` is null, and `error` says why, when it cannot be known.
#[utoipa::path(
    get, path = "/api/v1/devices/{uuid}/updates", tag = "updates",
    params(("uuid" = String, Path, description = "The device")),
    responses((status = 200, description = "As far as is known", body = DeviceUpdates))
)]
pub async fn of_one(
    State(app): State<Shared>,
    DevicePath(uuid): DevicePath,
) -> Result<Json<DeviceUpdates>, Refusal> {
    let (reported_at, updates) = app
        .store
        .read(move |tx| -> Result<_, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let mut recalled = Recalled::read(tx)?;
            Ok(report(tx, &device, &mut recalled)?)
        })
        .await?;
    Ok(Json(DeviceUpdates {
        device_uuid: uuid,
        reported_at,
        updates,
    }))
}

/// Whose updates, and which page of them.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FleetParams {
    /// Only devices whose label `fleet` has this value; all devices without.
    fleet: Option<String>,
    /// Only where it is known that there is an update (true), or none (false).
    has_update: Option<bool>,
    /// At most so many items, 1 to 200; 50 by default.
    limit: Option<u32>,
    /// Where the last page ended.
    cursor: Option<String>,
}

/// Shows what runs in a fleet and whether registries have updates, each image once.
#[utoipa::path(
    get, path = "/api/v1/updates", tag = "updates", params(FleetParams),
    responses((status = 200, description = "One page, by image", body = Page<FleetUpdate>))
)]
pub async fn of_fleet(
    State(app): State<Shared>,
    Params(params): Params<FleetParams>,
) -> Result<Json<Page<FleetUpdate>>, Refusal> {
    let size = usize::try_from(page_size(params.limit)?).unwrap_or(usize::MAX);
    let start = crate::http::extract::cursor(params.cursor.as_deref(), 0)?;
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let mut all = Vec::new();
    let mut after = 0;
    loop {
        let filter = Filter {
            label: params
                .fleet
                .clone()
                .map(|fleet| (FLEET_LABEL.to_owned(), Some(fleet))),
            ..Filter::default()
        };
        let (found, last, count) = app
            .store
            .read(move |tx| -> Result<_, Refusal> {
                let devices = devices::list(tx, &filter, after, BATCH)?;
                let mut recalled = Recalled::read(tx)?;
                let mut found = Vec::new();
                for device in &devices {
                    let (_, updates) = report(tx, device, &mut recalled)?;
                    found.extend(updates.into_iter().map(|update| (device.uuid, update)));
                }
                let last = devices.last().map_or(0, |device| device.id);
                Ok((found, last, devices.len()))
            })
            .await?;
        all.extend(found);
        after = last;
        if i64::try_from(count).is_ok_and(|count| count < BATCH) {
            break;
        }
    }
    let wanted = |update: &FleetUpdate| {
        params.has_update.is_none() || update.has_update == params.has_update
    };
    let joined: Vec<FleetUpdate> = join(all).into_iter().filter(wanted).collect();
    let end = start.saturating_add(size);
    let next_cursor = (joined.len() > end).then(|| format!("{end:x}"));
    let items = joined.into_iter().skip(start).take(size).collect();
    Ok(Json(Page { items, next_cursor }))
}

/// From which tag on which platform.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CandidateParams {
    /// The tag to find newer ones for, such as `1.26` or `7.2-alpine`.
    current: String,
    /// The platform: an architecture such as `arm64` or `arm/v7`; `amd64` by default.
    arch: Option<String>,
}

fn platform(arch: &str) -> Option<Platform> {
    let text = if arch.starts_with("linux/") {
        arch.to_owned()
    } else {
        format!("linux/{arch}")
    };
    text.parse().ok()
}

/// Lists newer tags of an image, of the same kind as the current one, the newest first.
///
/// Same major version, same number of parts, same suffix, no pre-releases. The image is its name in any
/// spelling, percent-encoded: `nginx`, `docker.io%2Flibrary%2Fnginx`.
#[utoipa::path(
    get, path = "/api/v1/images/{id}/available-updates", tag = "images",
    params(("id" = String, Path, description = "The image's name, percent-encoded"), CandidateParams),
    responses((status = 200, description = "The newest first", body = Vec<AvailableUpdate>))
)]
pub async fn candidates(
    State(app): State<Shared>,
    Path(id): Path<String>,
    Params(params): Params<CandidateParams>,
) -> Result<Json<Vec<AvailableUpdate>>, Refusal> {
    let malformed = |detail: &str| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "malformed_query",
            detail.to_owned(),
        )
    };
    let name: Reference = id
        .parse()
        .map_err(|_| malformed("the path's id must be the name of an image"))?;
    if name.tag().is_some() || name.digest().is_some() {
        return Err(malformed(
            "the path's id must be a name without tag and digest",
        ));
    }
    let reference: Reference = format!("{}:{}", name.repository(), params.current)
        .parse()
        .map_err(|_| malformed("current must be a tag"))?;
    let platform = platform(params.arch.as_deref().unwrap_or("amd64"))
        .ok_or_else(|| malformed("arch must be an architecture such as arm64 or arm/v7"))?;
    let logins = app.logins.clone();
    let registry = reference.repository().registry().to_owned();
    let login = app
        .store
        .read(move |tx| logins.of_scope(tx, &registry, &Scope::Registry))
        .await?;
    let unavailable =
        |why: String| Refusal::new(StatusCode::BAD_GATEWAY, "registry_unavailable", why);
    let who = login
        .identity
        .transpose()
        .map_err(|failure| unavailable(failure.why))?;
    let found = app
        .resolver
        .newer_tags(&reference, &platform, who.as_ref())
        .await
        .map_err(|failure| unavailable(failure.why))?;
    Ok(Json(found.into_iter().map(AvailableUpdate::from).collect()))
}
