//! Owns what a device asks for before it pulls an image that needs a login, and what it gets.
//!
//! Refuses to show in logs what is secret in it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A device's wish to pull an image of its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PullLoginRequest {
    /// The image as the target names it: `name@sha256:…`.
    pub image: String,
}

/// What an engine logs in with for one repository.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PullLogin {
    /// The registry's canonical name.
    pub registry: String,
    /// The repository's path there: what it is good for.
    pub repository: String,
    /// What it is.
    pub kind: PullLoginKind,
    /// The token, of kind `token`; engines call it `registrytoken`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The user, of kind `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The password, of kind `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// For how long it may be used again.
    pub expires_in_seconds: u64,
}

/// What kind of login it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PullLoginKind {
    /// A token that the registry minted for this repository, soon worth nothing.
    Token,
    /// A user and a password: the registry mints no tokens, and the operator allows it.
    Password,
    /// Nothing: the registry gives this image to everybody.
    Open,
}

impl fmt::Debug for PullLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullLogin")
            .field("registry", &self.registry)
            .field("repository", &self.repository)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_travels_whole_and_never_shows_in_debug() {
        let login = PullLogin {
            registry: "reg.example".to_owned(),
            repository: "demo/web".to_owned(),
            kind: PullLoginKind::Token,
            token: Some("canary".to_owned()),
            username: None,
            password: None,
            expires_in_seconds: 240,
        };
        assert_eq!(
            serde_json::to_value(&login).unwrap(),
            serde_json::json!({ "registry": "reg.example", "repository": "demo/web",
                "kind": "token", "token": "canary", "expiresInSeconds": 240 })
        );
        assert!(!format!("{login:?}").contains("canary"));
    }
}
