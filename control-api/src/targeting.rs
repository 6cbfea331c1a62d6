//! Owns giving a device its target: resolve, render, store with a new generation, announce.
//!
//! One transaction holds the change, its audit row and its event. Refuses whole targets: nothing is
//! half-applied.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain::image_updates::resolves;
use holdfast_domain::resolution::Known;
use holdfast_domain::target::{self, KnownImages, Rendered, UNSUPPORTED};
use holdfast_proto::hash::etag;
use holdfast_proto::id::{AppId, DeviceId};
use holdfast_proto::image::Reference;
use holdfast_proto::target::{self as document, TargetInput, TargetState};
use holdfast_proto::time::Timestamp;
use http::StatusCode;
use serde_json::json;

use crate::app::App;
use crate::clock;
use crate::fleets;
use crate::http::problem::Refusal;
use crate::logins::{Login, Logins};
use crate::permitted::{self, Asked, Rules};
use crate::pushes;
use crate::resolver::{Freshness, Question, record};
use crate::store::audit::{self, Actor, NewEntry};
use crate::store::db::{StoreError, Tx, json as to_json};
use crate::store::devices::{self, Device};
use crate::store::events::{self, NewEvent};
use crate::store::generations::{self, Generation};
use crate::store::reports;
use crate::store::resolutions::{self, Key};
use crate::store::targets::{self, Named, Target};

/// A request to set a device's target.
#[derive(Debug, Clone)]
pub struct NewTarget {
    /// The device.
    pub uuid: DeviceId,
    /// What was sent, to render again when images become known.
    pub text: String,
    /// The same, read and checked.
    pub input: TargetInput,
    /// Refuse instead of storing a reference without a digest.
    pub require_digest: bool,
    /// Whether images that may not run are wanted all the same.
    pub overrules: bool,
    /// Whether tags are resolved anew, also where the device's policy leaves them as they were pinned.
    pub resolves: bool,
    /// Who asks.
    pub actor: Actor,
}

/// A device's target and what is known of its images.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The document the device is served.
    pub state: TargetState,
    /// Its strong `ETag`, with quotes.
    pub etag: String,
    /// What is known of each reference in it.
    pub images: Vec<(Reference, Option<Known>)>,
}

/// Resolves, renders and stores a target; the same target again changes nothing.
pub async fn set(app: &App, new: NewTarget) -> Result<Outcome, Refusal> {
    let uuid = new.uuid;
    let references = target::references(&new.input);
    let (logins, wanted) = (app.logins.clone(), references.clone());
    let questions = app
        .store
        .read(move |tx| {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            Ok::<_, Refusal>(questions(tx, &logins, &device, &wanted)?)
        })
        .await?;
    let findings = app.resolver.answers(questions, Freshness::Cached).await;
    let logins = app.logins.clone();
    let failed = findings.values().any(|finding| finding.answer.is_err());
    let now = clock::now();
    let (rhythm, permitted) = (app.rhythm, Rules::of(&app.pushes));
    let outcome = app
        .store
        .transact(move |tx| -> Result<Outcome, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let asked = Asked {
                kind: "device",
                subject: &uuid.to_string(),
                overrules: new.overrules,
                actor: &new.actor,
            };
            permitted::check(tx, &permitted, &references, asked, now)?;
            let learnt = record(tx, &findings, rhythm)?;
            // Other devices may run what moved.
            pushes::hint(tx, &learnt.moved, now)?;
            // One device asks for each image with one login.
            let known: KnownImages = learnt
                .known
                .into_iter()
                .map(|((key, _), known)| (key, known))
                .collect();
            let before = targets::find(tx, device.id)?;
            let resolves = new.resolves || resolves(&device.effective_updates());
            let pinned = match &before {
                Some(before) if !resolves => read(&before.body)?.apps,
                Some(_) | None => BTreeMap::new(),
            };
            let platform = &device.platform;
            let mut rendered = target::render_keeping(&new.input, &pinned, platform, &known, now);
            let is_known = with_login(tx, &logins, &device, &references)?;
            target::note_logins(&mut rendered.apps, |registry| is_known.contains(registry));
            refuse_unfit(&rendered, new.require_digest)?;
            fleets::own(tx, &device, &new.actor, now)?;
            let (state, etag) = store(
                tx,
                &Change {
                    device: &device,
                    before: before.as_ref(),
                    text: &new.text,
                    cause: "set",
                    actor: &new.actor,
                },
                rendered,
                now,
            )?;
            Ok(Outcome {
                state,
                etag,
                images: with_knowledge(&references, &known),
            })
        })
        .await?;
    app.live.refresh(&app.store, uuid).await?;
    if failed {
        app.resolve_soon.notify_one();
    }
    Ok(outcome)
}

/// The login that counts for this device at each registry of these references.
fn logins_of(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    references: &[Reference],
) -> Result<BTreeMap<String, Login>, StoreError> {
    let mut found = BTreeMap::new();
    for reference in references {
        let registry = reference.repository().registry();
        if !found.contains_key(registry) {
            let login = logins.of_device(tx, registry, device)?;
            found.insert(registry.to_owned(), login);
        }
    }
    Ok(found)
}

/// The registries among these references' for which the device has a login.
pub fn with_login(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    references: &[Reference],
) -> Result<BTreeSet<String>, StoreError> {
    let found = logins_of(tx, logins, device, references)?;
    let known = found.into_iter().filter(|(_, login)| login.is_known);
    Ok(known.map(|(registry, _)| registry).collect())
}

fn questions(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    references: &[Reference],
) -> Result<Vec<Question>, StoreError> {
    let logins = logins_of(tx, logins, device, references)?;
    let ttl_s = device.effective_updates().digest_cache_ttl_s;
    let mut asked = BTreeSet::new();
    let mut questions = Vec::new();
    for reference in references {
        // Spellings of one image are one question.
        if let Some(login) = logins.get(reference.repository().registry())
            && asked.insert(Key::of(reference))
        {
            let question = Question::prepare(tx, reference.clone(), login.clone())?;
            questions.push(question.fresh_for(ttl_s));
        }
    }
    Ok(questions)
}

/// What is known of these images for this device, without asking anybody.
fn recall(
    tx: &mut Tx<'_>,
    logins: &Logins,
    device: &Device,
    references: &[Reference],
) -> Result<KnownImages, StoreError> {
    let logins = logins_of(tx, logins, device, references)?;
    let mut known = KnownImages::new();
    for reference in references {
        let key = Key::of(reference);
        if let Some(login) = logins.get(&key.registry)
            && let Some(found) = resolutions::recall(tx, &key, &login.scope)?
        {
            known.insert(key, found);
        }
    }
    Ok(known)
}

fn refuse_unfit(rendered: &Rendered, require_digest: bool) -> Result<(), Refusal> {
    if let Some(first) = rendered.unsupported.first() {
        return Err(Refusal::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            UNSUPPORTED,
            first.detail.clone(),
        )
        .with_errors(rendered.unsupported.clone()));
    }
    match rendered.unresolved.first() {
        Some(first) if require_digest => Err(Refusal::new(
            StatusCode::FAILED_DEPENDENCY,
            "unresolved",
            format!("nothing was stored: {}", first.detail),
        )
        .with_errors(rendered.unresolved.clone())),
        Some(_) | None => Ok(()),
    }
}

fn with_knowledge(
    references: &[Reference],
    known: &KnownImages,
) -> Vec<(Reference, Option<Known>)> {
    references
        .iter()
        .map(|reference| (reference.clone(), known.get(&Key::of(reference)).cloned()))
        .collect()
}

struct Change<'a> {
    device: &'a Device,
    before: Option<&'a Target>,
    text: &'a str,
    /// Why: see [`generations::Generation::cause`].
    cause: &'a str,
    actor: &'a Actor,
}

/// Stores a rendered target under a new generation, unless it is the one that is there.
fn store(
    tx: &mut Tx<'_>,
    change: &Change<'_>,
    rendered: Rendered,
    now: Timestamp,
) -> Result<(TargetState, String), StoreError> {
    let device = change.device;
    if let Some(before) = change.before
        && let Ok(state) = read(&before.body)
        && target::same(&state.apps, &rendered.apps)
    {
        return Ok((state, before.etag.clone()));
    }
    let generation = target::next_generation(
        change.before.map_or(0, |before| before.generation),
        reports::generation(tx, device.id)?,
    );
    let state = target::document(device.uuid, generation, rendered.apps);
    let body = to_json("target", &state)?;
    let etag = etag(body.as_bytes());
    let named = named(&state);
    let target = Target {
        input: change.text.to_owned(),
        body,
        etag: etag.clone(),
        generation,
        changed_at: now,
    };
    targets::set(tx, device.id, &target, &named)?;
    let told = Generation {
        generation,
        input: target.input,
        body: target.body,
        cause: change.cause.to_owned(),
        actor: change.actor.name.clone(),
        at: now,
        verified_at: None,
    };
    generations::record(tx, device.id, &told)?;
    // Images and counters only: environments may hold secrets, which the log must not.
    let images: Vec<&str> = state
        .services()
        .map(|(_, service)| service.image_name.as_str())
        .collect();
    audit::append(
        tx,
        change.actor,
        &NewEntry {
            action: "target.set",
            subject_kind: "device",
            subject: device.uuid.to_string(),
            before: change
                .before
                .map(|before| json!({"generation": before.generation, "etag": before.etag})),
            after: Some(json!({"generation": generation, "etag": etag, "images": images})),
        },
        now,
    )?;
    events::record(
        tx,
        &NewEvent {
            kind: "device.target_changed",
            device: Some(device.uuid),
            subject: None,
            detail: json!({"generation": generation}),
            delivery: None,
        },
        now,
    )?;
    tx.announce(device.uuid)?;
    Ok((state, etag))
}

/// The references in a target, and which of them it waits for.
fn named(state: &TargetState) -> Vec<Named> {
    let mut found: BTreeMap<Key, bool> = BTreeMap::new();
    let pins = state
        .services()
        .filter_map(|(_, service)| service.pin.as_ref());
    for pin in pins {
        let waits = pin.pull_digest().is_none() && !target::is_unsupported(pin);
        *found.entry(Key::of(&pin.reference)).or_default() |= waits;
    }
    let named = |(key, waits)| Named { key, waits };
    found.into_iter().map(named).collect()
}

fn read(body: &str) -> Result<TargetState, StoreError> {
    serde_json::from_str(body).map_err(|source| StoreError::Document {
        what: "target",
        source,
    })
}

/// The device's target as it is served, and what is known of its images now.
pub fn show(
    tx: &mut Tx<'_>,
    logins: &Logins,
    uuid: DeviceId,
) -> Result<Option<Outcome>, StoreError> {
    let Some(device) = devices::find(tx, uuid)? else {
        return Ok(None);
    };
    let Some(stored) = targets::find(tx, device.id)? else {
        let (etag, _, body) = crate::live::empty(uuid);
        return Ok(Some(Outcome {
            state: read(&body)?,
            etag,
            images: Vec::new(),
        }));
    };
    let state = read(&stored.body)?;
    let mut references: Vec<Reference> = state
        .services()
        .filter_map(|(_, service)| service.pin.as_ref().map(|pin| pin.reference.clone()))
        .collect();
    references.sort();
    references.dedup();
    let known = recall(tx, logins, &device, &references)?;
    Ok(Some(Outcome {
        images: with_knowledge(&references, &known),
        state,
        etag: stored.etag,
    }))
}

/// Gives a device these apps in place of what it has; answers the generation.
pub fn give(
    tx: &mut Tx<'_>,
    (device, before): (&Device, &Target),
    (text, apps): (&str, BTreeMap<AppId, document::App>),
    (cause, actor): (&str, &Actor),
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rendered = Rendered {
        apps,
        unsupported: Vec::new(),
        unresolved: Vec::new(),
    };
    let change = Change {
        device,
        before: Some(before),
        text,
        cause,
        actor,
    };
    let (state, _) = store(tx, &change, rendered, now)?;
    Ok(state.generation)
}

/// As [`give`], also to a device that was never given anything; what it is given then is not its own.
pub fn lend(
    tx: &mut Tx<'_>,
    device: &Device,
    (text, apps): (&str, BTreeMap<AppId, document::App>),
    (cause, actor): (&str, &Actor),
    now: Timestamp,
) -> Result<u64, StoreError> {
    let rendered = Rendered {
        apps,
        unsupported: Vec::new(),
        unresolved: Vec::new(),
    };
    let before = targets::find(tx, device.id)?;
    let change = Change {
        device,
        before: before.as_ref(),
        text,
        cause,
        actor,
    };
    let (state, _) = store(tx, &change, rendered, now)?;
    targets::set_own(tx, device.id, false)?;
    Ok(state.generation)
}

/// Gives a device what it was told once, digests and all, under a new generation: that generation, or the last one
/// before the present that it verified.
pub async fn back(
    app: &App,
    uuid: DeviceId,
    wanted: Option<u64>,
    actor: Actor,
) -> Result<Outcome, Refusal> {
    let now = clock::now();
    let outcome = app
        .store
        .transact(move |tx| -> Result<Outcome, Refusal> {
            let device = devices::find(tx, uuid)?.ok_or_else(Refusal::not_found)?;
            let nowhere =
                |detail: &str| Refusal::new(StatusCode::CONFLICT, "nothing_to_go_back_to", detail);
            let before = targets::find(tx, device.id)?
                .ok_or_else(|| nowhere("this device was never given a target"))?;
            let told = match wanted {
                Some(generation) => generations::find(tx, device.id, generation)?
                    .ok_or_else(|| nowhere("that generation is not known any more"))?,
                None => generations::last_verified(tx, device.id, before.generation)?
                    .ok_or_else(|| nowhere("no generation before this one was verified here"))?,
            };
            let rendered = Rendered {
                apps: read(&told.body)?.apps,
                unsupported: Vec::new(),
                unresolved: Vec::new(),
            };
            let change = Change {
                device: &device,
                before: Some(&before),
                text: &told.input,
                cause: &format!("back:{}", told.generation),
                actor: &actor,
            };
            let (state, etag) = store(tx, &change, rendered, now)?;
            Ok(Outcome {
                state,
                etag,
                images: Vec::new(),
            })
        })
        .await?;
    app.live.refresh(&app.store, uuid).await?;
    Ok(outcome)
}

/// Renders a device's target again for the digests that it waits for; says whether it changed.
///
/// What it has a digest for stays as it is, whatever its tag means by now.
pub fn render_again(
    tx: &mut Tx<'_>,
    logins: &Logins,
    uuid: DeviceId,
    actor: &Actor,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(device) = devices::find(tx, uuid)? else {
        return Ok(false);
    };
    let Some(before) = targets::find(tx, device.id)? else {
        return Ok(false);
    };
    let Ok(input) = TargetInput::parse(before.input.as_bytes()) else {
        tracing::warn!(device.id = %uuid, "kept a target whose text this version refuses");
        return Ok(false);
    };
    let references = target::references(&input);
    let known = recall(tx, logins, &device, &references)?;
    let mut rendered = target::render(&input, &device.platform, &known, now);
    let pinned = read(&before.body)?.apps;
    target::keep_pins(&mut rendered.apps, &pinned, &device.platform);
    let is_known = with_login(tx, logins, &device, &references)?;
    target::note_logins(&mut rendered.apps, |registry| is_known.contains(registry));
    let change = Change {
        device: &device,
        before: Some(&before),
        text: &before.input,
        cause: "resolved",
        actor,
    };
    let (_, etag) = store(tx, &change, rendered, now)?;
    Ok(etag != before.etag)
}

/// Lifts the target above what the device has accepted, after the store was restored to the past.
///
/// Only a target that a person set: an empty one lifted would clear the device.
pub fn rise_above(
    tx: &mut Tx<'_>,
    device_id: i64,
    uuid: DeviceId,
    reported: u64,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let Some(before) = targets::find(tx, device_id)? else {
        return Ok(false);
    };
    if before.generation >= reported {
        return Ok(false);
    }
    let mut state = read(&before.body)?;
    state.generation = target::next_generation(before.generation, reported);
    let body = to_json("target", &state)?;
    let lifted = Target {
        etag: etag(body.as_bytes()),
        body,
        generation: state.generation,
        changed_at: now,
        input: before.input,
    };
    targets::lift(tx, device_id, &lifted)?;
    let told = Generation {
        generation: lifted.generation,
        input: lifted.input.clone(),
        body: lifted.body.clone(),
        cause: "lifted".to_owned(),
        actor: uuid.to_string(),
        at: now,
        verified_at: None,
    };
    generations::record(tx, device_id, &told)?;
    audit::append(
        tx,
        &Actor {
            kind: "device",
            name: uuid.to_string(),
            request_id: "report".to_owned(),
        },
        &NewEntry {
            action: "target.lifted",
            subject_kind: "device",
            subject: uuid.to_string(),
            before: Some(json!({"generation": before.generation})),
            after: Some(json!({"generation": lifted.generation})),
        },
        now,
    )?;
    events::record(
        tx,
        &NewEvent {
            kind: "device.target_changed",
            device: Some(uuid),
            subject: None,
            detail: json!({"generation": lifted.generation, "reason": "the device was ahead"}),
            delivery: None,
        },
        now,
    )?;
    tx.announce(uuid)?;
    Ok(true)
}
