//! Owns making releases and beginning their rollouts: resolve once, freeze, number, let travel.
//!
//! Refuses whole releases: where one reference or one platform does not fit, nothing is stored.

use std::collections::BTreeMap;

use holdfast_domain::release::{Unfit, freeze};
use holdfast_domain::target::{self, KnownImages, UNSUPPORTED};
use holdfast_proto::problem::FieldError;
use holdfast_proto::target::TargetInput;
use http::StatusCode;
use serde_json::json;

use super::{completed, members, note, read};
use crate::app::Shared;
use crate::clock;
use crate::http::problem::Refusal;
use crate::permitted::{self, Asked, Rules};
use crate::pushes;
use crate::resolver::{Freshness, Question, record};
use crate::rollouts::begin::{self, Begun, ByRelease};
use crate::store::audit::Actor;
use crate::store::fleets::{self as stored, Fleet};
use crate::store::releases::{self, New, Release};
use crate::store::resolutions::Key;
use crate::store::{StoreError, Tx, policies};

/// A request to make a release.
#[derive(Debug, Clone)]
pub struct NewRelease {
    /// The fleet's name.
    pub fleet: String,
    /// What was sent.
    pub text: String,
    /// The same, read and checked.
    pub input: TargetInput,
    /// The policy that it travels by; the fleet's without.
    pub policy: Option<i64>,
    /// Whether images that may not run are wanted all the same.
    pub overrules: bool,
    /// Who asks.
    pub actor: Actor,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Made {
    /// The release: the new one, or the newest, when that has the very same content.
    pub release: Release,
    /// Whether it is new.
    pub is_new: bool,
    /// What came of its rollout.
    pub begun: Begun,
}

/// Makes a release and begins its rollout; the content of the newest release makes no other.
///
/// # Errors
/// When the fleet is not there, a platform of it has no image (422), or a reference has no digest (424).
pub async fn make(app: &Shared, new: NewRelease) -> Result<Made, Refusal> {
    let questions = questions(app, &new).await?;
    let findings = app.resolver.answers(questions, Freshness::Cached).await;
    let (now, rhythm, logins) = (clock::now(), app.rhythm, app.logins.clone());
    let permitted = Rules::of(&app.pushes);
    let (fleet, actor, policy) = (new.fleet.clone(), new.actor.clone(), new.policy);
    let (release, is_new, waits) = app
        .store
        .transact(move |tx| -> Result<_, Refusal> {
            let fleet = stored::find(tx, &new.fleet)?.ok_or_else(Refusal::not_found)?;
            check_policy(tx, "/policy", new.policy)?;
            let asked = Asked {
                kind: "fleet",
                subject: &fleet.name,
                overrules: new.overrules,
                actor: &new.actor,
            };
            let references = target::references(&new.input);
            permitted::check(tx, &permitted, &references, asked, now)?;
            let learnt = record(tx, &findings, rhythm)?;
            // Other devices may run what moved.
            pushes::hint(tx, &learnt.moved, now)?;
            // One fleet asks for each image with one login.
            let known: KnownImages = learnt
                .known
                .into_iter()
                .map(|((key, _), known)| (key, known))
                .collect();
            let platforms = stored::platforms(tx, &fleet.name)?;
            let pins = freeze(&new.input, &platforms, &known, now).map_err(refuse)?;
            if let Some(newest) = releases::newest(tx, fleet.id)?
                && newest.listed.pins.same(&pins)
                && read(&newest).is_ok_and(|input| input == new.input)
            {
                // A release that was stored when the program ended still waits for its rollout.
                let waits =
                    !newest.listed.is_current && !releases::was_rolled_out(tx, newest.listed.id)?;
                return Ok((newest, false, waits));
            }
            let made = New {
                fleet_id: fleet.id,
                input: &new.text,
                pins: &pins,
                created_by: &new.actor.name,
            };
            let id = releases::insert(tx, &made, now)?;
            let release = releases::find(tx, id)?.ok_or_else(Refusal::internal)?;
            // Images only: environments may hold secrets.
            let images: BTreeMap<String, String> = pins
                .0
                .iter()
                .map(|one| (one.key().to_string(), one.digest.to_string()))
                .collect();
            let detail = json!({"release": release.listed.number, "images": images});
            let what = ("release.create", "release.created");
            note(tx, &new.actor, what, &fleet.name, (None, Some(detail)), now)?;
            if members(tx, &fleet.name)?.is_empty() {
                completed(tx, &logins, id, now)?;
                let release = releases::find(tx, id)?.ok_or_else(Refusal::internal)?;
                return Ok((release, true, false));
            }
            Ok((release, true, true))
        })
        .await?;
    let begun = if waits {
        begin(app, &fleet, &release, policy, &actor).await?
    } else if is_new {
        Begun::Nothing(NOBODY.to_owned())
    } else {
        Begun::Nothing("the newest release has this very content".to_owned())
    };
    Ok(Made {
        release,
        is_new,
        begun,
    })
}

/// Why a release travels to nobody.
const NOBODY: &str = "no device of the fleet waits for it: those who join get it at once";

/// Rolls a release out that was made before.
///
/// # Errors
/// When it is not there, or a platform that joined the fleet since has no image in it (422).
pub async fn roll_out(
    app: &Shared,
    fleet: String,
    number: i64,
    policy: Option<i64>,
    actor: Actor,
) -> Result<(Release, Begun), Refusal> {
    let (now, logins, by) = (clock::now(), app.logins.clone(), actor.clone());
    let name = fleet.clone();
    let (release, waits) = app
        .store
        .transact(move |tx| -> Result<_, Refusal> {
            let release = releases::numbered(tx, &name, number)?.ok_or_else(Refusal::not_found)?;
            check_policy(tx, "/policy", policy)?;
            let platforms = stored::platforms(tx, &name)?;
            let input = read(&release)?;
            let pins = &release.listed.pins;
            pins.fits(&input, &platforms, now).map_err(refuse)?;
            let what = ("release.roll_out", "release.rolled_out");
            let detail = json!({"release": number});
            note(tx, &by, what, &name, (None, Some(detail)), now)?;
            let waits = !members(tx, &name)?.is_empty();
            if !waits {
                completed(tx, &logins, release.listed.id, now)?;
            }
            Ok((release, waits))
        })
        .await?;
    let begun = if waits {
        begin(app, &fleet, &release, policy, &actor).await?
    } else {
        Begun::Nothing(NOBODY.to_owned())
    };
    Ok((release, begun))
}

async fn begin(
    app: &Shared,
    fleet: &str,
    release: &Release,
    policy: Option<i64>,
    actor: &Actor,
) -> Result<Begun, Refusal> {
    let name = fleet.to_owned();
    let found: Option<Fleet> = app.store.read(move |tx| stored::find(tx, &name)).await?;
    let by = ByRelease {
        fleet,
        release_id: release.listed.id,
        number: release.listed.number,
        policy: policy.or_else(|| found.and_then(|fleet| fleet.policy_id)),
        created_by: &actor.name,
    };
    Ok(begin::by_release(app, by).await?)
}

/// Refuses a policy that is not there, in this member.
pub fn check_policy(tx: &mut Tx<'_>, pointer: &str, policy: Option<i64>) -> Result<(), Refusal> {
    match policy {
        Some(id) if policies::find(tx, id)?.is_none() => Err(Refusal::invalid_field(
            pointer,
            format!("there is no policy {id}"),
        )),
        Some(_) | None => Ok(()),
    }
}

/// One question for each image, with the login that counts for the fleet.
async fn questions(app: &Shared, new: &NewRelease) -> Result<Vec<Question>, Refusal> {
    let references = target::references(&new.input);
    let (fleet, logins) = (new.fleet.clone(), app.logins.clone());
    app.store
        .read(move |tx| -> Result<_, Refusal> {
            let found = stored::find(tx, &fleet)?.ok_or_else(Refusal::not_found)?;
            let ttl_s = found.image_updates.digest_cache_ttl_s;
            let mut asked = BTreeMap::new();
            for reference in &references {
                let registry = reference.repository().registry();
                let login = logins.of_fleet(tx, registry, &fleet)?;
                let question = Question::prepare(tx, reference.clone(), login)?;
                let question = question.fresh_for(ttl_s);
                asked.entry(Key::of(reference)).or_insert(question);
            }
            Ok(asked.into_values().collect())
        })
        .await
}

fn refuse(unfit: Unfit) -> Refusal {
    let told = |errors: &[FieldError]| {
        errors
            .first()
            .map(|error| error.detail.clone())
            .unwrap_or_default()
    };
    match unfit {
        Unfit::Unsupported(errors) => {
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, UNSUPPORTED, told(&errors))
                .with_errors(errors)
        }
        Unfit::Unresolved(errors) => Refusal::new(
            StatusCode::FAILED_DEPENDENCY,
            "unresolved",
            format!("nothing was stored: {}", told(&errors)),
        )
        .with_errors(errors),
    }
}

/// A release with what people asked for, read.
///
/// # Errors
/// When it cannot be read any more.
pub fn input(release: &Release) -> Result<TargetInput, StoreError> {
    read(release)
}
