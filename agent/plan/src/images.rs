//! Owns which images stay on the device: kept by a tag, fetched again when lost, cleared away when over.
//!
//! Refuses to clear away an image that the agent did not pull, that anybody else named, or that a service
//! runs or would go back to. What else uses an image is the engine's to say: nothing is forced.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::id::{DeviceId, ServiceKey};
use holdfast_proto::image::{ConfigDigest, Digest, Reference};
use holdfast_proto::spec::Strategy;
use holdfast_proto::target::ServiceTarget;

use crate::Situation;
use crate::history::ServiceHistory;
use crate::hold::Hold;
use crate::observed::{ImagePresence, Observed, StoredImage};
use crate::service::wait_until;
use crate::step::{Plan, PullReason, Step};

/// Where tags live that nobody can pull or push: the agent's own names for images that must stay.
const KEEP: &str = "holdfast.local/keep";
/// Digits of the content's digest in a tag: as many as people compare.
const KEEP_DIGITS: usize = 12;

/// The tag that keeps an image from being pruned: it names the device, the service and the content.
///
/// An engine prunes an image without a tag although a way back needs it (measured: a pull by digest
/// leaves no tag). Ids in lower case may meet in one tag, which then keeps their common content.
pub fn keep_tag(device: &DeviceId, key: &ServiceKey, config: &ConfigDigest) -> String {
    let digits: String = config.0.hex().chars().take(KEEP_DIGITS).collect();
    format!(
        "{}{}/{}:{digits}",
        keep_prefix(device),
        part(key.app.as_str()),
        part(key.service.as_str())
    )
}

fn keep_prefix(device: &DeviceId) -> String {
    format!("{KEEP}/{}/", device.short())
}

/// An id as a part of an image's name: lower case, and single dashes for what a name cannot have.
fn part(id: &str) -> String {
    let mapped: String = id
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    // An id begins with a letter or digit, so that something is always left.
    mapped.trim_end_matches('-').to_owned()
}

/// The name under which an engine pulls an image from the agent on this device: a port on loopback, a
/// secret of 32 hexadecimal digits, a word, a digest.
///
/// It is taken away as soon as the image is there; one that is left is from an agent that died in between.
pub fn is_transit_name(name: &str) -> bool {
    let parts = || {
        let (host, rest) = name.split_once('/')?;
        let (secret, rest) = rest.split_once('/')?;
        let (word, digest) = rest.split_once('@')?;
        let port = host.strip_prefix("127.0.0.1:")?;
        Some((port, secret, word, digest))
    };
    parts().is_some_and(|(port, secret, word, digest)| {
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        port.parse::<u16>().is_ok()
            && secret.len() == 32
            && secret.chars().all(is_hex)
            && !word.is_empty()
            && !word.contains('/')
            && digest.parse::<Digest>().is_ok()
    })
}

/// The service that a tag of ours names, for people: the parts of the tag stand for the ids.
fn key_of(tag: &str, prefix: &str) -> Option<ServiceKey> {
    let (name, _) = tag.strip_prefix(prefix)?.rsplit_once(':')?;
    let (app, service) = name.split_once('/')?;
    Some(ServiceKey {
        app: app.parse().ok()?,
        service: service.parse().ok()?,
    })
}

/// An image's pinned name in the one form in which names compare: engines leave parts of it out.
pub fn canonical(pinned: &str) -> String {
    let reference: Option<Reference> = pinned.parse().ok();
    let named = reference.as_ref().and_then(|reference| {
        let digest = reference.digest()?;
        Some(format!("{}@{digest}", reference.repository()))
    });
    named.unwrap_or_else(|| pinned.to_owned())
}

/// Whether the images of every way back are on the device; none while there is no way back, or nobody
/// knows what the engine stores.
pub fn rollback_ready(observed: &Observed, history: &ServiceHistory) -> Option<bool> {
    let stored = observed.stored.as_ref()?;
    history.last_good.as_ref()?;
    Some(history.ways_back().all(|service| {
        let pinned = service.pinned_image();
        pinned.is_some_and(|pinned| find(stored, &pinned).is_some())
    }))
}

fn find<'a>(stored: &'a [StoredImage], pinned: &str) -> Option<&'a StoredImage> {
    let name = canonical(pinned);
    stored.iter().find(|image| image.digests.contains(&name))
}

/// What a service needs an image for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// The target names it.
    Target,
    /// It is what the service goes back to when a trial fails.
    LastGood,
    /// It was good before the last commit.
    Previous,
    /// A container was made from it.
    Container,
}

/// An image that stays, and why.
struct Need<'a> {
    key: ServiceKey,
    image: String,
    config: ConfigDigest,
    of: Use,
    /// How it is fetched again.
    service: Option<&'a ServiceTarget>,
}

/// What is done about images, after everything that is done about services.
pub(crate) fn plan(situation: &Situation<'_>, plan: &mut Plan) {
    let Some(stored) = &situation.observed.stored else {
        return;
    };
    let tight = plan
        .holds
        .iter()
        .any(|hold| matches!(hold, Hold::NoSpace { .. }));
    let mut needs = needs(situation);
    // Short of room, what was good before the last commit is given up; the last good one never is.
    needs.retain(|need| need.of != Use::Previous || !tight);
    keep(situation, stored, &needs, plan);
    let paused = situation.closed.values().any(crate::Closed::is_pause);
    let on_trial = plan
        .holds
        .iter()
        .any(|hold| matches!(hold, Hold::Verifying { .. }));
    if !paused && !on_trial {
        collect(situation, stored, &needs, plan);
        clear_before_pulls(situation, plan);
    }
    if !paused && is_quiet(plan) {
        restore(situation, stored, &needs, plan);
    }
}

fn needs<'a>(situation: &Situation<'a>) -> Vec<Need<'a>> {
    let mut needs = Vec::new();
    let mut add = |key: &ServiceKey, service: &'a ServiceTarget, of| {
        if let Some((image, identity)) = service.pinned_image().zip(service.identity()) {
            needs.push(Need {
                key: key.clone(),
                image,
                config: identity.config_digest,
                of,
                service: Some(service),
            });
        }
    };
    for (key, service) in situation.target.services() {
        add(&key, service, Use::Target);
        let Some(history) = situation.history.of(&key) else {
            continue;
        };
        // Who wants the room before the download has given the old images up.
        if !makes_room(situation, &key, service, history) {
            if let Some(good) = &history.last_good {
                add(&key, good, Use::LastGood);
            }
            if let Some(previous) = &history.previous {
                add(&key, previous, Use::Previous);
            }
        }
    }
    for container in &situation.observed.containers {
        needs.push(Need {
            key: container.key.clone(),
            image: container.image.clone(),
            config: container.config_digest,
            of: Use::Container,
            service: None,
        });
    }
    needs
}

/// Whether the old images of a service go before the new one comes: its strategy says so, and the old
/// container is gone already.
fn makes_room(
    situation: &Situation<'_>,
    key: &ServiceKey,
    service: &ServiceTarget,
    history: &ServiceHistory,
) -> bool {
    let mut containers = situation.observed.containers.iter();
    let pinned = service.pinned_image();
    let present = pinned.is_some_and(|pinned| {
        let presence = situation.observed.images.get(&pinned);
        matches!(presence, Some(ImagePresence::Present { .. }))
    });
    service.config.strategy() == Strategy::DeleteThenDownload
        && !history.trusts(service)
        && history.rejects(service).is_none()
        && !present
        && containers.all(|container| container.key != *key)
}

/// What the old images of a service take that go before the new one comes; shared layers count too.
pub(crate) fn clears_bytes(
    situation: &Situation<'_>,
    service: &ServiceTarget,
    history: &ServiceHistory,
) -> u64 {
    if service.config.strategy() != Strategy::DeleteThenDownload {
        return 0;
    }
    let stored = situation.observed.stored.iter().flatten();
    let old: BTreeSet<String> = history
        .ways_back()
        .filter_map(ServiceTarget::pinned_image)
        .filter(|image| situation.history.pulled.contains_key(image))
        .map(|image| canonical(&image))
        .collect();
    stored
        .filter(|image| !image.digests.is_disjoint(&old))
        .map(|image| image.size_bytes)
        .sum()
}

/// Gives each needed image that is there its tag.
fn keep(situation: &Situation<'_>, stored: &[StoredImage], needs: &[Need<'_>], plan: &mut Plan) {
    let mut tagged = BTreeSet::new();
    for need in needs {
        let tag = keep_tag(&situation.observed.device, &need.key, &need.config);
        let is_kept = stored.iter().any(|image| image.tags.contains(&tag));
        let is_wrong = match situation.observed.images.get(&need.image) {
            Some(ImagePresence::Present { config, .. }) => {
                config.is_some_and(|config| config != need.config)
            }
            Some(ImagePresence::Absent) | None => false,
        };
        if is_kept || is_wrong || find(stored, &need.image).is_none() {
            continue;
        }
        if may_try(situation, &tag, plan) && tagged.insert(tag.clone()) {
            plan.steps.push(Step::Keep {
                key: need.key.clone(),
                image: need.image.clone(),
                tag,
            });
        }
    }
}

/// Removes tags that nothing needs any more, then images that the agent pulled and nobody else named.
fn collect(situation: &Situation<'_>, stored: &[StoredImage], needs: &[Need<'_>], plan: &mut Plan) {
    let device = &situation.observed.device;
    let prefix = keep_prefix(device);
    let needed: BTreeSet<String> = needs.iter().map(|need| canonical(&need.image)).collect();
    let kept: BTreeSet<String> = needs
        .iter()
        .map(|need| keep_tag(device, &need.key, &need.config))
        .collect();
    let mut over: BTreeMap<&String, ServiceKey> = BTreeMap::new();
    for tag in stored.iter().flat_map(|image| &image.tags) {
        if let Some(key) = key_of(tag, &prefix).filter(|_| !kept.contains(tag)) {
            over.insert(tag, key);
        }
    }
    let mut release = |tags: Vec<&String>, plan: &mut Plan| {
        for tag in tags {
            if let Some(key) = over.remove(tag)
                && may_try(situation, tag, plan)
            {
                let tag = tag.clone();
                plan.steps.push(Step::Release { key, tag });
            }
        }
    };
    for (image, key) in &situation.history.pulled {
        let is_pulled_now = situation.history.pulling.contains(image);
        if needed.contains(&canonical(image)) || is_pulled_now {
            continue;
        }
        let found = find(stored, image);
        let others =
            found.is_some_and(|found| !found.tags.iter().all(|tag| tag.starts_with(&prefix)));
        if others {
            continue;
        }
        // Tag and image of one go together: room may be enough after the first.
        release(
            found.map_or_else(Vec::new, |found| found.tags.iter().collect()),
            plan,
        );
        if may_try(situation, image, plan) {
            plan.steps.push(Step::Collect {
                key: key.clone(),
                image: image.clone(),
            });
        }
    }
    let rest = stored.iter().flat_map(|image| &image.tags).collect();
    release(rest, plan);
    forget_transit(situation, stored, plan);
}

/// Takes away the names on loopback that an agent left which died while an image came.
fn forget_transit(situation: &Situation<'_>, stored: &[StoredImage], plan: &mut Plan) {
    if !situation.history.pulling.is_empty() {
        return;
    }
    let prefix = keep_prefix(&situation.observed.device);
    for image in stored {
        let owner = image.tags.iter().find_map(|tag| key_of(tag, &prefix));
        let anybody = || situation.target.services().next().map(|(key, _)| key);
        let Some(key) = owner.or_else(anybody) else {
            continue;
        };
        for name in image.digests.iter().filter(|name| is_transit_name(name)) {
            if may_try(situation, name, plan) {
                plan.steps.push(Step::Release {
                    key: key.clone(),
                    tag: name.clone(),
                });
            }
        }
    }
}

/// With `delete-then-download` the old image is gone before the new one comes.
fn clear_before_pulls(situation: &Situation<'_>, plan: &mut Plan) {
    let nothing = ServiceHistory::default();
    let clearing: BTreeSet<ServiceKey> = situation
        .target
        .services()
        .filter(|(key, service)| {
            let history = situation.history.of(key).unwrap_or(&nothing);
            makes_room(situation, key, service, history)
        })
        .map(|(key, _)| key)
        .filter(|key| {
            let mut steps = plan.steps.iter();
            steps.any(|step| matches!(step, Step::Collect { key: of, .. } if of == key))
        })
        .collect();
    plan.steps
        .retain(|step| !(matches!(step, Step::Pull { .. }) && clearing.contains(step.key())));
}

/// Whether removing or naming an image did not fail a moment ago.
fn may_try(situation: &Situation<'_>, name: &str, plan: &mut Plan) -> bool {
    let retry = situation.history.images.get(name);
    let Some(retry) = retry.filter(|retry| retry.not_before > situation.now) else {
        return true;
    };
    wait_until(retry.not_before, plan);
    false
}

/// Whether nothing else is going on: what is lost is fetched again only then.
fn is_quiet(plan: &Plan) -> bool {
    plan.steps.is_empty()
        && plan.holds.iter().all(|hold| match hold {
            Hold::Rejected { .. }
            | Hold::Unresolved { .. }
            | Hold::UnsupportedPlatform { .. }
            | Hold::WrongImage { .. }
            | Hold::Refused { .. }
            | Hold::Closed { .. }
            | Hold::NoWayBack { .. }
            | Hold::Stranger { .. } => true,
            Hold::Verifying { .. }
            | Hold::PullFailed { .. }
            | Hold::NoSpace { .. }
            | Hold::StepFailed { .. }
            | Hold::Waiting { .. }
            | Hold::NetworkAway { .. }
            | Hold::Removing { .. } => false,
        })
}

/// Fetches what a way back needs and somebody removed. Never a swap: what runs goes on.
fn restore(situation: &Situation<'_>, stored: &[StoredImage], needs: &[Need<'_>], plan: &mut Plan) {
    let is_there = |config: ConfigDigest| {
        let same = needs.iter().filter(|need| need.config == config);
        same.into_iter()
            .any(|need| find(stored, &need.image).is_some())
    };
    let mut fetched = BTreeSet::new();
    for need in needs {
        let is_way_back = matches!(need.of, Use::LastGood | Use::Previous);
        if !is_way_back || is_there(need.config) || !fetched.insert(need.config) {
            continue;
        }
        // The target may name the same content by a newer name, which the registry keeps longer.
        let mut names = needs.iter().filter(|other| other.config == need.config);
        let source = names.find(|other| other.service.is_some()).unwrap_or(need);
        fetch(situation, source, plan);
    }
}

fn fetch(situation: &Situation<'_>, need: &Need<'_>, plan: &mut Plan) {
    let pin = need.service.and_then(|service| service.pin.as_ref());
    let Some((pin, expected)) = pin.and_then(|pin| pin.expected.clone().map(|e| (pin, e))) else {
        return;
    };
    let no_way_back = |error: String, until| Hold::NoWayBack {
        key: need.key.clone(),
        image: need.image.clone(),
        error,
        until,
    };
    let retry = situation.history.pulls.get(&need.image);
    if let Some(retry) = retry.filter(|retry| retry.not_before > situation.now) {
        wait_until(retry.not_before, plan);
        let until = Some(retry.not_before);
        plan.holds.push(no_way_back(retry.error.clone(), until));
        return;
    }
    if let Some(shortage) = crate::disk::lacks_for_pull(situation, &need.image, expected.size_bytes)
    {
        plan.holds.push(no_way_back(shortage.to_string(), None));
        return;
    }
    let platform = pin
        .platform
        .as_ref()
        .unwrap_or(&situation.observed.platform)
        .clone();
    plan.steps.push(Step::Pull {
        key: need.key.clone(),
        image: need.image.clone(),
        expected,
        platform,
        keep: keep_tag(&situation.observed.device, &need.key, &need.config),
        why: PullReason::WayBack,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(app: &str, service: &str) -> ServiceKey {
        ServiceKey {
            app: app.parse().expect("an id"),
            service: service.parse().expect("a name"),
        }
    }

    #[test]
    fn a_keep_tag_is_a_valid_reference_for_every_id() {
        let device = DeviceId::from_random([7; 16]);
        let config = ConfigDigest(Digest::of(b"config"));
        let long = "Z".repeat(64);
        for (app, service) in [("1001", "web"), ("My.App_1--", "W_._"), (&long, &long)] {
            let tag = keep_tag(&device, &key(app, service), &config);
            let reference: Reference = tag.parse().expect("a reference");
            assert_eq!(reference.repository().registry(), "holdfast.local");
            assert_eq!(reference.tag().map(str::len), Some(KEEP_DIGITS));
            assert_eq!(reference.to_string(), tag);
            assert!(key_of(&tag, &keep_prefix(&device)).is_some(), "{tag}");
        }
    }

    #[test]
    fn only_the_agents_own_names_on_loopback_are_transit_names() {
        let digest = Digest::of(b"x");
        let secret = "00112233445566778899aabbccddeeff";
        let name = |host: &str, path: &str| format!("{host}/{path}@{digest}");
        let path = format!("{secret}/web");
        assert!(is_transit_name(&name("127.0.0.1:4711", &path)));
        for other in [
            name("127.0.0.1", &path),
            name("127.0.0.1:registry", &path),
            name("192.0.2.1:4711", &path),
            name("127.0.0.1:4711", "web"),
            name("127.0.0.1:4711", "team/web"),
            name("127.0.0.1:4711", &format!("{secret}/team/web")),
            name("127.0.0.1:4711", &format!("{secret}0/web")),
            name("127.0.0.1:4711", &format!("{secret}/")),
            format!("127.0.0.1:4711/{secret}/web:1"),
        ] {
            assert!(!is_transit_name(&other), "{other}");
        }
    }

    #[test]
    fn another_devices_tag_is_not_ours() {
        let config = ConfigDigest(Digest::of(b"config"));
        let [one, other] = [1, 2].map(|byte| DeviceId::from_random([byte; 16]));
        let tag = keep_tag(&one, &key("1", "web"), &config);
        assert_eq!(key_of(&tag, &keep_prefix(&other)), None);
    }

    #[test]
    fn names_compare_however_much_of_them_is_written() {
        let digest = Digest::of(b"x");
        let short = canonical(&format!("redis@{digest}"));
        assert_eq!(
            short,
            canonical(&format!("docker.io/library/redis@{digest}"))
        );
        assert_eq!(canonical("<none>@<none>"), "<none>@<none>");
    }
}
