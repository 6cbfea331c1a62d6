//! Owns what a channel is told by an operator: where it goes, which events it wants, in which words.
//!
//! Refuses settings that cannot work, by member, when they are written. What is secret is looked at and never kept
//! here.

use std::collections::BTreeSet;

use holdfast_proto::notification::{ChannelKind, MailSecurity, Severity};
use holdfast_proto::problem::{FieldError, Pointer};
use serde::{Deserialize, Serialize};

use super::destination::{Destination, is_host, is_loopback};
use super::template::{Template, TemplateError};
use super::{Notice, TEST, kinds, mail};
use crate::pattern::matches;

/// Longest name of a channel.
const LONGEST_NAME: usize = 200;
/// Longest pattern of kinds; kinds are shorter.
const LONGEST_PATTERN: usize = 100;
/// Patterns of one channel: more are `*`.
const MOST_PATTERNS: usize = 50;
/// Messages a minute that receivers still take, and people still read.
const MOST_PER_MINUTE: u32 = 60;
/// Unless told otherwise.
pub const DEFAULT_PER_MINUTE: u32 = 20;
/// A shorter key for signatures can be guessed.
const LEAST_SECRET: usize = 16;
/// Longest key, token or password.
const LONGEST_SECRET: usize = 4_096;
/// People on one message; more want a list of their own at the mail server.
const MOST_RECIPIENTS: usize = 20;
/// Longest name of a fleet: labels' values have this bound, too.
const LONGEST_FLEET: usize = 256;

/// A channel, without what is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its name, for people.
    pub name: String,
    /// What it speaks.
    pub kind: ChannelKind,
    /// Whether anything is sent.
    pub enabled: bool,
    /// Kinds of events, with `*` and `?`.
    pub events: Vec<String>,
    /// Only events that matter as much.
    pub least_severity: Severity,
    /// Only events of this fleet.
    pub fleet: Option<String>,
    /// The title that people wrote.
    pub title: Option<String>,
    /// The text that people wrote.
    pub text: Option<String>,
    /// So many messages in a minute at most.
    pub most_per_minute: u32,
    /// Host and port that it leads to: all that is shown of an address.
    pub destination: String,
    /// How mail travels.
    pub mail: Option<MailSettings>,
}

/// How mail travels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailSettings {
    /// The server that takes it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What protects it on its way there.
    pub security: MailSecurity,
    /// Who we are there; nobody without.
    pub username: Option<String>,
    /// Whom it is from.
    pub from: String,
    /// Whom it is for.
    pub to: Vec<String>,
}

/// What is secret of a channel, while its settings are judged.
#[derive(Clone, Copy, Default)]
pub struct Secrets<'a> {
    /// Where messages are posted: who knows the address may post.
    pub url: Option<&'a str>,
    /// What messages are signed with.
    pub secret: Option<&'a str>,
    /// What is shown to the server.
    pub token: Option<&'a str>,
    /// The password beside a mail server's user name.
    pub password: Option<&'a str>,
}

impl std::fmt::Debug for Secrets<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Settings {
    /// Judges settings with what is secret of them, and fills in where they lead.
    ///
    /// # Errors
    /// Everything that is wrong, by member. None of it quotes a secret.
    pub fn judged(mut self, secrets: Secrets<'_>) -> Result<Self, Vec<FieldError>> {
        let mut check = Check::default();
        let name = self.name.trim();
        self.name = String::from(name);
        self.locate(secrets.url);
        check.common(&self);
        check.texts(&self);
        check.url(self.kind, secrets.url);
        check.mail(&self);
        check.secrets(&self, secrets);
        if check.0.is_empty() {
            Ok(self)
        } else {
            Err(check.0)
        }
    }

    /// Fills in where the channel leads, as far as it can be read.
    pub fn locate(&mut self, url: Option<&str>) {
        let read = url.and_then(|url| Destination::read(url).ok());
        self.destination = match (read, &self.mail) {
            (Some(read), _) => read.authority,
            (None, Some(mail)) if mail.host.contains(':') => {
                format!("[{}]:{}", mail.host, mail.port)
            }
            (None, Some(mail)) => format!("{}:{}", mail.host, mail.port),
            (None, None) => String::new(),
        };
    }

    /// Whether the channel wants to be told of an event.
    pub fn wants(&self, notice: &Notice) -> bool {
        let of_fleet = |fleet: &String| notice.fleet.as_ref() == Some(fleet);
        self.enabled
            && notice.kind != TEST
            && kinds::may_be_told(&notice.kind)
            && notice.severity >= self.least_severity
            && self.fleet.as_ref().is_none_or(of_fleet)
            && self
                .events
                .iter()
                .any(|pattern| matches(pattern, &notice.kind))
    }

    /// Whether secrets that were given for other settings may go where these lead.
    pub fn leads_where(&self, before: &Self) -> bool {
        let way = |settings: &Self| {
            let mail = settings.mail.as_ref();
            mail.map(|mail| (mail.security, mail.username.clone()))
        };
        self.kind == before.kind
            && self.destination == before.destination
            && way(self) == way(before)
    }
}

#[derive(Default)]
struct Check(Vec<FieldError>);

fn member(name: &str) -> Pointer {
    Pointer::default().member(name)
}

impl Check {
    fn wrong(&mut self, at: &Pointer, detail: impl Into<String>) {
        self.0.push(at.error(detail));
    }

    fn common(&mut self, settings: &Settings) {
        let is_line = |text: &str| !text.chars().any(char::is_control);
        if settings.name.is_empty()
            || settings.name.len() > LONGEST_NAME
            || !is_line(&settings.name)
        {
            self.wrong(
                &member("name"),
                format!("write 1 to {LONGEST_NAME} characters"),
            );
        }
        let at = member("events");
        if !(1..=MOST_PATTERNS).contains(&settings.events.len()) {
            let detail = format!("write 1 to {MOST_PATTERNS} kinds, such as `image.rollout_*`");
            self.wrong(&at, detail);
        }
        let mut seen = BTreeSet::new();
        for (n, pattern) in settings.events.iter().enumerate() {
            let is_known =
                |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._*?".contains(c);
            if pattern.is_empty()
                || pattern.len() > LONGEST_PATTERN
                || !pattern.chars().all(is_known)
            {
                let detail =
                    "write a kind, such as `device.offline`; `*` is any characters, `?` one";
                self.wrong(&at.member(n), detail);
            } else if !seen.insert(pattern) {
                self.wrong(&at.member(n), "is written twice");
            } else if pattern.starts_with("notification.") {
                let detail = "what happens to notifications is not told by notifications";
                self.wrong(&at.member(n), detail);
            }
        }
        if let Some(fleet) = &settings.fleet
            && (fleet.is_empty() || fleet.len() > LONGEST_FLEET || !is_line(fleet))
        {
            self.wrong(&member("fleet"), "is not the name of a fleet");
        }
        if !(1..=MOST_PER_MINUTE).contains(&settings.most_per_minute) {
            let detail = format!("write 1 to {MOST_PER_MINUTE}");
            self.wrong(&member("most_per_minute"), detail);
        }
    }

    fn texts(&mut self, settings: &Settings) {
        let mut judge = |name: &str, read: Option<Result<Template, TemplateError>>| {
            if let Some(Err(error)) = read {
                self.0.push(member(name).error(error.to_string()));
            }
        };
        judge("title", settings.title.as_deref().map(Template::line));
        judge("text", settings.text.as_deref().map(Template::lines));
    }

    fn url(&mut self, kind: ChannelKind, url: Option<&str>) {
        let at = member("url");
        let url = match (kind, url) {
            (ChannelKind::Email, None) => return,
            (ChannelKind::Email, Some(_)) => {
                self.wrong(&at, "mail goes to `mail`, not to an address of the web");
                return;
            }
            (_, None) => {
                self.wrong(&at, "is missing: say where messages are posted");
                return;
            }
            (_, Some(url)) => url,
        };
        match Destination::read(url) {
            Err(why) => self.wrong(&at, why),
            Ok(read) if kind == ChannelKind::Ntfy && read.topic().is_none() => {
                self.wrong(
                    &at,
                    "must be a server and a topic: https://ntfy.example/topic",
                );
            }
            Ok(_) => {}
        }
    }

    fn mail(&mut self, settings: &Settings) {
        let at = member("mail");
        let mail = match (settings.kind, &settings.mail) {
            (ChannelKind::Email, Some(mail)) => mail,
            (ChannelKind::Email, None) => {
                self.wrong(
                    &at,
                    "is missing: say which server takes mail, from whom and for whom",
                );
                return;
            }
            (_, None) => return,
            (_, Some(_)) => {
                self.wrong(&at, "goes with `email` only");
                return;
            }
        };
        let is_v6 = mail.host.parse::<std::net::Ipv6Addr>().is_ok();
        if !is_host(&mail.host) && !is_v6 {
            self.wrong(
                &at.member("host"),
                "must be a host, without a port and a scheme",
            );
        }
        if mail.port == 0 {
            self.wrong(
                &at.member("port"),
                "write 587, 465 or what the server listens on",
            );
        }
        if mail.security == MailSecurity::None && !is_loopback(&mail.host) {
            let detail = "mail to another machine needs `starttls` or `tls`";
            self.wrong(&at.member("security"), detail);
        }
        if let Some(name) = &mail.username
            && (name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control))
        {
            let detail = format!("must have 1 to {LONGEST_NAME} bytes without control characters");
            self.wrong(&at.member("username"), detail);
        }
        if !mail::is_address(&mail.from) {
            self.wrong(
                &at.member("from"),
                "must be an address, such as holdfast@example.org",
            );
        }
        if !(1..=MOST_RECIPIENTS).contains(&mail.to.len()) {
            let detail = format!("write 1 to {MOST_RECIPIENTS} addresses");
            self.wrong(&at.member("to"), detail);
        }
        for (n, address) in mail.to.iter().enumerate() {
            if !mail::is_address(address) {
                let detail = "must be an address, such as ops@example.org";
                self.wrong(&at.member("to").member(n), detail);
            }
        }
    }

    fn secrets(&mut self, settings: &Settings, secrets: Secrets<'_>) {
        let bounds = |text: &str, least: usize| {
            (least..=LONGEST_SECRET).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        match (settings.kind, secrets.secret) {
            (ChannelKind::Webhook, None) => {
                let detail =
                    "is missing: messages are signed with it, so that the receiver knows them";
                self.wrong(&member("secret"), detail);
            }
            (ChannelKind::Webhook, Some(secret)) if !bounds(secret, LEAST_SECRET) => {
                let detail = format!(
                    "must have {LEAST_SECRET} to {LONGEST_SECRET} bytes without control characters"
                );
                self.wrong(&member("secret"), detail);
            }
            (ChannelKind::Webhook, Some(_)) | (_, None) => {}
            (_, Some(_)) => self.wrong(&member("secret"), "goes with `webhook` only"),
        }
        match (settings.kind, secrets.token) {
            (ChannelKind::Ntfy, Some(token))
                if !bounds(token, 1) || !token.bytes().all(|byte| byte.is_ascii_graphic()) =>
            {
                self.wrong(&member("token"), "must be visible characters of ASCII");
            }
            (ChannelKind::Ntfy, Some(_)) | (_, None) => {}
            (_, Some(_)) => self.wrong(&member("token"), "goes with `ntfy` only"),
        }
        let at = member("mail").member("password");
        let username = settings
            .mail
            .as_ref()
            .and_then(|mail| mail.username.as_ref());
        match (username, secrets.password) {
            (None, None) => {}
            (Some(_), Some(password)) if bounds(password, 1) => {}
            (Some(_), Some(_)) => {
                let detail =
                    format!("must have 1 to {LONGEST_SECRET} bytes without control characters");
                self.wrong(&at, detail);
            }
            (Some(_), None) => self.wrong(&at, "is missing beside username"),
            (None, Some(_)) => self.wrong(&at, "goes with a username only"),
        }
    }
}

#[cfg(test)]
mod tests;
