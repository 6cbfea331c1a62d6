//! Owns what a device or a fleet says of its own image updates, as it is stored and shown; refuses unknown members.
//!
//! Logins are no part of it: they are stored elsewhere, encrypted, and nothing gives them back.

use serde::{Deserialize, Serialize};

use crate::window::UpdateWindow;

/// What a device or a fleet says of its own image updates; what is absent was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageUpdatePolicy {
    /// Whether tags are resolved anew by themselves; else a tag stays as it was pinned until somebody asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_resolve_digests: Option<bool>,
    /// For so many seconds what a registry said of a tag is taken for good.
    #[serde(
        default,
        rename = "digestCacheTTL",
        skip_serializing_if = "Option::is_none"
    )]
    pub digest_cache_ttl_s: Option<u32>,
    /// Whether a push of a moving tag, such as `latest`, is rolled out here by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_update_latest: Option<bool>,
    /// When rollouts may begin to update here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_window: Option<UpdateWindow>,
}
