//! Owns sending one message: opens what is secret of a channel, writes the body, and says what the other side said.
//!
//! Refuses to say more of an address than its host, and to repeat a secret that the other side repeats. When
//! messages are sent is `tasks::notify`'s to know.

mod mail;

use std::sync::OnceLock;
use std::time::Duration;

use holdfast_domain::notification::Content;
use holdfast_domain::notification::channel::{Secrets, Settings};
use holdfast_domain::notification::destination::Destination;
use holdfast_domain::notification::forms::{self, Message};
use holdfast_domain::notification::redact::Redactor;
use holdfast_domain::notification::schedule::{self, Outcome};
use holdfast_proto::notification::ChannelKind;
use holdfast_proto::time::Timestamp;
use holdfast_registry::{Outward, OutwardError, OutwardSettings, Post, Timeouts};
use ring::hmac;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::config::Notifications;
use crate::secret::{NoRandomness, Secret, hex, random};
use crate::store::notification_channels::Stored;
use crate::vault::{Sealed, Vault};

/// For a connection; the rest of the time is for the answer.
const CONNECT: Duration = Duration::from_secs(5);

/// What is secret of a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Where messages are posted.
    pub url: Option<Secret>,
    /// What messages are signed with.
    pub secret: Option<Secret>,
    /// What is shown to the server.
    pub token: Option<Secret>,
    /// The password beside a mail server's user name.
    pub password: Option<Secret>,
}

/// The same as it is sealed; never shown.
#[derive(Serialize, Deserialize)]
struct Plain {
    url: Option<String>,
    secret: Option<String>,
    token: Option<String>,
    password: Option<String>,
}

impl Kept {
    /// For the settings to be judged with.
    pub fn shown(&self) -> Secrets<'_> {
        fn text(secret: Option<&Secret>) -> Option<&str> {
            secret.map(Secret::expose)
        }
        Secrets {
            url: text(self.url.as_ref()),
            secret: text(self.secret.as_ref()),
            token: text(self.token.as_ref()),
            password: text(self.password.as_ref()),
        }
    }

    fn text(&self) -> String {
        let text = |secret: &Option<Secret>| secret.as_ref().map(|it| it.expose().to_owned());
        let plain = Plain {
            url: text(&self.url),
            secret: text(&self.secret),
            token: text(&self.token),
            password: text(&self.password),
        };
        serde_json::to_string(&plain).unwrap_or_default()
    }

    fn read(text: &Secret) -> Option<Self> {
        let plain: Plain = serde_json::from_str(text.expose()).ok()?;
        Some(Self {
            url: plain.url.map(Secret::new),
            secret: plain.secret.map(Secret::new),
            token: plain.token.map(Secret::new),
            password: plain.password.map(Secret::new),
        })
    }

    fn redactor(&self, settings: &Settings) -> Redactor {
        let mut redactor = Redactor::default();
        let user = settings
            .mail
            .as_ref()
            .and_then(|mail| mail.username.as_deref());
        for secret in [&self.secret, &self.token, &self.password]
            .into_iter()
            .flatten()
        {
            redactor.hide(secret.expose(), user);
        }
        if let Some(url) = &self.url {
            redactor.hide_url(url.expose());
        }
        redactor
    }
}

/// Notifications cannot be sent with this configuration.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no connection to receivers can be made: {0}")]
pub struct CannotSend(String);

/// What became of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether it was taken, and if not, whether to come back.
    pub outcome: Outcome,
    /// The status of the other side, of HTTP or of mail.
    pub status: Option<u16>,
    /// What it said, without secrets.
    pub said: Option<String>,
    /// Why it was not taken, without secrets.
    pub error: Option<String>,
}

impl Report {
    /// Nothing arrived, which may be otherwise later.
    fn failed(why: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failed { peace_ms: None },
            status: None,
            said: None,
            error: Some(why.into()),
        }
    }
}

/// A message on its way.
#[derive(Clone, Copy, Debug)]
pub struct Parcel<'a> {
    /// Its name, the same for every try.
    pub name: &'a str,
    /// What it tells.
    pub content: &'a Content,
    /// When it is sent.
    pub now: Timestamp,
}

/// Sends messages.
#[derive(Debug)]
pub struct Courier {
    vault: Vault,
    settings: Notifications,
    /// Made when the first message leaves: it reads the certificates that the machine trusts.
    outward: OnceLock<Result<Outward, OutwardError>>,
    /// Who takes leases.
    holder: String,
    /// Wakes the task that sends.
    pub wake: Notify,
}

impl Courier {
    /// Sends as configured, with secrets sealed in this vault.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(vault: Vault, settings: Notifications) -> Result<Self, NoRandomness> {
        Ok(Self {
            vault,
            settings,
            outward: OnceLock::new(),
            holder: hex(&random::<12>()?),
            wake: Notify::new(),
        })
    }

    /// Who takes leases: this program, and no other.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Whether messages can leave at all.
    ///
    /// # Errors
    /// When the configured certificates cannot be used.
    pub fn check(&self) -> Result<(), CannotSend> {
        self.outward()
            .map(|_| ())
            .map_err(|error| CannotSend(error.to_string()))
    }

    fn outward(&self) -> Result<&Outward, OutwardError> {
        let make = || {
            Outward::new(OutwardSettings {
                private_hosts: self.settings.private_hosts.clone(),
                ca_pem: self.settings.ca_pem.clone(),
                timeouts: Timeouts {
                    connect: CONNECT.min(self.settings.timeout),
                    request: self.settings.timeout,
                },
                ..OutwardSettings::default()
            })
        };
        self.outward
            .get_or_init(make)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Whether a host was configured, so that it may be asked without encryption.
    pub fn may_be_plain(&self, destination: &Destination) -> bool {
        let with_port = format!("{}:{}", destination.host, destination.port);
        let mut hosts = self.settings.private_hosts.iter();
        hosts.any(|host| {
            [&destination.host, &with_port, &destination.authority]
                .iter()
                .any(|form| host.eq_ignore_ascii_case(form))
        })
    }

    /// Seals what is secret of a channel for its place and for where it leads: moved to another row, or under
    /// another destination, it does not open.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn seal(
        &self,
        place: &str,
        settings: &Settings,
        kept: &Kept,
    ) -> Result<Sealed, NoRandomness> {
        let text = Secret::new(kept.text());
        self.vault.seal(&sealed_for(place, settings), &text)
    }

    /// Opens what is secret of a channel.
    ///
    /// # Errors
    /// Why it cannot be used, in words without secrets.
    pub fn open(&self, stored: &Stored) -> Result<Kept, String> {
        let place = sealed_for(&stored.place, &stored.settings);
        let opened = self.vault.open_sealed(&place, &stored.sealed);
        let opened =
            opened.map_err(|error| format!("the channel's secrets cannot be used: {error}"))?;
        let read = Kept::read(&opened);
        read.ok_or_else(|| "the channel's secrets cannot be read".to_owned())
    }

    /// Sends a message, and waits for what the other side says to it.
    pub async fn send(&self, stored: &Stored, parcel: Parcel<'_>) -> Report {
        let kept = match self.open(stored) {
            Ok(kept) => kept,
            Err(why) => return Report::failed(why),
        };
        let sending = async {
            match stored.settings.kind {
                ChannelKind::Email => self.mail(&stored.settings, &kept, parcel).await,
                ChannelKind::Webhook
                | ChannelKind::Ntfy
                | ChannelKind::Slack
                | ChannelKind::Discord
                | ChannelKind::Teams => self.post(&stored.settings, &kept, parcel).await,
            }
        };
        let report = match tokio::time::timeout(self.settings.timeout, sending).await {
            Ok(report) => report,
            Err(_) => Report::failed(format!(
                "{} did not answer in time",
                stored.settings.destination
            )),
        };
        let redactor = kept.redactor(&stored.settings);
        let shown = |text: Option<String>| {
            let text = text.map(|text| redactor.shown(&text));
            text.filter(|text| !text.is_empty())
        };
        Report {
            said: shown(report.said),
            error: shown(report.error),
            ..report
        }
    }

    async fn post(&self, settings: &Settings, kept: &Kept, parcel: Parcel<'_>) -> Report {
        let post = match letter(settings, kept, parcel) {
            Ok(post) => post,
            Err(why) => return Report::failed(why),
        };
        let said = match self.outward() {
            Ok(outward) => outward.post(post).await,
            Err(error) => Err(error),
        };
        match said {
            Ok(said) => {
                let peace_ms = said
                    .retry_after
                    .map(|peace| i64::try_from(peace.as_millis()).unwrap_or(i64::MAX));
                let outcome = schedule::outcome(said.status, peace_ms);
                let error = (outcome != Outcome::Taken).then(|| {
                    let host = &settings.destination;
                    let mut error = format!("{host} answered {}", said.status);
                    if !said.text.trim().is_empty() {
                        error = format!("{error}: {}", said.text.trim());
                    }
                    error
                });
                Report {
                    outcome,
                    status: Some(said.status),
                    said: Some(said.text),
                    error,
                }
            }
            Err(error) => Report::failed(error.to_string()),
        }
    }
}

/// What is posted, and where.
fn letter(settings: &Settings, kept: &Kept, parcel: Parcel<'_>) -> Result<Post, String> {
    let missing = || "the channel has no address".to_owned();
    let url = kept.url.as_ref().ok_or_else(missing)?.expose();
    let destination = Destination::read(url).map_err(|why| format!("the address {why}"))?;
    let body = body(settings, destination.topic().unwrap_or_default(), parcel)?;
    let mut headers = vec![("content-type", "application/json".to_owned())];
    let url = match settings.kind {
        ChannelKind::Webhook => {
            let secret = kept.secret.as_ref().map_or("", Secret::expose);
            let (seconds, signed) = forms::to_sign(parcel.now, &body);
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let signature = hex(hmac::sign(&key, signed.as_bytes()).as_ref());
            headers.push((
                "x-holdfast-signature",
                format!("t={seconds},v1={signature}"),
            ));
            headers.push(("x-holdfast-delivery", parcel.name.to_owned()));
            headers.push(("x-holdfast-event", parcel.content.kind().to_owned()));
            url.to_owned()
        }
        // JSON goes to the server, which reads the topic in it.
        ChannelKind::Ntfy => destination.root(),
        ChannelKind::Slack | ChannelKind::Discord | ChannelKind::Teams | ChannelKind::Email => {
            url.to_owned()
        }
    };
    if let Some(token) = &kept.token {
        headers.push(("authorization", format!("Bearer {}", token.expose())));
    }
    Ok(Post { url, headers, body })
}

fn body(settings: &Settings, topic: &str, parcel: Parcel<'_>) -> Result<String, String> {
    let message = Message {
        settings,
        content: parcel.content,
        delivery: parcel.name,
        topic,
        now: parcel.now,
    };
    forms::body(&message).map_err(|error| format!("the message cannot be written: {error}"))
}

/// Where secrets are sealed for.
fn sealed_for(place: &str, settings: &Settings) -> String {
    let user = settings
        .mail
        .as_ref()
        .and_then(|mail| mail.username.as_deref());
    // Lengths first: no two channels make one text.
    let parts = [
        "notification channel",
        place,
        settings.kind.name(),
        &settings.destination,
        user.unwrap_or(""),
    ];
    let counted = parts.map(|part| format!("{}:{part}", part.len()));
    counted.join(";")
}

/// A new name for a message, or a place for secrets: nobody can guess it, and no two are alike.
///
/// # Errors
/// When the system has no randomness.
pub fn new_name() -> Result<String, NoRandomness> {
    Ok(hex(&random::<16>()?))
}
