//! Owns what the image update policies of a device and of its fleet mean together, and whom a push reaches by itself.
//!
//! Refuses to let a fleet overrule its device: what the device says of a member counts.

use holdfast_proto::image_updates::ImageUpdatePolicy;
use holdfast_proto::problem::{FieldError, Pointer};

/// The longest time for which an answer is taken for good, in seconds; as for the whole server.
pub const LONGEST_TTL_S: u32 = 3_600;

/// What is wrong with a policy, beneath `at`, but for its time zone, which is the server's to know.
pub fn check(policy: &ImageUpdatePolicy, at: &Pointer) -> Option<FieldError> {
    let ttl_s = policy.digest_cache_ttl_s?;
    let detail = format!("write 0 to {LONGEST_TTL_S} seconds");
    (ttl_s > LONGEST_TTL_S).then(|| at.member("digestCacheTTL").error(detail))
}

/// What counts for a device: what it says itself, else what its fleet says, member by member.
pub fn effective(own: &ImageUpdatePolicy, of_fleet: &ImageUpdatePolicy) -> ImageUpdatePolicy {
    let window = own.update_window.as_ref();
    ImageUpdatePolicy {
        auto_resolve_digests: own.auto_resolve_digests.or(of_fleet.auto_resolve_digests),
        digest_cache_ttl_s: own.digest_cache_ttl_s.or(of_fleet.digest_cache_ttl_s),
        auto_update_latest: own.auto_update_latest.or(of_fleet.auto_update_latest),
        update_window: window.or(of_fleet.update_window.as_ref()).cloned(),
    }
}

/// Whether tags are resolved anew by themselves; so it is where nobody says otherwise.
pub fn resolves(policy: &ImageUpdatePolicy) -> bool {
    policy.auto_resolve_digests.unwrap_or(true)
}

/// Whether moving tags are updated by themselves; so it is where nobody says otherwise.
pub fn follows_latest(policy: &ImageUpdatePolicy) -> bool {
    policy.auto_update_latest.unwrap_or(true)
}

/// Whether a push of this tag, which no person ordered, may reach a device with this policy.
pub fn takes_push(policy: &ImageUpdatePolicy, tag: &str) -> bool {
    resolves(policy) && (follows_latest(policy) || !is_moving(tag))
}

/// Whether a tag names whatever is newest, such as `latest` or `stable-alpine`, and no version.
///
/// A version begins with a digit, or with one after a `v`: `1`, `v1.2`, `7.2-alpine`.
pub fn is_moving(tag: &str) -> bool {
    let version = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
    !version.starts_with(|first: char| first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn policy(text: Value) -> ImageUpdatePolicy {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_device_counts_before_its_fleet_member_by_member() {
        let night = json!({"start": "01:00", "end": "03:00", "timezone": "Europe/Berlin"});
        let fleet = policy(json!({
            "autoResolveDigests": false, "digestCacheTTL": 60, "autoUpdateLatest": false,
            "updateWindow": night,
        }));
        let none = ImageUpdatePolicy::default();
        assert_eq!(effective(&none, &fleet), fleet);
        assert_eq!(effective(&fleet, &none), fleet);
        for (member, own) in [
            ("autoResolveDigests", json!(true)),
            ("digestCacheTTL", json!(0)),
            ("autoUpdateLatest", json!(true)),
            (
                "updateWindow",
                json!({"start": "00:00", "end": "00:00", "timezone": "UTC"}),
            ),
        ] {
            let mut expected = serde_json::to_value(&fleet).unwrap();
            assert_ne!(expected[member], own);
            expected[member] = own.clone();
            let found = effective(&policy(json!({ member: own })), &fleet);
            assert_eq!(serde_json::to_value(&found).unwrap(), expected);
        }
    }

    #[test]
    fn versions_stand_and_names_move() {
        for tag in [
            "latest",
            "stable",
            "main",
            "nightly-alpine",
            "vnext",
            "v",
            "",
        ] {
            assert!(is_moving(tag), "{tag}");
        }
        for tag in ["1", "v1", "V2.0", "1.25.3", "7.2-alpine", "2024-11-01"] {
            assert!(!is_moving(tag), "{tag}");
        }
    }

    #[test]
    fn an_answer_is_taken_for_good_for_an_hour_at_most() {
        let at = Pointer::default().member("imageUpdatePolicy");
        for ttl_s in [0, LONGEST_TTL_S] {
            assert_eq!(check(&policy(json!({"digestCacheTTL": ttl_s})), &at), None);
        }
        let wrong = check(&policy(json!({"digestCacheTTL": LONGEST_TTL_S + 1})), &at);
        let pointer = wrong.unwrap().pointer;
        assert_eq!(pointer, "/imageUpdatePolicy/digestCacheTTL");
    }

    proptest! {
        #[test]
        fn who_resolves_nothing_takes_no_push_and_who_says_nothing_takes_all(
            resolves in proptest::option::of(any::<bool>()),
            latest in proptest::option::of(any::<bool>()),
            tag in "[a-z0-9][a-z0-9.-]{0,12}",
        ) {
            let policy = ImageUpdatePolicy {
                auto_resolve_digests: resolves,
                auto_update_latest: latest,
                ..ImageUpdatePolicy::default()
            };
            let expected = match (resolves, latest) {
                (Some(false), _) => false,
                (None | Some(true), Some(false)) => !is_moving(&tag),
                (None | Some(true), None | Some(true)) => true,
            };
            prop_assert_eq!(takes_push(&policy, &tag), expected);
        }
    }
}
