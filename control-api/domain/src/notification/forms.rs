//! Owns what a message looks like for each kind of channel: the body, byte by byte.
//!
//! Refuses to let a value be more than text there: what has a meaning in a form is escaped, mentions are impossible,
//! and what no receiver takes for its length is cut.

use holdfast_proto::notification::{ChannelKind, Severity};
use holdfast_proto::time::Timestamp;
use serde::Serialize;
use serde_json::Value as Json;

use super::channel::Settings;
use super::template::{Template, cut, one_line};
use super::{Content, Notice, Summary, kinds, mail};

/// Longest title, in characters.
const LONGEST_TITLE: usize = 200;
/// Longest text, in characters: Discord takes 2,000 with the title and the escapes of both.
const LONGEST_TEXT: usize = 1_700;
/// Discord's own bound, in characters.
const DISCORD_LIMIT: usize = 2_000;
/// ntfy makes a file of more bytes.
const NTFY_LIMIT: usize = 4_096;
/// Lines of one card; more are not seen without scrolling.
const CARD_LINES: usize = 40;

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Where it goes.
    pub settings: &'a Settings,
    /// What it tells.
    pub content: &'a Content,
    /// Its name, the same for every try.
    pub delivery: &'a str,
    /// The topic, for ntfy.
    pub topic: &'a str,
    /// When it is sent, for mail.
    pub now: Timestamp,
}

/// What people read: one line, and more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// One line.
    pub title: String,
    /// Any lines; may be empty.
    pub text: String,
}

/// What people read of a content, by the texts of the channel or those that fit the event.
pub fn told(settings: &Settings, content: &Content) -> Told {
    let escape: fn(&str) -> String = match settings.kind {
        ChannelKind::Slack => slack,
        ChannelKind::Discord => discord,
        // Their texts are plain, whatever is in them.
        ChannelKind::Webhook | ChannelKind::Ntfy | ChannelKind::Teams | ChannelKind::Email => {
            str::to_owned
        }
    };
    let (title, text) = match content {
        Content::Event(notice) => event(settings, notice, escape),
        Content::Summary(summary) => {
            let lines: Vec<String> = summary.text().lines().map(escape).collect();
            (escape(&summary.title()), lines.join("\n"))
        }
    };
    Told {
        title: whole_escapes(one_line(title.trim(), LONGEST_TITLE)),
        text: whole_escapes(cut(text.trim(), LONGEST_TEXT)),
    }
}

fn event(settings: &Settings, notice: &Notice, escape: fn(&str) -> String) -> (String, String) {
    let (title, text) = kinds::words(notice, escape);
    // A text that was good when it was written is good now.
    let own = |text: &Option<String>| {
        let template = Template::lines(text.as_deref()?).ok()?;
        Some(template.render(notice, escape))
    };
    (
        own(&settings.title).unwrap_or(title),
        own(&settings.text).unwrap_or(text),
    )
}

/// What Slack reads as markup (its own page on escaping names these three).
fn slack(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// What Discord's Markdown reads as markup.
fn discord(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\*_~`|<>#[]()@-".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// A text that was cut must not end in the middle of an escape.
fn whole_escapes(mut text: String) -> String {
    let Some(kept) = text.strip_suffix('…') else {
        return text;
    };
    let mut end = kept.len();
    if let Some(at) = kept.rfind('&')
        && kept.len() - at <= "&amp".len()
        && !kept.ends_with(';')
    {
        end = at;
    }
    let backslashes = kept[..end]
        .bytes()
        .rev()
        .take_while(|byte| *byte == b'\\')
        .count();
    end -= backslashes % 2;
    text.truncate(end);
    text.push('…');
    text
}

#[derive(Serialize)]
struct WebhookBody<'a> {
    delivery: &'a str,
    channel: &'a str,
    kind: &'a str,
    severity: Severity,
    title: &'a str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a Notice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<&'a Summary>,
}

#[derive(Serialize)]
struct NtfyBody<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    message: &'a str,
    priority: u8,
    tags: [&'static str; 1],
}

#[derive(Serialize)]
struct SlackBody {
    text: String,
    unfurl_links: bool,
    unfurl_media: bool,
}

#[derive(Serialize)]
struct DiscordBody {
    content: String,
    allowed_mentions: Mentions,
}

#[derive(Serialize)]
struct Mentions {
    parse: [&'static str; 0],
}

#[derive(Serialize)]
struct TeamsBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    attachments: [Attachment<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attachment<'a> {
    content_type: &'static str,
    content: Card<'a>,
}

#[derive(Serialize)]
struct Card<'a> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    version: &'static str,
    body: Vec<Block<'a>>,
}

/// A line of runs: unlike a `TextBlock`, it knows no Markdown.
#[derive(Serialize)]
struct Block<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    inlines: [Run<'a>; 1],
}

#[derive(Serialize)]
struct Run<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<&'static str>,
}

/// The body of a message: JSON, or a whole mail.
///
/// # Errors
/// When a moment has no form that mail knows; JSON is always possible.
pub fn body(message: &Message<'_>) -> Result<String, serde_json::Error> {
    let told = told(message.settings, message.content);
    match message.settings.kind {
        ChannelKind::Webhook => webhook(message, &told),
        ChannelKind::Ntfy => ntfy(message, &told),
        ChannelKind::Slack => serde_json::to_string(&SlackBody {
            text: both("*", &told),
            unfurl_links: false,
            unfurl_media: false,
        }),
        ChannelKind::Discord => serde_json::to_string(&DiscordBody {
            content: whole_escapes(cut(&both("**", &told), DISCORD_LIMIT)),
            allowed_mentions: Mentions { parse: [] },
        }),
        ChannelKind::Teams => teams(&told),
        ChannelKind::Email => Ok(mail::write(message, &told)),
    }
}

fn both(bold: &str, told: &Told) -> String {
    let Told { title, text } = told;
    if text.is_empty() {
        format!("{bold}{title}{bold}")
    } else {
        format!("{bold}{title}{bold}\n{text}")
    }
}

fn webhook(message: &Message<'_>, told: &Told) -> Result<String, serde_json::Error> {
    let (event, summary) = match message.content {
        Content::Event(notice) => (Some(notice), None),
        Content::Summary(summary) => (None, Some(summary)),
    };
    serde_json::to_string(&WebhookBody {
        delivery: message.delivery,
        channel: &message.settings.name,
        kind: message.content.kind(),
        severity: message.content.severity(),
        title: &told.title,
        text: &told.text,
        event,
        summary,
    })
}

fn ntfy(message: &Message<'_>, told: &Told) -> Result<String, serde_json::Error> {
    let (priority, tag) = match message.content.severity() {
        Severity::Info => (3, "information_source"),
        Severity::Warning => (4, "warning"),
        Severity::Error => (5, "rotating_light"),
    };
    let mut text = told.text.as_str();
    while text.len() > NTFY_LIMIT {
        let shorter = text.char_indices().next_back().map_or(0, |(at, _)| at);
        text = &text[..shorter];
    }
    // A message without a text would be called "triggered".
    let (title, text) = if text.is_empty() {
        (None, told.title.as_str())
    } else {
        (Some(told.title.as_str()), text)
    };
    serde_json::to_string(&NtfyBody {
        topic: message.topic,
        title,
        message: text,
        priority,
        tags: [tag],
    })
}

fn teams(told: &Told) -> Result<String, serde_json::Error> {
    let block = |text, weight| Block {
        kind: "RichTextBlock",
        inlines: [Run {
            kind: "TextRun",
            text,
            weight,
        }],
    };
    let lines = told.text.lines().filter(|line| !line.is_empty());
    let lines = lines.take(CARD_LINES).map(|line| block(line, None));
    let title = block(told.title.as_str(), Some("Bolder"));
    serde_json::to_string(&TeamsBody {
        kind: "message",
        attachments: [Attachment {
            content_type: "application/vnd.microsoft.card.adaptive",
            content: Card {
                schema: "http://adaptivecards.io/schemas/adaptive-card.json",
                kind: "AdaptiveCard",
                version: "1.4",
                body: [title].into_iter().chain(lines).collect(),
            },
        }],
    })
}

/// What is signed of a message: the moment in seconds, a dot, and the body as it is sent.
///
/// With the moment in it, an old message cannot be sent again as a new one.
pub fn to_sign(now: Timestamp, body: &str) -> (i64, String) {
    let seconds = now.as_millis().div_euclid(1_000);
    (seconds, format!("{seconds}.{body}"))
}

/// A detail in one line, for people.
pub(super) fn detail_line(detail: &Json) -> Option<String> {
    let is_empty = detail.as_object().is_some_and(serde_json::Map::is_empty);
    (!is_empty && !detail.is_null()).then(|| one_line(&detail.to_string(), LONGEST_TEXT))
}

#[cfg(test)]
mod tests;
