//! Owns the part of the configuration about installing agents: this server's address, the folder of releases,
//! the key that proves them.

use std::path::PathBuf;

use serde::Deserialize;

use super::Install;
use super::input::Faults;

/// The key of the releases that this program was built for, if whoever built it said so.
const BUILT_IN_KEY: Option<&str> = option_env!("HOLDFAST_RELEASE_KEY");
/// A public key of minisign: two letters of its kind, its number and the key, in base64.
const KEY_LETTERS: usize = 56;
/// Longer addresses are no addresses of servers.
const MOST_URL: usize = 200;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleasesInput {
    dir: Option<PathBuf>,
    key: Option<String>,
}

pub(super) fn install(
    public_url: Option<&str>,
    releases: ReleasesInput,
    faults: &mut Faults,
) -> Install {
    if let Some(dir) = &releases.dir
        && !dir.is_absolute()
    {
        faults.add("releases.dir", "must be a path that begins with a slash");
    }
    let key = releases.key.as_deref().or(BUILT_IN_KEY).map(str::trim);
    if let Some(key) = key
        && !is_key(key)
    {
        faults.add(
            "releases.key",
            "must be a public key as minisign writes it: 56 letters that begin with RW",
        );
    }
    let public_url = public_url.map(|url| url.trim_end_matches('/'));
    if let Some(url) = public_url
        && !is_url(url)
    {
        faults.add(
            "public_url",
            "must be how devices reach this server, such as https://holdfast.example",
        );
    }
    Install {
        public_url: public_url.map(str::to_owned),
        releases: releases.dir,
        key: key.map(str::to_owned),
    }
}

/// Strict, because it becomes part of a shell script.
fn is_key(text: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
    text.len() == KEY_LETTERS && text.starts_with("RW") && text.chars().all(is_letter)
}

/// Whether this is an address that may become part of a shell script.
pub fn is_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let is_letter = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '.' | ':' | '/' | '_' | '~' | '%' | '[' | ']' | '-')
    };
    text.len() <= MOST_URL
        && rest.is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with(['/', ':']) && rest.chars().all(is_letter)
        })
}
