//! Owns how a question to a registry can fail, and when it is worth asking again.

use std::time::Duration;

use holdfast_proto::image::Digest;

/// When to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAdvice {
    /// Not until something is changed: the answer will be the same.
    Never,
    /// Soon, with the caller's own back-off.
    Later,
    /// Not before this much time has passed.
    After(Duration),
}

/// Why a registry did not tell what a reference points at. No text here holds a credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// The registry wants a login, or does not accept ours.
    #[error("{registry} does not accept our login (401)")]
    Unauthorized {
        /// The registry.
        registry: String,
    },
    /// The login is good, but not for this.
    #[error("{registry} denies access (403)")]
    Forbidden {
        /// The registry.
        registry: String,
    },
    /// The registry has no such repository, tag or digest.
    #[error("{what} is not in the registry (404)")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The registry wants us to slow down.
    #[error("{registry} limits our rate (429)")]
    RateLimited {
        /// The registry.
        registry: String,
        /// How long it wants us to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("{registry} cannot be reached: {reason}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// The cause in words, without addresses that could hold a credential.
        reason: String,
    },
    /// No answer in time.
    #[error("{registry} did not answer in time")]
    TimedOut {
        /// The registry.
        registry: String,
    },
    /// An answer that says something is wrong over there.
    #[error("{registry} answered {status}")]
    Server {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// How long it wants us to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// More bytes than anything honest has.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What was read.
        what: String,
        /// The bound.
        limit: usize,
    },
    /// Somebody else answers in its place.
    #[error("{registry} answers with a web page: is there a captive portal or a proxy in between?")]
    WebPage {
        /// The registry.
        registry: String,
    },
    /// The bytes are not what their digest says.
    #[error("{what} was announced as {announced} but hashes to {found}")]
    DigestMismatch {
        /// What was read.
        what: String,
        /// The digest of the request or header.
        announced: Digest,
        /// The digest of the bytes.
        found: Digest,
    },
    /// The document is not one we can use.
    #[error("{what} is not a usable manifest: {why}")]
    BadManifest {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The bytes that were offered are not those that were asked for.
    #[error("{what} cannot be used: {why}")]
    BadBlob {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A format that names no content reliably.
    #[error(
        "{what} is in the schema 1 format, which is not supported: push it with a current tool"
    )]
    Schema1 {
        /// What was read.
        what: String,
    },
    /// The registry sends us for a token to a host it has no business with.
    #[error("{registry} names a token server that is not allowed: {why}")]
    RealmRefused {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// The token server answered, and not with a token: a captive portal does so.
    #[error("the token server of {registry} answered without a token")]
    BadToken {
        /// The registry.
        registry: String,
    },
    /// The registry sends us somewhere we do not go.
    #[error("{registry} redirects where it must not: {why}")]
    RedirectRefused {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// An address that is not asked: of a private network, or of nobody's registry.
    #[error("{registry} is not asked: {why}")]
    AddressRefused {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// The login that should be there could not be had.
    #[error("no login for {registry}: {why}")]
    Keychain {
        /// The registry.
        registry: String,
        /// Why.
        why: String,
    },
    /// The client could not be built.
    #[error("the registry client cannot be built: {reason}")]
    Client {
        /// Why.
        reason: String,
    },
}

impl RegistryError {
    /// When to ask again.
    pub fn retry(&self) -> RetryAdvice {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Server { retry_after, .. } => {
                retry_after.map_or(RetryAdvice::Later, RetryAdvice::After)
            }
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::WebPage { .. }
            | Self::DigestMismatch { .. }
            | Self::BadBlob { .. }
            | Self::Unauthorized { .. }
            | Self::Keychain { .. }
            | Self::BadToken { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. } => RetryAdvice::Later,
            Self::TooLarge { .. }
            | Self::BadManifest { .. }
            | Self::Schema1 { .. }
            | Self::RealmRefused { .. }
            | Self::RedirectRefused { .. }
            | Self::AddressRefused { .. }
            | Self::Client { .. } => RetryAdvice::Never,
        }
    }

    /// Whether it says nothing of what was asked for: any other question would end so now.
    pub fn is_general(&self) -> bool {
        matches!(
            self,
            Self::RateLimited { .. }
                | Self::Server { .. }
                | Self::Unreachable { .. }
                | Self::TimedOut { .. }
                | Self::WebPage { .. }
        )
    }

    /// Stable name of the failure, for reports and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthorized { .. } => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound { .. } => "not_found",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unreachable { .. } => "unreachable",
            Self::TimedOut { .. } => "timed_out",
            Self::Server { .. } => "server_error",
            Self::TooLarge { .. } => "too_large",
            Self::WebPage { .. } => "web_page",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::BadManifest { .. } => "bad_manifest",
            Self::BadBlob { .. } => "bad_blob",
            Self::Schema1 { .. } => "schema1",
            Self::RealmRefused { .. } => "realm_refused",
            Self::RedirectRefused { .. } => "redirect_refused",
            Self::AddressRefused { .. } => "address_refused",
            Self::Keychain { .. } => "keychain",
            Self::BadToken { .. } => "bad_token",
            Self::Client { .. } => "client",
        }
    }
}
