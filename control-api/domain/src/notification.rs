//! Owns what people are told of events, and where: which channel wants what, in which words and in which form, and
//! when it is tried again.
//!
//! Refuses to let what devices and registries say act as markup, as a mention or as a header.

pub mod channel;
pub mod destination;
pub mod forms;
pub mod kinds;
pub mod mail;
pub mod redact;
pub mod schedule;
pub mod template;

use std::collections::BTreeMap;

use holdfast_proto::id::DeviceId;
use holdfast_proto::notification::Severity;
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Details longer than this are left out: a message is no archive, and the event can be looked up by its number.
const LONGEST_DETAIL: usize = 16 * 1024;
/// Kinds that a summary names; more are one line.
const KINDS_NAMED: usize = 20;

/// What a test message is about.
pub const TEST: &str = "notification.test";

/// An event as it is told: a copy, so that it is told the same however often it is tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The event's number; 0 for a test.
    pub id: i64,
    /// What happened, such as `device.enrolled`.
    pub kind: String,
    /// How much it matters.
    pub severity: Severity,
    /// When.
    pub at: Timestamp,
    /// What is concerned, such as an image.
    pub subject: Option<String>,
    /// The device concerned.
    pub device: Option<DeviceId>,
    /// What people call the device.
    pub device_name: Option<String>,
    /// The fleet concerned.
    pub fleet: Option<String>,
    /// The rest, by kind.
    pub detail: Json,
}

impl Notice {
    /// The same with a detail of a size that can be sent everywhere.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        if self.detail.to_string().len() > LONGEST_DETAIL {
            self.detail = serde_json::json!({ "left_out": "too long" });
        }
        self
    }

    /// What a test tells.
    pub fn test(channel: &str, now: Timestamp) -> Self {
        Self {
            id: 0,
            kind: TEST.to_owned(),
            severity: Severity::Info,
            at: now,
            subject: Some(channel.to_owned()),
            device: None,
            device_name: None,
            fleet: None,
            detail: serde_json::json!({}),
        }
    }
}

/// Many events in one message, because one by one they would be too many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many of each kind.
    pub kinds: BTreeMap<String, u64>,
    /// When the first of them was to be told.
    pub first: Timestamp,
    /// When the last of them was to be told.
    pub last: Timestamp,
    /// The worst of them.
    pub severity: Severity,
}

impl Summary {
    /// What sums up these contents.
    pub fn of<'a>(contents: impl IntoIterator<Item = &'a Content>) -> Self {
        let mut sum: Option<Self> = None;
        for content in contents {
            let one = match content {
                Content::Event(notice) => Self {
                    kinds: [(notice.kind.clone(), 1)].into(),
                    first: notice.at,
                    last: notice.at,
                    severity: notice.severity,
                },
                Content::Summary(summary) => summary.clone(),
            };
            sum = Some(match sum {
                None => one,
                Some(before) => before.with(one),
            });
        }
        sum.unwrap_or_default()
    }

    fn with(mut self, other: Self) -> Self {
        for (kind, count) in other.kinds {
            let sum = self.kinds.entry(kind).or_default();
            *sum = sum.saturating_add(count);
        }
        Self {
            kinds: self.kinds,
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            severity: self.severity.max(other.severity),
        }
    }

    /// How many events.
    pub fn count(&self) -> u64 {
        self.kinds.values().sum()
    }

    /// What people read above it.
    pub fn title(&self) -> String {
        format!("{} more events", self.count())
    }

    /// What people read.
    pub fn text(&self) -> String {
        let mut kinds: Vec<(&String, &u64)> = self.kinds.iter().collect();
        kinds.sort_by(|(one, n), (other, m)| m.cmp(n).then(one.cmp(other)));
        let mut lines = vec![format!(
            "From {} to {} there were more events than this channel takes one by one:",
            self.first, self.last
        )];
        let named = kinds.iter().take(KINDS_NAMED);
        lines.extend(named.map(|(kind, count)| format!("{count} × {kind}")));
        let others: u64 = kinds
            .iter()
            .skip(KINDS_NAMED)
            .map(|(_, count)| **count)
            .sum();
        if others > 0 {
            lines.push(format!("{others} × other kinds"));
        }
        lines.join("\n")
    }
}

/// What one message tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// One event.
    Event(Notice),
    /// Many.
    Summary(Summary),
}

impl Content {
    /// What happened, in one word.
    pub fn kind(&self) -> &str {
        match self {
            Self::Event(notice) => &notice.kind,
            Self::Summary(_) => "notification.summary",
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Event(notice) => notice.severity,
            Self::Summary(summary) => summary.severity,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) const AT: Timestamp = Timestamp::from_millis(1_795_239_600_123);

    pub(crate) fn notice(kind: &str, subject: Option<&str>, detail: Json) -> Notice {
        Notice {
            id: 7,
            kind: kind.to_owned(),
            severity: kinds::severity(kind, &detail),
            at: AT,
            subject: subject.map(str::to_owned),
            device: None,
            device_name: None,
            fleet: None,
            detail,
        }
    }

    #[test]
    fn a_summary_counts_also_what_was_summed_up_before() {
        let offline = Content::Event(notice("device.offline", None, json!({})));
        let mut later = notice("image.rollout_failed", None, json!({}));
        later.at = AT.plus_ms(60_000);
        let first = Summary::of([&offline, &offline, &Content::Event(later)]);
        assert_eq!(first.count(), 3);
        assert_eq!(first.severity, Severity::Error);
        let both = Summary::of([&Content::Summary(first), &offline]);
        assert_eq!(both.title(), "4 more events");
        assert_eq!(
            both.text(),
            "From 2026-11-21T05:40:00.123Z to 2026-11-21T05:41:00.123Z there were more events than this \
             channel takes one by one:\n3 × device.offline\n1 × image.rollout_failed"
        );
    }

    #[test]
    fn a_summary_of_many_kinds_stays_short() {
        let contents: Vec<Content> = (0..100)
            .map(|n| Content::Event(notice(&format!("kind.n{n:03}"), None, json!({}))))
            .collect();
        let text = Summary::of(&contents).text();
        assert_eq!(text.lines().count(), 1 + KINDS_NAMED + 1);
        assert!(text.ends_with("\n80 × other kinds"));
    }

    #[test]
    fn a_detail_that_is_too_long_is_left_out() {
        let long = notice("a.b", None, json!({ "log": "x".repeat(LONGEST_DETAIL) })).bounded();
        assert_eq!(long.detail, json!({ "left_out": "too long" }));
        let short = notice("a.b", None, json!({ "log": "x" }));
        assert_eq!(short.clone().bounded(), short);
    }
}
