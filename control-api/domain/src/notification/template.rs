//! Owns the texts that people write for messages: `{{kind}}`, `{{subject}}`, `{{device}}`, `{{detail.x}}` and the like.
//!
//! Refuses placeholders that mean nothing, when they are written and not when something happens. What stands for
//! a placeholder is one line of plain text, whoever wrote it.

use serde_json::Value as Json;

use super::Notice;

/// Longest template: messages are read on telephones.
pub const LONGEST_TEMPLATE: usize = 2_000;
/// Longest value that takes a placeholder's place.
const LONGEST_VALUE: usize = 500;
/// Deepest member of a detail; none goes deeper than three.
const DEEPEST: usize = 8;

/// A text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(Place),
}

/// What a placeholder stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Kind,
    Severity,
    At,
    Subject,
    /// The device's name, or its id.
    Device,
    DeviceId,
    Fleet,
    /// A member of the detail, by its path.
    Detail(Vec<String>),
}

/// A text that is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing is written.
    #[error("it is empty: leave it out for the text that fits the event")]
    Empty,
    /// More than anybody reads.
    #[error("it has more than {LONGEST_TEMPLATE} bytes")]
    TooLong,
    /// A character that does things.
    #[error("it has control characters")]
    Control,
    /// `{{` without `}}`.
    #[error("`{{{{` has no `}}}}` after it")]
    Open,
    /// A placeholder that means nothing.
    #[error(
        "`{{{{{0}}}}}` means nothing: there are kind, severity, at, subject, device, device_id, fleet \
         and detail.NAME"
    )]
    Unknown(String),
}

impl Template {
    /// Reads a text of one line.
    ///
    /// # Errors
    /// As [`TemplateError`] says.
    pub fn line(text: &str) -> Result<Self, TemplateError> {
        if text.contains('\n') {
            return Err(TemplateError::Control);
        }
        Self::lines(text)
    }

    /// Reads a text of any lines.
    ///
    /// # Errors
    /// As [`TemplateError`] says.
    pub fn lines(text: &str) -> Result<Self, TemplateError> {
        if text.trim().is_empty() {
            return Err(TemplateError::Empty);
        }
        if text.len() > LONGEST_TEMPLATE {
            return Err(TemplateError::TooLong);
        }
        if text.chars().any(|c| is_unruly(c) && c != '\n') {
            return Err(TemplateError::Control);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Place(place(name.trim())?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The text for an event; `escape` makes each value plain in the form that it goes into.
    pub fn render(&self, notice: &Notice, escape: impl Fn(&str) -> String) -> String {
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Place(place) => escape(&value(place, notice)),
        });
        parts.collect()
    }
}

fn place(name: &str) -> Result<Place, TemplateError> {
    let unknown = || TemplateError::Unknown(name.chars().take(40).collect());
    Ok(match name {
        "kind" => Place::Kind,
        "severity" => Place::Severity,
        "at" => Place::At,
        "subject" => Place::Subject,
        "device" => Place::Device,
        "device_id" => Place::DeviceId,
        "fleet" => Place::Fleet,
        other => {
            let path = other.strip_prefix("detail.").ok_or_else(unknown)?;
            let path: Vec<String> = path.split('.').map(str::to_owned).collect();
            let is_name = |name: &String| {
                let is_known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                !name.is_empty() && name.chars().all(is_known)
            };
            if path.len() > DEEPEST || !path.iter().all(is_name) {
                return Err(unknown());
            }
            Place::Detail(path)
        }
    })
}

/// What takes the place: one line; nothing for what the event does not have.
fn value(place: &Place, notice: &Notice) -> String {
    let some = |text: &Option<String>| text.clone().unwrap_or_default();
    let id = || notice.device.map(|id| id.to_string()).unwrap_or_default();
    let text = match place {
        Place::Kind => notice.kind.clone(),
        Place::Severity => notice.severity.name().to_owned(),
        Place::At => notice.at.to_string(),
        Place::Subject => some(&notice.subject),
        Place::Device => notice.device_name.clone().unwrap_or_else(id),
        Place::DeviceId => id(),
        Place::Fleet => some(&notice.fleet),
        Place::Detail(path) => {
            let mut names = path.iter();
            let found = names.try_fold(&notice.detail, |at, name| match at {
                Json::Array(items) => items.get(name.parse::<usize>().ok()?),
                other => other.get(name),
            });
            match found {
                None | Some(Json::Null) => String::new(),
                Some(Json::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            }
        }
    };
    one_line(&text, LONGEST_VALUE)
}

/// A text as one line of at most so many characters, without what does things in a terminal or a header.
pub(super) fn one_line(text: &str, longest: usize) -> String {
    // No more than can be shown is looked at, however long it is.
    let seen = text.chars().take(longest.saturating_add(1));
    let mut line: String = seen.map(|c| if is_unruly(c) { ' ' } else { c }).collect();
    line.truncate(line.trim_end().len());
    cut(&line, longest)
}

/// The text, or as much of it as fits, with a mark that something is missing.
pub(super) fn cut(text: &str, longest: usize) -> String {
    if text.chars().count() <= longest {
        return text.to_owned();
    }
    let kept = text.chars().take(longest.saturating_sub(1));
    kept.chain(['…']).collect()
}

/// Controls, ends of lines and paragraphs, and marks that turn the direction of what follows.
fn is_unruly(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use holdfast_proto::id::DeviceId;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::tests::notice;
    use super::*;

    fn render(text: &str, notice: &Notice) -> String {
        Template::lines(text).unwrap().render(notice, str::to_owned)
    }

    #[test]
    fn each_placeholder_is_what_the_event_says() {
        let mut event = notice(
            "image.rollout_failed",
            Some("redis:7"),
            json!({ "rollout": 4, "why": "two\r\nfailed", "batch": { "of": [1, 2] }, "ok": null }),
        );
        assert_eq!(
            render(
                "{{severity}}: {{ kind }} {{subject}} #{{detail.rollout}}",
                &event
            ),
            "error: image.rollout_failed redis:7 #4"
        );
        // Always one line.
        assert_eq!(render("{{detail.why}}!", &event), "two  failed!");
        assert_eq!(
            render("{{detail.batch.of.1}} {{detail.batch}}", &event),
            "2 {\"of\":[1,2]}"
        );
        assert_eq!(
            render(
                "[{{detail.ok}}{{detail.no.way}}{{device}}{{fleet}}]",
                &event
            ),
            "[]"
        );
        let id = DeviceId::from_random([1; 16]);
        event.device = Some(id);
        assert_eq!(render("{{device}}", &event), id.to_string());
        event.device_name = Some("till 3".to_owned());
        assert_eq!(
            render("{{device}} {{device_id}}", &event),
            format!("till 3 {id}")
        );
        assert_eq!(render("{ {x} }} }", &event), "{ {x} }} }");
    }

    #[test]
    fn a_value_is_not_read_as_a_template() {
        let event = notice("a.b", Some("{{detail.x}}"), json!({ "x": "{{kind}}" }));
        assert_eq!(
            render("{{subject}} {{detail.x}}", &event),
            "{{detail.x}} {{kind}}"
        );
    }

    #[test]
    fn what_means_nothing_is_refused_when_it_is_written() {
        let error = |text: &str| Template::lines(text).unwrap_err();
        assert_eq!(error(" \n"), TemplateError::Empty);
        assert_eq!(error(&"x".repeat(2_001)), TemplateError::TooLong);
        assert_eq!(error("a\u{1b}[31m"), TemplateError::Control);
        assert_eq!(error("a\u{202e}b"), TemplateError::Control);
        assert_eq!(error("a {{kind"), TemplateError::Open);
        for name in [
            "",
            "nobody",
            "detail",
            "detail.",
            "detail.a..b",
            "detail.a b",
            "secret",
        ] {
            let text = format!("x {{{{{name}}}}}");
            assert_eq!(
                error(&text),
                TemplateError::Unknown(name.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            error("{{who}}").to_string(),
            "`{{who}}` means nothing: there are kind, severity, at, subject, device, device_id, fleet and \
             detail.NAME"
        );
        assert_eq!(Template::line("a\nb").unwrap_err(), TemplateError::Control);
    }

    #[test]
    fn long_values_are_cut_where_people_see_it() {
        let event = notice("a.b", Some(&"é".repeat(600)), json!({}));
        let text = render("{{subject}}", &event);
        assert_eq!(text.chars().count(), LONGEST_VALUE);
        assert!(text.ends_with('…'));
    }

    proptest! {
        #[test]
        fn whatever_an_event_says_stays_on_its_line(said in any::<String>()) {
            let event = notice("a.b", Some(&said), json!({ "x": said }));
            let text = render("{{subject}}|{{detail.x}}", &event);
            prop_assert!(!text.chars().any(is_unruly));
        }
    }
}
