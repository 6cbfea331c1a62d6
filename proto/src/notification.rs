//! Owns the words of outgoing notifications: where they go, how bad news is, how mail travels.

use serde::{Deserialize, Serialize};

/// What a channel speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ChannelKind {
    /// A signed POST to a program of one's own.
    Webhook,
    /// A topic of ntfy.
    Ntfy,
    /// An incoming webhook of Slack, or of what understands its form (Mattermost, Rocket.Chat).
    Slack,
    /// A webhook of Discord.
    Discord,
    /// A webhook of a Microsoft Teams workflow.
    Teams,
    /// Mail, by way of a server that takes it.
    Email,
}

impl ChannelKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Webhook,
        Self::Ntfy,
        Self::Slack,
        Self::Discord,
        Self::Teams,
        Self::Email,
    ];

    /// Its word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Webhook => "webhook",
            Self::Ntfy => "ntfy",
            Self::Slack => "slack",
            Self::Discord => "discord",
            Self::Teams => "teams",
            Self::Email => "email",
        }
    }
}

/// How much an event matters; the later, the more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Severity {
    /// As it should be.
    #[default]
    Info,
    /// Somebody may want to look.
    Warning,
    /// Something failed.
    Error,
}

impl Severity {
    /// Its word on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What protects mail on its way to the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum MailSecurity {
    /// TLS, after the server was asked to begin with it (port 587).
    #[default]
    Starttls,
    /// TLS from the first byte (port 465).
    Tls,
    /// Nothing: to a server on this machine only.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_spelling() {
        for kind in ChannelKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
