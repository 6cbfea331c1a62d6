//! Owns where a version of an image is described: a link into the forge that its source label names.
//!
//! Refuses to link to a forge whose addresses it does not know, to repeat credentials, and to make a link
//! of anything but plain names: the label was written by whoever made the image.

use crate::candidates::Version;

/// Longest source that is looked at, and longest link that is made.
const MAX_URL_BYTES: usize = 512;

/// How a forge writes the address of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forge {
    /// `/OWNER/REPOSITORY/releases/tag/TAG`; Gitea and Forgejo write the same.
    GitHub,
    /// `/GROUP/…/PROJECT/-/releases/TAG`.
    GitLab,
}

impl Forge {
    fn of(host: &str) -> Option<Self> {
        let name = host.split(':').next().unwrap_or_default();
        let mut labels = name.split('.');
        if name == "codeberg.org" || labels.any(|label| ["gitea", "forgejo"].contains(&label)) {
            return Some(Self::GitHub);
        }
        // `github.com`, and a company's own `github.example.com`, `gitlab.gnome.org`.
        match name.split_once('.') {
            Some(("github", _)) => Some(Self::GitHub),
            Some(("gitlab", _)) => Some(Self::GitLab),
            Some(_) | None => None,
        }
    }
}

/// The link to a version's release, from the image's `org.opencontainers.image.source`.
///
/// `tag` is the version, as the image's tag or its version label writes it; a suffix such as `-alpine`
/// is the image's, not the release's. Whether releases begin with `v` is the repository's own custom: it
/// is looked for in the source's branch or tag, and in `spellings`, other names of its versions.
/// Known are GitHub, GitLab, Gitea and Forgejo; `None` for everything else.
pub fn release_link<'a>(
    source: &str,
    tag: &str,
    spellings: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let version = Version::parse(tag)?;
    let source = Source::parse(source)?;
    let custom = |text: &str| {
        Version::parse(text).is_some_and(|spelled| spelled.with_v && spelled.suffix.is_empty())
    };
    let same = format!("v{}", version.numbers);
    let with_v = version.with_v
        || source.revision.is_some_and(custom)
        || spellings.into_iter().any(|text| text == same);
    // `1.2.3-4` may well be a release's own name; `1.2.3-alpine` is not.
    let own = version.suffix.get(1..).unwrap_or_default();
    let suffix = if own.starts_with(|c: char| c.is_ascii_digit()) {
        version.suffix
    } else {
        ""
    };
    let Source {
        scheme, host, path, ..
    } = &source;
    let kind = match source.forge {
        Forge::GitHub => "releases/tag",
        Forge::GitLab => "-/releases",
    };
    let v = if with_v { "v" } else { "" };
    let link = format!(
        "{scheme}://{host}/{}/{kind}/{v}{}{suffix}",
        path.join("/"),
        version.numbers
    );
    (link.len() <= MAX_URL_BYTES).then_some(link)
}

/// A source label, read.
struct Source<'a> {
    scheme: &'static str,
    host: &'a str,
    /// The project's own path.
    path: Vec<&'a str>,
    forge: Forge,
    /// The branch, tag or commit that it names.
    revision: Option<&'a str>,
}

impl<'a> Source<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        if text.len() > MAX_URL_BYTES {
            return None;
        }
        let (scheme, rest) = match text.split_once("://")? {
            ("https", rest) => ("https", rest),
            ("http", rest) => ("http", rest),
            _ => return None,
        };
        let (rest, fragment) = match rest.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (rest, None),
        };
        let rest = rest.split('?').next()?;
        let (host, path) = rest.split_once('/')?;
        // A folder inside a repository holds the recipe of somebody else's program.
        if fragment.is_some_and(|fragment| fragment.contains(':')) || !is_host(host) {
            return None;
        }
        let forge = Forge::of(host)?;
        let mut path: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        if !path.iter().all(|part| is_name(part)) {
            return None;
        }
        let project = match forge {
            Forge::GitHub => Some(2),
            Forge::GitLab => path.iter().position(|part| *part == "-"),
        };
        let inside = match project {
            Some(end) if end <= path.len() => path.split_off(end),
            Some(_) => return None,
            None => Vec::new(),
        };
        if path.len() < 2 {
            return None;
        }
        if let Some(last) = path.last_mut() {
            *last = last.strip_suffix(".git").unwrap_or(last);
        }
        let named = inside
            .iter()
            .skip_while(|part| !["tree", "tag", "releases", "commit"].contains(part))
            .last();
        let revision = fragment
            .map(|fragment| fragment.trim_start_matches("refs/tags/"))
            .or(named.copied());
        let named_all = path.iter().all(|part| is_name(part));
        named_all.then_some(Self {
            scheme,
            host,
            path,
            forge,
            revision,
        })
    }
}

/// `host[:port]`: no user, no password, no brackets.
fn is_host(text: &str) -> bool {
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    !name.is_empty()
        && name.chars().all(plain)
        && name.split('.').all(|label| !label.is_empty())
        && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// A part of a path that means itself.
fn is_name(part: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    !part.is_empty() && part.chars().all(plain) && part != "." && part != ".."
}

#[cfg(test)]
mod tests;
