//! Owns getting ready: the image, the networks, the sandbox and the container. Touches nothing that runs.

use holdfast_proto::target::ServiceTarget;

use super::link::Link;
use super::{View, wait_until};
use crate::disk::{self, Shortage};
use crate::hold::Hold;
use crate::images::{self, keep_tag};
use crate::observed::ImagePresence;
use crate::step::{Plan, PullReason, Step};

impl View<'_> {
    /// Gets the image and makes the container.
    pub(super) fn prepare(&self, service: &ServiceTarget, link: &Link<'_>, plan: &mut Plan) {
        if !self.has_image(service, plan) {
            return;
        }
        if self.make_networks(service, plan) {
            return;
        }
        match link {
            Link::NotYet(of) => plan.holds.push(Hold::NetworkAway {
                key: self.key.clone(),
                of: of.clone(),
            }),
            Link::Missing(spec) => {
                let name = self.unique_name("-net", &spec.hash());
                plan.steps.push(Step::CreateSandbox {
                    key: self.key.clone(),
                    name,
                    generation: self.situation.target.generation,
                    sandbox: spec.clone(),
                });
            }
            Link::Own => self.create(service, None, plan),
            Link::Of(sandbox) => self.create(service, Some(sandbox.id.clone()), plan),
        }
    }

    /// Fetches the image ahead of time and does nothing else.
    pub(super) fn pull_ahead(&self, service: &ServiceTarget, plan: &mut Plan) {
        self.has_image(service, plan);
    }

    /// Whether the image is in the store; otherwise what is done about it.
    pub(crate) fn has_image(&self, service: &ServiceTarget, plan: &mut Plan) -> bool {
        let Some((pinned, pin)) = service.pinned_image().zip(service.pin.as_ref()) else {
            return false;
        };
        let Some(expected) = &pin.expected else {
            return false;
        };
        let device = &self.situation.observed.platform;
        let presence = self.situation.observed.images.get(&pinned);
        let image_platform = match presence {
            Some(ImagePresence::Present { platform, .. }) => Some(platform),
            Some(ImagePresence::Absent) | None => pin.platform.as_ref(),
        };
        if let Some(image) = image_platform.filter(|image| !device.runs(image)) {
            plan.holds.push(Hold::UnsupportedPlatform {
                key: self.key.clone(),
                image: image.clone(),
                device: device.clone(),
            });
            return false;
        }
        match presence {
            Some(ImagePresence::Present { config, .. }) => {
                let wrong = config.is_some_and(|config| config != expected.config_digest);
                if wrong {
                    plan.holds.push(Hold::WrongImage {
                        key: self.key.clone(),
                        image: pinned,
                    });
                }
                !wrong
            }
            Some(ImagePresence::Absent) | None => {
                self.pull(service, &pinned, plan);
                false
            }
        }
    }

    /// Whether a pull of the missing image may begin now: it has not failed a moment ago.
    pub(super) fn may_pull_now(&self, service: &ServiceTarget) -> bool {
        let Some(pinned) = service.pinned_image() else {
            return false;
        };
        let situation = self.situation;
        let retry = situation.history.pulls.get(&pinned);
        let missing = !matches!(
            situation.observed.images.get(&pinned),
            Some(ImagePresence::Present { .. })
        );
        missing && retry.is_none_or(|retry| retry.not_before <= situation.now)
    }

    /// What the update lacks on the disk before anything is made or stopped for it.
    pub(crate) fn lacks_room(&self, service: &ServiceTarget) -> Option<Shortage> {
        let (situation, pinned) = (self.situation, service.pinned_image()?);
        let expected = service.pin.as_ref()?.expected.as_ref()?;
        let present = matches!(
            situation.observed.images.get(&pinned),
            Some(ImagePresence::Present { .. })
        );
        if present || !self.stops_first(service) {
            return disk::lacks_for_swap(situation);
        }
        // Once everything has made room, the pull itself is asked whether it fits.
        if self.containers.is_empty() {
            return None;
        }
        let gain_bytes = images::clears_bytes(situation, service, self.history);
        disk::lacks(situation, &pinned, expected.size_bytes, gain_bytes)
    }

    pub(crate) fn hold_no_space(&self, shortage: Shortage, plan: &mut Plan) {
        plan.holds.push(Hold::NoSpace {
            key: self.key.clone(),
            shortage,
        });
    }

    fn pull(&self, service: &ServiceTarget, pinned: &str, plan: &mut Plan) {
        let Some(pin) = &service.pin else { return };
        let Some(expected) = pin.expected.clone() else {
            return;
        };
        let retry = self.situation.history.pulls.get(pinned);
        if let Some(retry) = retry.filter(|retry| retry.not_before > self.situation.now) {
            wait_until(retry.not_before, plan);
            plan.holds.push(Hold::PullFailed {
                key: self.key.clone(),
                image: pinned.to_owned(),
                error: retry.error.clone(),
                until: retry.not_before,
            });
            return;
        }
        if let Some(shortage) = disk::lacks_for_pull(self.situation, pinned, expected.size_bytes) {
            self.hold_no_space(shortage, plan);
            return;
        }
        let device = &self.situation.observed.device;
        let keep = keep_tag(device, self.key, &expected.config_digest);
        let platform = pin
            .platform
            .as_ref()
            .unwrap_or(&self.situation.observed.platform)
            .clone();
        plan.steps.push(Step::Pull {
            key: self.key.clone(),
            image: pinned.to_owned(),
            expected,
            platform,
            keep,
            why: PullReason::Update,
        });
    }

    fn create(&self, service: &ServiceTarget, sandbox: Option<String>, plan: &mut Plan) {
        let Some(identity) = service.identity() else {
            return;
        };
        let mut content = format!("{} {}", identity.config_digest, identity.spec_hash);
        if let Some(sandbox) = &sandbox {
            content = format!("{content} {sandbox}");
        }
        plan.steps.push(Step::Create {
            key: self.key.clone(),
            name: self.unique_name("", &content),
            generation: self.situation.target.generation,
            service: Box::new(service.clone()),
            sandbox,
        });
    }
}
