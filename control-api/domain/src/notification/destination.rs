//! Owns addresses of channels: which host they lead to, and which of them are addresses at all.
//!
//! Refuses forms that different programs read differently; what is shown of an address is its host alone, since
//! the rest of it often is the secret.

/// Longest address; those of Teams have about 400 characters.
const LONGEST_URL: usize = 2_048;
/// Longest host name (RFC 1035).
const LONGEST_HOST: usize = 253;

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Whether what is sent there is encrypted on the way.
    pub encrypted: bool,
    /// The host, and the port if one is written.
    pub authority: String,
    /// The host alone, without the brackets of an IPv6 address.
    pub host: String,
    /// The port, also when none is written.
    pub port: u16,
    /// Segments of the path.
    path: Vec<String>,
    has_query: bool,
}

impl Destination {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it, without any of it.
    pub fn read(url: &str) -> Result<Self, &'static str> {
        if url.len() > LONGEST_URL {
            return Err("is longer than any address");
        }
        if !url
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\\\"<>`{}|^".contains(&byte))
        {
            return Err("has characters that no address has: write them as %XX");
        }
        let (encrypted, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err("must begin with https://"),
        };
        if rest.contains('#') {
            return Err("must have no fragment (`#…`)");
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        if authority.contains('@') {
            return Err("must hold no user and password before the host");
        }
        let (host, port) = split(authority).ok_or("has no host that could be reached")?;
        let (path, query) = rest
            .split_once('?')
            .map_or((rest, None), |(path, query)| (path, Some(query)));
        let path: Vec<String> = path.split('/').skip(1).map(str::to_owned).collect();
        if path.iter().any(|segment| segment == "." || segment == "..") {
            return Err("must not have `.` or `..` in its path");
        }
        Ok(Self {
            encrypted,
            authority: authority.to_ascii_lowercase(),
            host: host.to_ascii_lowercase(),
            port: port.unwrap_or(if encrypted { 443 } else { 80 }),
            path,
            has_query: query.is_some(),
        })
    }

    /// The topic, where the address is one of ntfy: `https://ntfy.example/topic`.
    pub fn topic(&self) -> Option<&str> {
        let [topic] = self.path.as_slice() else {
            return None;
        };
        let is_known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let fits = (1..=64).contains(&topic.len()) && topic.chars().all(is_known);
        (fits && !self.has_query).then_some(topic)
    }

    /// The address of the server itself.
    pub fn root(&self) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        format!("{scheme}://{}/", self.authority)
    }
}

/// Host and port of `host[:port]`.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return None,
        }
    } else {
        let (host, port) = authority
            .split_once(':')
            .map_or((authority, None), |(host, port)| (host, Some(port)));
        (is_host(host).then_some(host)?, port)
    };
    match port {
        None => Some((host, None)),
        Some(port) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let number = port.parse().ok().filter(|port| *port != 0 && digits)?;
            Some((host, Some(number)))
        }
    }
}

/// Whether a text is a host's name or an IPv4 address.
pub fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(is_known)
    };
    text.len() <= LONGEST_HOST && text.split('.').all(is_label)
}

/// Whether a host can only be this machine.
pub fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_leads_to_a_host() {
        let read = |url: &str| Destination::read(url).unwrap();
        let slack = read("https://Hooks.Slack.com/services/T0/B0/xyz");
        assert_eq!(
            (slack.authority.as_str(), slack.port),
            ("hooks.slack.com", 443)
        );
        assert!(slack.encrypted);
        let lan = read("http://10.0.0.5:8080?x=/a@b");
        assert_eq!(
            (lan.authority.as_str(), lan.host.as_str(), lan.port),
            ("10.0.0.5:8080", "10.0.0.5", 8080)
        );
        assert!(!lan.encrypted);
        let six = read("https://[fd12::1]:8443/x");
        assert_eq!(
            (six.authority.as_str(), six.host.as_str()),
            ("[fd12::1]:8443", "fd12::1")
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for url in [
            "",
            "ftp://a.example/x",
            "HTTPS://a.example",
            "//a.example/x",
            "https://",
            "https:///x",
            "https://user:pw@a.example/",
            "https://evil.example\\@a.example/",
            "https://a.example#@b.example",
            "https://a..example/",
            "https://a.example:/x",
            "https://a.example:0/x",
            "https://a.example:+80/x",
            "https://a.example:99999/x",
            "https://[::1/x",
            "https://[::1]x/",
            "https://[v1.a]/",
            "https://a.example/a b",
            "https://a.example/a\nb",
            "https://ä.example/",
            "https://a.example/%zz/../x",
        ] {
            let refused = Destination::read(url);
            assert!(refused.is_err(), "{url}: {refused:?}");
        }
        assert!(Destination::read(&format!("https://a.example/{}", "x".repeat(2_048))).is_err());
    }

    #[test]
    fn the_last_of_an_address_of_ntfy_is_its_topic() {
        let topic = |url: &str| {
            let read = Destination::read(url).unwrap();
            read.topic().map(|topic| (topic.to_owned(), read.root()))
        };
        assert_eq!(
            topic("https://ntfy.sh/alerts_1"),
            Some(("alerts_1".into(), "https://ntfy.sh/".into()))
        );
        for other in [
            "https://ntfy.sh",
            "https://ntfy.sh/",
            "https://ntfy.sh/a/b",
            "https://ntfy.sh/a?x=1",
        ] {
            assert_eq!(topic(other), None, "{other}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        assert!(is_loopback("localhost") && is_loopback("127.0.0.1") && is_loopback("::1"));
        assert!(!is_loopback("10.0.0.1") && !is_loopback("localhost.example"));
    }
}
