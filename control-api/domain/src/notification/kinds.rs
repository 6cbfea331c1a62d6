//! Owns what is known of kinds of events: how much each matters, and what people read when nobody wrote a text.
//!
//! Refuses to be silent about kinds it does not know: they have a plain text of what the event itself says.

use holdfast_proto::notification::Severity;
use serde_json::Value as Json;

use super::template::Template;
use super::{Notice, TEST};

/// What a kind is told as; the title is one line.
struct Words {
    kind: &'static str,
    title: &'static str,
    text: &'static str,
}

macro_rules! words {
    ($($kind:literal: $title:literal, $text:literal;)*) => {
        const WORDS: &[Words] = &[$(Words { kind: $kind, title: $title, text: $text }),*];
    };
}

words! {
    "image.rollout_created": "Rollout of {{subject}} begins", "{{detail.reason}}";
    "image.rollout_batch_started": "Rollout of {{subject}}: batch {{detail.batch}} began", "";
    "image.rollout_batch_completed": "Rollout of {{subject}}: batch {{detail.batch}} is done", "";
    "image.rollout_completed": "Rollout of {{subject}} is done", "Every device that could be reached runs it.";
    "image.rollout_failed": "Rollout of {{subject}} failed", "{{detail.reason}}";
    "image.rollout_rolled_back": "Rollout of {{subject}} was taken back", "Devices run what they ran before. {{detail.reason}}";
    "image.rollout_paused": "Rollout of {{subject}} is paused", "Nothing goes on until somebody resumes it. {{detail.reason}}";
    "image.rollout_resumed": "Rollout of {{subject}} goes on", "";
    "image.rollout_cancelled": "Rollout of {{subject}} was cancelled", "Devices that have it keep it. {{detail.reason}}";
    "image.webhook_received": "{{subject}} was pushed", "Told by {{detail.vendor}}.";
    "image.webhook_approved": "{{subject}} was pushed and may run", "";
    "image.webhook_rejected": "{{subject}} was pushed and may not run", "{{detail.reason}}";
    "image.approval_requested": "{{subject}} waits for approval", "Somebody pushed it, and nobody decided about it yet.";
    "image.registry.added": "{{subject}} was added to the images", "";
    "image.registry.removed": "{{subject}} was removed from the images", "";
    "image.tag.added": "{{subject}} is a new tag", "";
    "image.tag_moved": "{{subject}} points at other content now", "Devices keep what they run until somebody or a policy says otherwise.";
    "image.tag_moved_back": "{{subject}} points at older content again", "";
    "image.tag_returned": "{{subject}} is back in its registry", "";
    "image.tag_vanished": "{{subject}} is gone from its registry", "Devices keep what they run; new ones cannot pull it by this tag.";
    "device.enrolled": "{{device}} is a new device", "";
    "device.removed": "{{device}} was removed", "";
    "device.online": "{{device}} is back", "";
    "device.offline": "{{device}} is silent", "It did not poll for longer than it should.";
    "device.target_changed": "{{device}} has a new target", "Generation {{detail.generation}}.";
    "device.update_succeeded": "{{device}} was updated", "It runs generation {{detail.generation}}.";
    "device.update_failed": "{{device}} could not be updated", "{{detail.reason}}";
    "device.quarantined": "{{device}} is in quarantine", "{{detail.reason}}. Let one of them enrol again, or release it.";
    "device.rolled_back": "{{device}} went back to what ran before", "{{detail.reason}}";
    "notification.test": "A test from Holdfast", "Messages to the channel {{subject}} arrive.";
}

/// For kinds without words of their own.
const OTHER: Words = Words {
    kind: "",
    title: "{{kind}} {{subject}} {{device}}",
    text: "",
};

/// Kinds that matter more than their name's end says.
const WARNINGS: [&str; 6] = [
    "device.offline",
    "image.approval_requested",
    "image.rollout_paused",
    "image.tag_moved_back",
    "image.tag_vanished",
    "image.webhook_rejected",
];

/// How much an event of this kind matters; what a program says of itself in its detail counts for more.
pub fn severity(kind: &str, detail: &Json) -> Severity {
    match detail.get("severity").and_then(Json::as_str) {
        Some("error") => return Severity::Error,
        Some("warning") => return Severity::Warning,
        Some(_) | None => {}
    }
    if kind.ends_with("_failed") || kind.ends_with(".failed") {
        Severity::Error
    } else if WARNINGS.contains(&kind) || kind.ends_with("rolled_back") {
        Severity::Warning
    } else {
        Severity::Info
    }
}

/// Whether an event of this kind may be told at all.
///
/// What happens to notifications themselves is not: a message about a message that failed would fail, too.
pub fn may_be_told(kind: &str) -> bool {
    kind == TEST || !kind.starts_with("notification.")
}

/// The title and the text for an event where nobody wrote any.
pub fn words(notice: &Notice, escape: impl Fn(&str) -> String) -> (String, String) {
    let known = WORDS.iter().find(|words| words.kind == notice.kind);
    let words = known.unwrap_or(&OTHER);
    let render = |text: &str| {
        Template::lines(text).map_or_else(
            // Nothing is written, which is no template.
            |_| String::new(),
            |template| template.render(notice, &escape),
        )
    };
    let tidy = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    (tidy(render(words.title)), tidy(render(words.text)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::notice;
    use super::*;

    #[test]
    fn every_text_is_a_template() {
        for words in WORDS.iter().chain([&OTHER]) {
            Template::line(words.title).unwrap();
            if !words.text.is_empty() {
                Template::lines(words.text).unwrap();
            }
        }
        let mut kinds: Vec<&str> = WORDS.iter().map(|words| words.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), WORDS.len());
    }

    #[test]
    fn events_are_told_in_plain_words() {
        let told =
            |kind: &str, subject, detail| words(&notice(kind, subject, detail), str::to_owned);
        let (title, text) = told(
            "image.rollout_failed",
            Some("redis:7"),
            json!({ "reason": "3 of 10 failed" }),
        );
        assert_eq!(
            (title.as_str(), text.as_str()),
            ("Rollout of redis:7 failed", "3 of 10 failed")
        );
        let (title, text) = told("gadget.squeaked", Some("left"), json!({}));
        assert_eq!(
            (title.as_str(), text.as_str()),
            ("gadget.squeaked left", "")
        );
    }

    #[test]
    fn what_failed_matters_most() {
        let of = |kind: &str| severity(kind, &json!({}));
        for kind in [
            "image.rollout_failed",
            "device.update_failed",
            "backup.failed",
        ] {
            assert_eq!(of(kind), Severity::Error, "{kind}");
        }
        for kind in [
            "device.rolled_back",
            "image.rollout_rolled_back",
            "device.offline",
        ] {
            assert_eq!(of(kind), Severity::Warning, "{kind}");
        }
        assert_eq!(of("device.online"), Severity::Info);
        assert_eq!(
            severity("a.b", &json!({ "severity": "error" })),
            Severity::Error
        );
    }

    #[test]
    fn messages_about_messages_are_not_sent() {
        assert!(!may_be_told("notification.failed"));
        assert!(!may_be_told("notification.channel_created"));
        assert!(may_be_told(TEST) && may_be_told("device.offline"));
    }
}
