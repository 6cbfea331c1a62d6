//! Owns what is known of updates: what a device reported beside what registries said when last asked.
//!
//! Refuses to guess: whatever could not be confirmed when it was last asked for is unknown.

use holdfast_proto::current::{CurrentState, ServiceReport};
use holdfast_proto::image::{
    Content, Digest, Pin, Platform, Pulled, Reference, ResolvedImage, Running, Same, TopDigest,
    compare,
};
use holdfast_proto::target::TargetState;
use holdfast_proto::updates::{Finding, Offer, Subject, UpdateReport};

use crate::resolution::Known;

/// The report on each container that a device reported.
///
/// `known` says what is known of a reference for this device.
pub fn of_device(
    platform: &Platform,
    state: &CurrentState,
    target: Option<&TargetState>,
    mut known: impl FnMut(&Reference) -> Option<Known>,
) -> Vec<(Option<Reference>, UpdateReport)> {
    let mut reports = Vec::new();
    for (app, services) in &state.apps {
        for (name, service) in &services.services {
            let (Some(id), Some(image)) = (&service.container_id, &service.image) else {
                // Nothing runs, so nothing can be updated.
                continue;
            };
            let pinned: Option<Reference> = image.parse().ok();
            let mut targets = target.into_iter().flat_map(TargetState::services);
            let pin = targets
                .find(|(key, service)| key.app == *app && service.service_name == *name)
                .and_then(|(_, service)| service.pin.as_ref())
                .filter(|pin| is_of(pin, pinned.as_ref()));
            let reference = pin.map(|pin| pin.reference.clone()).or(pinned.clone());
            let found = reference.as_ref().and_then(&mut known);
            let running = running(platform, service, pin, pinned.as_ref(), found.as_ref());
            let subject = Subject {
                container_name: service.container_name.clone().unwrap_or_default(),
                container_id: id.clone(),
                image_reference: reference
                    .as_ref()
                    .map_or_else(|| image.clone(), ToString::to_string),
                state: service.state.clone(),
                platform: Some(running.platform.clone()),
                running: running.pulled.digests().first().copied(),
            };
            let finding = find(platform, &running, reference.as_ref(), found);
            reports.push((reference, UpdateReport::new(subject, finding)));
        }
    }
    reports
}

/// Whether a pin is of the repository that the image came from: a target that names another image says
/// nothing about the one that runs.
fn is_of(pin: &Pin, image: Option<&Reference>) -> bool {
    image.is_some_and(|image| image.repository() == pin.reference.repository())
}

fn running(
    device: &Platform,
    service: &ServiceReport,
    pin: Option<&Pin>,
    image: Option<&Reference>,
    known: Option<&Known>,
) -> Running {
    let config = service.config_digest;
    // The platform of what runs, from whoever knows its configuration.
    let pinned = pin.and_then(|pin| {
        let expected = pin.expected.as_ref()?;
        (Some(expected.config_digest) == config).then(|| pin.platform.clone())?
    });
    let offered = known.and_then(|known| {
        let platforms = &known.image.as_ref()?.platforms;
        let own = platforms
            .iter()
            .find(|own| Some(own.config_digest) == config)?;
        Some(own.platform.clone())
    });
    let digest: Option<Digest> = image.and_then(|image| image.digest().copied());
    Running {
        content: config.map(Content::Config),
        platform: pinned.or(offered).unwrap_or_else(|| device.clone()),
        pulled: digest.map_or(Pulled::Never, |digest| Pulled::By(vec![digest])),
    }
}

fn offer(image: &ResolvedImage) -> Offer {
    Offer {
        digest: *image.top.digest(),
        is_list: matches!(image.top, TopDigest::Index(_)),
    }
}

fn find(
    device: &Platform,
    running: &Running,
    reference: Option<&Reference>,
    known: Option<Known>,
) -> Finding {
    let unknown = |offer, error: String| Finding::Unknown { offer, error };
    let Some(reference) = reference else {
        return unknown(
            None,
            "its image has a name that no registry can have".into(),
        );
    };
    if reference.digest().is_some() {
        return Finding::Pinned;
    }
    let Some(Known { image, error, .. }) = known else {
        return unknown(None, "the registry was not asked yet".into());
    };
    match (image, error) {
        (image, Some(error)) => unknown(image.as_ref().map(offer), error),
        (None, None) => unknown(None, "the registry was not asked yet".into()),
        (Some(image), None) => match compare(running, &image, device) {
            Same::Yes => Finding::Compared {
                offer: offer(&image),
                has_update: false,
            },
            Same::No => Finding::Compared {
                offer: offer(&image),
                has_update: true,
            },
            Same::Unknown(doubt) => unknown(Some(offer(&image)), doubt.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::{
        ConfigDigest, IndexDigest, ManifestDigest, PlatformImage, ResolvedImage,
    };
    use holdfast_proto::time::Timestamp;
    use holdfast_proto::updates::UpdateFinding;

    use super::*;
    use crate::resolution::{Failure, learn};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn image(content: &str, platforms: &[&str]) -> ResolvedImage {
        let reference: Reference = "nginx".parse().unwrap();
        ResolvedImage {
            repository: reference.repository().clone(),
            top: TopDigest::Index(IndexDigest(digest(content))),
            media_type: "application/vnd.oci.image.index.v1+json".into(),
            platforms: platforms
                .iter()
                .map(|platform| {
                    let (platform, config) = platform.split_once('=').unwrap();
                    PlatformImage {
                        platform: platform.parse().unwrap(),
                        manifest_digest: ManifestDigest(digest(&format!("m {config}"))),
                        config_digest: ConfigDigest(digest(config)),
                        size_bytes: 1,
                    }
                })
                .collect(),
        }
    }

    fn state(image: &str, config: &str) -> CurrentState {
        let body = format!(
            r#"{{"sequence":1,"agentVersion":"1","generation":1,"status":"converged","apps":{{"1":{{
                "services":{{"web":{{"containerId":"c","containerName":"web-1","image":"{image}",
                "configDigest":"{}","state":"running"}}}}}}}}}}"#,
            digest(config)
        );
        serde_json::from_str(&body).unwrap()
    }

    fn target(reference: &str, content: &str) -> TargetState {
        let input = format!(
            r#"{{"apps":{{"1":{{"appId":1,"appName":"a","services":[
                {{"serviceId":1,"serviceName":"web","imageName":"{reference}"}}]}}}}}}"#
        );
        let input = holdfast_proto::target::TargetInput::parse(input.as_bytes()).unwrap();
        let known = learn(
            None,
            Ok(image(content, &["linux/arm64=a", "linux/amd64=x"])),
            Timestamp::from_millis(1),
        );
        let key = crate::resolution::Key::of(&reference.parse().unwrap());
        let rendered = crate::target::render(
            &input,
            &"linux/arm64".parse().unwrap(),
            &[(key, known)].into(),
            Timestamp::from_millis(1),
        );
        crate::target::document(
            holdfast_proto::id::DeviceId::from_random([1; 16]),
            1,
            rendered.apps,
        )
    }

    fn report(
        running: (&str, &str),
        reference: &str,
        answer: Result<ResolvedImage, Failure>,
    ) -> UpdateReport {
        let known = learn(
            Some(&learn(
                None,
                Ok(image("old", &["linux/arm64=a"])),
                Timestamp::from_millis(1),
            )),
            answer,
            Timestamp::from_millis(2),
        );
        let (content, config) = running;
        let name = format!("nginx@{}", digest(content));
        let mut reports = of_device(
            &"linux/arm64".parse().unwrap(),
            &state(&name, config),
            Some(&target(reference, content)),
            |_| Some(known.clone()),
        );
        reports.pop().unwrap().1
    }

    #[test]
    fn another_image_for_the_devices_platform_is_an_update() {
        let new = image("new", &["linux/arm64=b", "linux/amd64=x"]);
        let report = report(("old", "a"), "nginx:1", Ok(new));
        assert_eq!(report.has_update, Some(true));
        assert_eq!(report.image_reference, "nginx:1");
        assert_eq!(report.tag.as_deref(), Some("1"));
        assert_eq!(report.running_digest, Some(digest("old").to_string()));
        assert_eq!(report.registry_digest, Some(digest("new").to_string()));
        assert_eq!(report.is_manifest_list, Some(true));
        assert_eq!(report.platform, Some("linux/arm64".parse().unwrap()));
    }

    #[test]
    fn an_index_that_changed_for_another_platform_is_none() {
        let new = image("new", &["linux/arm64=a", "linux/amd64=y"]);
        let report = report(("old", "a"), "nginx:1", Ok(new));
        assert_eq!(report.has_update, Some(false));
        assert_eq!(report.status, UpdateFinding::UpToDate);
    }

    #[test]
    fn what_the_registry_did_not_confirm_is_unknown() {
        let failure = Failure::new("rate_limited", "limits our rate (429)");
        let report = report(("old", "a"), "nginx:1", Err(failure));
        assert_eq!(report.has_update, None);
        assert_eq!(report.error.as_deref(), Some("limits our rate (429)"));
        assert_eq!(report.registry_digest, Some(digest("old").to_string()));
    }

    #[test]
    fn a_platform_that_is_gone_is_unknown() {
        let new = image("new", &["linux/amd64=x"]);
        let report = report(("old", "a"), "nginx:1", Ok(new));
        assert_eq!(report.has_update, None);
        assert!(report.error.unwrap().contains("linux/arm64"));
    }

    #[test]
    fn a_digest_is_no_update_whatever_the_registry_has() {
        let pinned = format!("nginx:1@{}", digest("old"));
        let new = image("new", &["linux/arm64=b"]);
        let report = report(("old", "a"), &pinned, Ok(new));
        assert_eq!(report.has_update, Some(false));
        assert_eq!(report.status, UpdateFinding::Pinned);
    }

    #[test]
    fn a_target_for_another_repository_says_nothing_about_what_runs() {
        let new = image("new", &["linux/arm64=b"]);
        let report = report(("old", "a"), "redis:7", Ok(new));
        assert_eq!(report.status, UpdateFinding::Pinned);
    }

    #[test]
    fn a_container_without_a_digest_is_unknown() {
        let mut state = state(&format!("nginx@{}", digest("old")), "a");
        let services = state
            .apps
            .values_mut()
            .flat_map(|app| app.services.values_mut());
        for service in services {
            service.config_digest = None;
        }
        let known = learn(
            None,
            Ok(image("new", &["linux/arm64=b"])),
            Timestamp::from_millis(1),
        );
        let target = target("nginx:1", "old");
        let platform: Platform = "linux/arm64".parse().unwrap();
        let reports = of_device(&platform, &state, Some(&target), |_| Some(known.clone()));
        assert_eq!(reports[0].1.has_update, None);
        assert!(reports[0].1.error.is_some());
    }
}
