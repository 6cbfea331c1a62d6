//! Owns how paths and image names are compared with what a policy lists.
//!
//! Refuses to look at the device's files: a link is known only by its spelling.

/// An absolute path without `.`, `..` and doubled slashes; none if it is no absolute path.
///
/// `/var/run` is spelled `/run`, which it links to on every current distribution.
pub(crate) fn clean_path(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.chars().any(char::is_control) {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.starts_with(&["var", "run"]) {
        parts.remove(0);
    }
    Some(format!("/{}", parts.join("/")))
}

/// A path in which `*` stands for any text without a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PathPattern(Vec<String>);

impl PathPattern {
    /// A pattern from an absolute path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let path = clean_path(text).filter(|path| path != "/")?;
        Some(Self(path[1..].split('/').map(str::to_owned).collect()))
    }

    /// Whether it names this path, given in the form of [`clean_path`].
    pub(super) fn covers(&self, path: &str) -> bool {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        parts.len() == self.0.len() && all_match(&self.0, &parts)
    }
}

/// A registry, or a part of one: `ghcr.io`, `ghcr.io/team`, `*.example.com/team/app-*`, `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImagePattern {
    host: String,
    /// Compared component by component; what follows these is covered too.
    prefix: Vec<String>,
}

impl ImagePattern {
    /// A pattern from a host and, after a slash, the beginning of a path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (host, prefix) = text.split_once('/').unwrap_or((text, ""));
        let fits = |part: &str, more: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !part.is_empty() && part.chars().all(plain)
        };
        let components: Vec<String> = if text.contains('/') {
            prefix.split('/').map(str::to_owned).collect()
        } else {
            Vec::new()
        };
        if !fits(host, ".-:[]*") || !components.iter().all(|part| fits(part, "._-*")) {
            return None;
        }
        // Docker Hub's other names, as image references are read.
        let host = match host.to_ascii_lowercase().as_str() {
            "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
            other => other.to_owned(),
        };
        Some(Self {
            host,
            prefix: components,
        })
    }

    /// Whether it covers a repository in canonical form.
    pub(super) fn covers(&self, registry: &str, path: &str) -> bool {
        let parts: Vec<&str> = path.split('/').collect();
        matches(&self.host, registry)
            && parts.len() >= self.prefix.len()
            && all_match(&self.prefix, &parts)
    }
}

fn all_match(patterns: &[String], parts: &[&str]) -> bool {
    let mut pairs = patterns.iter().zip(parts);
    pairs.all(|(pattern, part)| matches(pattern, part))
}

/// Whether `text` is `pattern`, in which `*` stands for any text: the pieces between the stars are
/// found one after the other, so that no pattern takes long.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        match text.find(piece) {
            Some(place) => text = &text[place + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_has_one_spelling() {
        for (written, clean) in [
            ("/etc", "/etc"),
            ("/etc/", "/etc"),
            ("//etc//app", "/etc/app"),
            ("/srv/../etc/./app/..", "/etc"),
            ("/../../etc", "/etc"),
            ("/", "/"),
            ("/..", "/"),
            ("/var/run/docker.sock", "/run/docker.sock"),
            ("/var/./run", "/run"),
            ("/var/running", "/var/running"),
        ] {
            assert_eq!(clean_path(written).as_deref(), Some(clean), "{written}");
        }
        for bad in ["", "etc", "./etc", "~/x", "/a\0b", "/a\nb"] {
            assert_eq!(clean_path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_star_stays_within_its_component() {
        let covers = |pattern: &str, path: &str| PathPattern::parse(pattern).unwrap().covers(path);
        assert!(covers("/dev/ttyUSB*", "/dev/ttyUSB0"));
        assert!(covers("/dev/*", "/dev/sda"));
        assert!(!covers("/dev/*", "/dev/snd/timer"));
        assert!(!covers("/dev/ttyUSB*", "/dev/ttyACM0"));
        assert!(!covers("/dev/ttyUSB0", "/dev/ttyUSB01"));
        assert!(covers("/dev/a*b*c", "/dev/a-b-bc"));
        assert!(!covers("/dev/a*b*c", "/dev/ac"));
        assert!(!covers("/dev/ab*ba", "/dev/aba"));
        assert_eq!(PathPattern::parse("/"), None);
        assert_eq!(PathPattern::parse("dev"), None);
    }

    #[test]
    fn registries_are_covered_by_whole_components() {
        let covers = |pattern: &str, registry: &str, path: &str| {
            ImagePattern::parse(pattern).unwrap().covers(registry, path)
        };
        assert!(covers("docker.io", "docker.io", "library/redis"));
        assert!(covers(
            "index.docker.io/library",
            "docker.io",
            "library/redis"
        ));
        assert!(covers("ghcr.io/team", "ghcr.io", "team/app"));
        assert!(covers("ghcr.io/team", "ghcr.io", "team"));
        assert!(!covers("ghcr.io/team", "ghcr.io", "teamwork/app"));
        assert!(!covers("ghcr.io/team/app", "ghcr.io", "team"));
        assert!(!covers("ghcr.io", "ghcr.io.evil.example", "team/app"));
        assert!(!covers("ghcr.io", "ghcr.io:8443", "team/app"));
        assert!(covers(
            "*.example.com/team/app-*",
            "eu.example.com",
            "team/app-web"
        ));
        assert!(!covers("*.example.com/team", "example.com", "team/app"));
        assert!(!covers("*.example.com", "x.example.com.evil", "team"));
        assert!(covers("*", "127.0.0.1:5000", "x"));
        assert!(covers("LOCALHOST:5000", "localhost:5000", "x"));
        for bad in [
            "",
            "/x",
            "ghcr.io/",
            "ghcr.io//x",
            "https://ghcr.io",
            "ghcr.io/x:1",
            "a b",
        ] {
            assert_eq!(ImagePattern::parse(bad), None, "{bad}");
        }
    }
}
