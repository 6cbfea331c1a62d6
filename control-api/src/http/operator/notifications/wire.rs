//! Owns how channels and messages look on the wire, and which secrets stay when a channel is replaced.
//!
//! Refuses to take a secret along to where it was not given for.

use holdfast_domain::notification::channel::{DEFAULT_PER_MINUTE, MailSettings, Settings};
use holdfast_proto::notification::{ChannelKind, MailSecurity, Severity};
use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::super::credentials::SecretText;
use crate::notify::Kept;
use crate::secret::Secret;
use crate::store::notification_channels::Stored;
use crate::store::notification_deliveries::Delivery;

/// The port on which mail is handed over with `starttls`.
const SUBMISSION: u16 = 587;
/// The same with `tls`.
const SUBMISSIONS: u16 = 465;
/// The port of a mail server on this machine.
const LOCAL: u16 = 25;

/// A secret that is set, taken away (null), or left as it is.
type Given = Option<Option<SecretText>>;

/// A member that is there, be it null.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Given, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// A channel to be made or changed.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewChannel {
    /// Its name.
    name: String,
    /// What it speaks.
    #[serde(rename = "type")]
    kind: ChannelKind,
    /// Whether anything is sent.
    #[serde(default = "yes")]
    enabled: bool,
    /// Kinds of events, such as `image.rollout_*`: `*` is any characters, `?` one.
    events: Vec<String>,
    /// Only events that matter as much.
    #[serde(default)]
    least_severity: Severity,
    /// Only events of this fleet.
    fleet: Option<String>,
    /// The title, with placeholders such as `{{kind}}`, `{{subject}}`, `{{device}}`; one that fits the event without.
    title: Option<String>,
    /// The text, with placeholders such as `{{detail.reason}}`; one that fits the event without.
    text: Option<String>,
    /// So many messages in a minute at most, 1 to 60; what is left over is summed up in one.
    #[serde(default = "per_minute")]
    most_per_minute: u32,
    /// Where messages are posted; for all but mail. Kept as a secret.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    url: Given,
    /// What messages of a `webhook` are signed with, at least 16 bytes.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    secret: Given,
    /// An access token of `ntfy`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    token: Given,
    /// How `email` travels.
    mail: Option<NewMail>,
}

/// How mail travels.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMail {
    /// The server that takes it.
    host: String,
    /// Its port; 587 for `starttls`, 465 for `tls`, 25 for `none` without.
    port: Option<u16>,
    /// What protects it on its way there; `none` to this machine only.
    #[serde(default)]
    security: MailSecurity,
    /// Who we are there.
    username: Option<String>,
    /// The password beside it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, format = Password, write_only)]
    password: Given,
    /// Whom it is from.
    from: String,
    /// Whom it is for, 1 to 20 addresses.
    to: Vec<String>,
}

fn yes() -> bool {
    true
}

fn per_minute() -> u32 {
    DEFAULT_PER_MINUTE
}

impl std::fmt::Debug for NewChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewChannel")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What is given, or what was there before as long as it may stay.
fn or_kept(given: Given, kept: Option<&Secret>, may_stay: bool) -> Option<Secret> {
    match given {
        Some(given) => given.map(|text| text.0),
        None => kept.filter(|_| may_stay).cloned(),
    }
}

impl NewChannel {
    /// Settings that are not judged yet, and the secrets beside them: those that are given, and those of before
    /// that go where they went.
    pub(super) fn with(self, before: Option<(&Settings, &Kept)>) -> (Settings, Kept) {
        let (password, mail) = match self.mail {
            Some(mail) => (mail.password.clone(), Some(MailSettings::from(mail))),
            None => (None, None),
        };
        let mut settings = Settings {
            name: self.name,
            kind: self.kind,
            enabled: self.enabled,
            events: self.events,
            least_severity: self.least_severity,
            fleet: self.fleet,
            title: self.title,
            text: self.text,
            most_per_minute: self.most_per_minute,
            destination: String::new(),
            mail,
        };
        let same_kind = before.is_some_and(|(before, _)| before.kind == settings.kind);
        let kept = before.map(|(_, kept)| kept.clone()).unwrap_or_default();
        let url = or_kept(self.url, kept.url.as_ref(), same_kind);
        settings.locate(url.as_ref().map(Secret::expose));
        let same_way = before.is_some_and(|(before, _)| settings.leads_where(before));
        let kept = Kept {
            // What signs is never sent.
            secret: or_kept(self.secret, kept.secret.as_ref(), same_kind),
            token: or_kept(self.token, kept.token.as_ref(), same_way),
            password: or_kept(password, kept.password.as_ref(), same_way),
            url,
        };
        (settings, kept)
    }
}

impl From<NewMail> for MailSettings {
    fn from(mail: NewMail) -> Self {
        let usual = match mail.security {
            MailSecurity::Starttls => SUBMISSION,
            MailSecurity::Tls => SUBMISSIONS,
            MailSecurity::None => LOCAL,
        };
        Self {
            host: mail.host,
            port: mail.port.unwrap_or(usual),
            security: mail.security,
            username: mail.username,
            from: mail.from,
            to: mail.to,
        }
    }
}

/// A channel, without what is secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChannelSummary {
    /// Its number.
    id: i64,
    /// Its name.
    name: String,
    /// What it speaks.
    #[serde(rename = "type")]
    kind: ChannelKind,
    /// Whether anything is sent.
    enabled: bool,
    /// Kinds of events that it wants.
    events: Vec<String>,
    /// Only events that matter as much.
    least_severity: Severity,
    /// Only events of this fleet.
    fleet: Option<String>,
    /// The title that somebody wrote.
    title: Option<String>,
    /// The text that somebody wrote.
    text: Option<String>,
    /// So many messages in a minute at most.
    most_per_minute: u32,
    /// Host and port that it leads to.
    destination: String,
    /// How mail travels.
    mail: Option<MailSummary>,
    /// Which secrets are set; null when they cannot be opened.
    secrets: Option<SecretsSet>,
    /// Why the secrets cannot be used, such as another key file; null when they can.
    error: Option<String>,
    /// Messages that wait.
    waiting: u64,
    /// Failures in a row.
    failures: u32,
    /// Nothing is sent before this, after failures.
    #[schema(value_type = Option<String>, format = DateTime)]
    rest_until: Option<Timestamp>,
    /// When it last took a message.
    #[schema(value_type = Option<String>, format = DateTime)]
    taken_at: Option<Timestamp>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it changed last.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// How mail travels.
#[derive(Debug, Serialize, ToSchema)]
struct MailSummary {
    /// The server that takes it.
    host: String,
    /// Its port.
    port: u16,
    /// What protects it on its way there.
    security: MailSecurity,
    /// Who we are there.
    username: Option<String>,
    /// Whom it is from.
    from: String,
    /// Whom it is for.
    to: Vec<String>,
}

/// Which secrets are set.
#[derive(Debug, Serialize, ToSchema)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says of one secret whether it is set"
)]
struct SecretsSet {
    /// Where messages are posted.
    url: bool,
    /// What messages are signed with.
    secret: bool,
    /// What is shown to the server.
    token: bool,
    /// The password of a mail server.
    password: bool,
}

impl ChannelSummary {
    /// What is shown of a channel.
    pub(super) fn new(opened: Result<Kept, String>, waiting: u64, stored: Stored) -> Self {
        let (secrets, error) = match opened {
            Ok(kept) => (
                Some(SecretsSet {
                    url: kept.url.is_some(),
                    secret: kept.secret.is_some(),
                    token: kept.token.is_some(),
                    password: kept.password.is_some(),
                }),
                None,
            ),
            Err(why) => (None, Some(why)),
        };
        let settings = stored.settings;
        Self {
            id: stored.id,
            name: settings.name,
            kind: settings.kind,
            enabled: settings.enabled,
            events: settings.events,
            least_severity: settings.least_severity,
            fleet: settings.fleet,
            title: settings.title,
            text: settings.text,
            most_per_minute: settings.most_per_minute,
            destination: settings.destination,
            mail: settings.mail.map(|mail| MailSummary {
                host: mail.host,
                port: mail.port,
                security: mail.security,
                username: mail.username,
                from: mail.from,
                to: mail.to,
            }),
            secrets,
            error,
            waiting,
            failures: stored.failures,
            rest_until: stored.rest_until,
            taken_at: stored.taken_at,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }
    }

    /// Its number.
    pub(super) fn id(&self) -> i64 {
        self.id
    }
}

/// What became of a test message.
#[derive(Debug, Serialize, ToSchema)]
pub struct TestAnswer {
    /// Whether the other side took it.
    pub(super) delivered: bool,
    /// Its status, of HTTP or of mail; null when it did not answer.
    pub(super) status: Option<u16>,
    /// What it said.
    pub(super) said: Option<String>,
    /// Why it was not taken.
    pub(super) error: Option<String>,
    /// How long it took.
    pub(super) took_ms: u64,
}

/// A message to a channel.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeliveryEntry {
    /// Its number.
    id: i64,
    /// Its name, which the receiver sees: the same for every try.
    delivery: String,
    /// The event; null for a test or a summary.
    event_id: Option<i64>,
    /// What it is about, in one word.
    kind: String,
    /// `waiting`, `delivered`, `failed` or `summed_up`.
    state: String,
    /// How often it was tried.
    attempts: u32,
    /// The last status of the other side.
    status: Option<i64>,
    /// Why it was not taken.
    error: Option<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was tried last.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_attempt_at: Option<Timestamp>,
    /// When it is tried next, if it waits.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_attempt_at: Option<Timestamp>,
    /// When it was over.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

impl From<Delivery> for DeliveryEntry {
    fn from(delivery: Delivery) -> Self {
        let waits = delivery.ended_at.is_none();
        Self {
            id: delivery.id,
            delivery: delivery.name,
            event_id: delivery.event,
            kind: delivery.kind,
            state: delivery.state,
            attempts: delivery.attempts,
            status: delivery.status,
            error: delivery.error,
            created_at: delivery.created_at,
            last_attempt_at: delivery.last_attempt_at,
            next_attempt_at: waits.then_some(delivery.next_attempt_at),
            ended_at: delivery.ended_at,
        }
    }
}
