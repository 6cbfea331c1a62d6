//! Owns what a policy means: whether it can be carried out, which of several counts for an image, and what it makes
//! of a rollout.
//!
//! Refuses settings that contradict each other, naming the member, before anything begins.

use std::cmp::Reverse;
use std::num::NonZeroU32;

use holdfast_proto::image::Repository;
use holdfast_proto::policy::{OfflineDevices, PolicyInput, StageInput, UpdateStrategy};
use holdfast_proto::problem::{FieldError, Pointer};

use crate::pattern::ImagePattern;
use crate::rollout::batches::{Shape, Size, Stage};
use crate::rollout::tick::{Budget, Rules};

const MINUTE_MS: i64 = 60_000;
/// Devices of a hundred in each batch, unless told.
const BATCH_PERCENT: u8 = 10;
/// More stages are batches.
const MAX_STAGES: usize = 16;
/// A month: a rollout that soaks longer than that is none.
const MAX_MINUTES: u32 = 31 * 24 * 60;
/// Paused, or waiting for people, for so long it is over.
const ABANDON_MS: i64 = 14 * 24 * 60 * MINUTE_MS;
const MAX_NAME: usize = 200;

/// A policy that can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Images that it is for.
    pub pattern: ImagePattern,
    /// How a fleet is cut.
    pub shape: Shape,
    /// Pace and failure.
    pub rules: Rules,
    /// What was written.
    pub input: PolicyInput,
}

impl Policy {
    /// Reads what was written.
    ///
    /// # Errors
    /// Everything that is wrong with it, by member.
    pub fn read(input: PolicyInput) -> Result<Self, Vec<FieldError>> {
        let mut check = Check::default();
        let pattern = check.pattern(&input);
        let stages = check.stages(&input);
        let rest = check.rest(&input);
        check.thresholds(&input);
        check.times(&input);
        check.others(&input);
        let (Some(pattern), true) = (pattern, check.errors.is_empty()) else {
            return Err(check.errors);
        };
        Ok(Self {
            pattern,
            shape: Shape { stages, rest },
            rules: rules(&input),
            input,
        })
    }

    /// Whether it counts for a tag of a repository.
    pub fn is_for(&self, repository: &Repository, tag: &str) -> bool {
        self.input.enabled && self.pattern.matches(repository, tag)
    }
}

/// Of these policies, by their numbers, the one that counts: the most specific, then that of the greatest priority,
/// then the oldest.
pub fn choose<'a>(
    policies: impl IntoIterator<Item = (i64, &'a Policy)>,
    repository: &Repository,
    tag: &str,
) -> Option<(i64, &'a Policy)> {
    let fitting = policies
        .into_iter()
        .filter(|(_, policy)| policy.is_for(repository, tag));
    fitting.max_by_key(|(id, policy)| {
        let specificity = policy.pattern.specificity();
        (specificity, policy.input.priority, Reverse(*id))
    })
}

fn rules(input: &PolicyInput) -> Rules {
    let count = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    Rules {
        health_timeout_ms: i64::from(input.health_timeout_minutes) * MINUTE_MS,
        soak_ms: i64::from(input.batch_delay_minutes) * MINUTE_MS,
        max_failure_percent: input.max_failure_rate,
        min_failures: count(input.min_failures),
        min_success_percent: input.min_success,
        auto_rollback: input.auto_rollback,
        approve_batches: input.approve_batches,
        manual_start: input.update_strategy == UpdateStrategy::Manual,
        skip_offline: input.offline_devices == OfflineDevices::Skip,
        budget: input.disruption_budget.as_ref().map(|budget| Budget {
            label: budget.label.clone(),
            most: count(budget.most),
        }),
        abandon_ms: ABANDON_MS,
    }
}

/// What is wrong so far.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn wrong(&mut self, at: &Pointer, detail: impl Into<String>) {
        self.errors.push(at.error(detail));
    }

    fn pattern(&mut self, input: &PolicyInput) -> Option<ImagePattern> {
        match input.image_pattern.parse() {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                self.wrong(&member("image_pattern"), error.to_string());
                None
            }
        }
    }

    fn size(
        &mut self,
        at: &Pointer,
        names: (&str, &str),
        size: Option<u32>,
        percent: Option<u8>,
    ) -> Size {
        let (of_size, of_percent) = names;
        match (size, percent) {
            (Some(_), Some(_)) => {
                let detail = format!("write {of_size} or {of_percent}, not both");
                self.wrong(&at.member(of_percent), detail);
                Size::All
            }
            (Some(size), None) => NonZeroU32::new(size).map_or_else(
                || {
                    self.wrong(&at.member(of_size), "a batch has one device at least");
                    Size::All
                },
                Size::Count,
            ),
            (None, Some(percent)) => {
                if !(1..=100).contains(&percent) {
                    self.wrong(&at.member(of_percent), "write 1 to 100");
                }
                Size::Percent(percent)
            }
            (None, None) => Size::All,
        }
    }

    fn stages(&mut self, input: &PolicyInput) -> Vec<Stage> {
        let at = member("stages");
        let is_canary = input.update_strategy == UpdateStrategy::Canary;
        match (is_canary, input.stages.is_empty()) {
            (true, true) => {
                let detail = "say who goes first: `[{\"selector\": {\"ring\": \"canary\"}}]`";
                self.wrong(&at, detail);
            }
            (false, false) if input.update_strategy == UpdateStrategy::Immediate => {
                self.wrong(
                    &at,
                    "all devices go at once with `immediate`: write `canary` or `staged`",
                );
            }
            (true | false, _) => {}
        }
        if input.stages.len() > MAX_STAGES {
            self.wrong(&at, format!("more than {MAX_STAGES} stages"));
        }
        let stages = input.stages.iter().enumerate();
        stages
            .map(|(n, stage)| {
                let StageInput {
                    selector,
                    size,
                    percent,
                } = stage;
                let at = at.member(n);
                if selector.is_empty() && size.is_none() && percent.is_none() {
                    self.wrong(&at, "it is every device: say which, or how many");
                }
                Stage {
                    selector: selector.clone(),
                    size: self.size(&at, ("size", "percent"), *size, *percent),
                }
            })
            .collect()
    }

    fn rest(&mut self, input: &PolicyInput) -> Size {
        let at = Pointer::default();
        let (size, percent) = (input.batch_size, input.batch_percent);
        if input.update_strategy == UpdateStrategy::Immediate {
            if size.is_some() || percent.is_some() {
                let detail = "all devices go at once with `immediate`";
                self.wrong(&member("update_strategy"), detail);
            }
            return Size::All;
        }
        let percent = percent.or((size.is_none()).then_some(BATCH_PERCENT));
        self.size(&at, ("batch_size", "batch_percent"), size, percent)
    }

    fn thresholds(&mut self, input: &PolicyInput) {
        let (failures, success) = (input.max_failure_rate, input.min_success);
        if failures > 100 {
            self.wrong(&member("max_failure_rate"), "write 0 to 100");
        }
        if !(1..=100).contains(&success) {
            let detail = "write 1 to 100: a batch in which nobody succeeds is no success";
            self.wrong(&member("min_success"), detail);
        } else if u16::from(failures) + u16::from(success) > 100 {
            let detail = format!(
                "{failures} of a hundred may fail and {success} must succeed: together they are more than all"
            );
            self.wrong(&member("max_failure_rate"), detail);
        }
        if input.min_failures == 0 {
            self.wrong(&member("min_failures"), "write 1 or more");
        }
    }

    fn times(&mut self, input: &PolicyInput) {
        if !(1..=MAX_MINUTES).contains(&input.health_timeout_minutes) {
            let detail = format!("write 1 to {MAX_MINUTES} minutes");
            self.wrong(&member("health_timeout_minutes"), detail);
        }
        if input.batch_delay_minutes > MAX_MINUTES {
            let detail = format!("write at most {MAX_MINUTES} minutes");
            self.wrong(&member("batch_delay_minutes"), detail);
        }
        let has_windows = !input.windows.is_empty();
        if input.update_strategy == UpdateStrategy::Scheduled && !has_windows {
            self.wrong(&member("windows"), "`scheduled` needs windows");
        }
        holdfast_proto::window::check(&input.windows, &member("windows"), &mut self.errors);
    }

    fn others(&mut self, input: &PolicyInput) {
        let name = input.name.trim();
        if name.is_empty() || name.len() > MAX_NAME {
            let detail = format!("write 1 to {MAX_NAME} characters");
            self.wrong(&member("name"), detail);
        }
        if let Some(budget) = &input.disruption_budget {
            let at = member("disruption_budget");
            if budget.most == 0 {
                self.wrong(&at.member("most"), "with 0 no device could ever be updated");
            }
            if budget.label.is_empty() {
                self.wrong(
                    &at.member("label"),
                    "name the label whose values are the groups",
                );
            }
        }
    }
}

fn member(name: &str) -> Pointer {
    Pointer::default().member(name)
}

#[cfg(test)]
mod tests {
    use holdfast_proto::image::Reference;
    use serde_json::{Value, json};

    use super::*;

    fn read(more: &Value) -> Result<Policy, Vec<String>> {
        let mut policy = json!({ "name": "p", "image_pattern": "redis:*" });
        for (name, value) in more.as_object().unwrap() {
            policy[name] = value.clone();
        }
        let input = serde_json::from_value(policy).unwrap();
        let read = Policy::read(input);
        read.map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_short_policy_is_a_careful_one() {
        let policy = read(&json!({})).unwrap();
        assert_eq!(policy.shape.rest, Size::Percent(10));
        assert!(policy.rules.auto_rollback && !policy.rules.manual_start);
        assert_eq!(policy.rules.soak_ms, 5 * MINUTE_MS);
        assert_eq!(policy.rules.max_failure_percent, 10);
    }

    #[test]
    fn c48_what_cannot_be_carried_out_is_refused_by_member() {
        for (more, expected) in [
            (json!({ "name": " " }), "/name: "),
            (
                json!({ "image_pattern": "a b" }),
                "/image_pattern: ' ' is in no",
            ),
            (json!({ "batch_size": 0 }), "/batch_size: a batch has one"),
            (
                json!({ "batch_percent": 0 }),
                "/batch_percent: write 1 to 100",
            ),
            (
                json!({ "batch_percent": 101 }),
                "/batch_percent: write 1 to 100",
            ),
            (
                json!({ "batch_percent": 5, "batch_size": 5 }),
                "/batch_percent: write batch_size or",
            ),
            (
                json!({ "max_failure_rate": 101 }),
                "/max_failure_rate: write 0",
            ),
            (
                json!({ "max_failure_rate": 20 }),
                "/max_failure_rate: 20 of a",
            ),
            (json!({ "min_success": 0 }), "/min_success: write 1"),
            (json!({ "min_failures": 0 }), "/min_failures: write 1"),
            (
                json!({ "health_timeout_minutes": 0 }),
                "/health_timeout_minutes",
            ),
            (
                json!({ "batch_delay_minutes": 50_000 }),
                "/batch_delay_minutes",
            ),
            (
                json!({ "update_strategy": "scheduled" }),
                "/windows: `scheduled`",
            ),
            (
                json!({ "update_strategy": "canary" }),
                "/stages: say who goes",
            ),
            (
                json!({ "update_strategy": "immediate", "batch_size": 2 }),
                "/update_strategy: all devices",
            ),
            (
                json!({ "update_strategy": "immediate", "stages": [{ "size": 1 }] }),
                "/stages: all devices",
            ),
            (json!({ "stages": [{}] }), "/stages/0: it is every device"),
            (
                json!({ "stages": [{ "size": 0 }] }),
                "/stages/0/size: a batch",
            ),
            (
                json!({ "disruption_budget": { "label": "site", "most": 0 } }),
                "/disruption_budget/most: with 0",
            ),
            (
                json!({ "disruption_budget": { "label": "", "most": 1 } }),
                "/disruption_budget/label: name",
            ),
        ] {
            let errors = read(&more).unwrap_err();
            assert!(errors[0].starts_with(expected), "{more}: {errors:?}");
        }
        let many = read(&json!({ "batch_size": 0, "min_failures": 0, "name": "" }));
        assert_eq!(many.unwrap_err().len(), 3);
    }

    #[test]
    fn the_most_specific_counts_then_the_greatest_priority_then_the_oldest() {
        let policy = |pattern: &str, priority: i32, enabled: bool| {
            read(&json!({ "image_pattern": pattern, "priority": priority, "enabled": enabled }))
                .unwrap()
        };
        let policies = [
            policy("*", 100, true),
            policy("redis:*", 1, true),
            policy("redis:*", 5, true),
            policy("redis:*", 5, true),
            policy("redis:7", 0, false),
        ];
        let numbered = || (1..).zip(&policies);
        let chosen = |image: &str| {
            let reference: Reference = image.parse().unwrap();
            let tag = reference.tag_or_latest();
            choose(numbered(), reference.repository(), tag).map(|(id, _)| id)
        };
        assert_eq!(chosen("redis:7"), Some(3));
        assert_eq!(chosen("nginx:1"), Some(1));
        assert_eq!(
            choose(
                [],
                "redis:7".parse::<Reference>().unwrap().repository(),
                "7"
            ),
            None
        );
    }
}
