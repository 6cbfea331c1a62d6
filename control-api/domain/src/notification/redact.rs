//! Owns taking secrets out of what the other side said: it may repeat what it was sent.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::template::one_line;

/// Parts of an address shorter than this are no secrets but words, such as `webhook`.
const LEAST_PART: usize = 8;
/// Shorter secrets would make holes in every text, and hide nothing.
const LEAST_SECRET: usize = 3;
/// As much of an answer as helps to see what went wrong.
const LONGEST: usize = 500;

/// What must not be seen.
#[derive(Clone, Default)]
pub struct Redactor {
    /// The longest first: a part must not make the whole unrecognisable.
    hidden: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor(…)")
    }
}

impl Redactor {
    /// Hides a text, also as base64 and as the login of mail (RFC 4616) in which it may be.
    pub fn hide(&mut self, secret: &str, user: Option<&str>) {
        if secret.len() < LEAST_SECRET {
            return;
        }
        let mut hidden = vec![secret.to_owned(), STANDARD_NO_PAD.encode(secret)];
        if let Some(user) = user {
            let login = format!("\0{user}\0{secret}");
            hidden.push(STANDARD.encode(login));
        }
        self.add(hidden);
    }

    /// Hides an address: its path, its query, and every part of them.
    pub fn hide_url(&mut self, url: &str) {
        let after_scheme = url.split_once("://").map_or(url, |(_, rest)| rest);
        let Some(at) = after_scheme.find(['/', '?']) else {
            return;
        };
        let rest = &after_scheme[at..];
        let parts = rest.split(['/', '?', '&', '=']);
        let long = parts.filter(|part| part.len() >= LEAST_PART);
        let whole = Some(rest).filter(|rest| rest.len() >= LEAST_PART);
        let hidden = long.chain(whole).map(str::to_owned).collect();
        self.add(hidden);
    }

    fn add(&mut self, hidden: Vec<String>) {
        self.hidden.extend(hidden);
        self.hidden
            .sort_by_key(|text| std::cmp::Reverse(text.len()));
        self.hidden.dedup();
    }

    /// What may be shown and stored of what the other side said: one line, bounded.
    pub fn shown(&self, said: &str) -> String {
        let text = self.hidden.iter().fold(said.to_owned(), |text, hidden| {
            text.replace(hidden.as_str(), "…")
        });
        one_line(text.trim(), LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_sent_does_not_come_back() {
        let mut redactor = Redactor::default();
        redactor.hide("pässword", Some("me"));
        redactor
            .hide_url("https://hooks.example/services/T0000000/B0000000/abcdefghijkl?key=zyxwvuts");
        let login = STANDARD.encode("\0me\0pässword");
        let said = format!(
            "AUTH {login} or {} or pässword: no /services/T0000000/B0000000/abcdefghijkl?key=zyxwvuts",
            STANDARD.encode("pässword")
        );
        assert_eq!(redactor.shown(&said), "AUTH … or … or …: no …");
        assert_eq!(
            redactor.shown(r"https:\/\/hooks.example\/services\/abcdefghijkl"),
            r"https:\/\/hooks.example\/…\/…"
        );
        assert_eq!(redactor.shown("invalid_token\r\n"), "invalid_token");
    }

    #[test]
    fn what_is_no_secret_stays() {
        let mut redactor = Redactor::default();
        redactor.hide_url("https://ntfy.example");
        redactor.hide_url("https://ntfy.example/ops");
        assert_eq!(
            redactor.shown("no such topic: ops at ntfy.example"),
            "no such topic: ops at ntfy.example"
        );
    }

    proptest! {
        #[test]
        fn no_text_lets_a_secret_through(before in ".{0,40}", secret in "[a-zA-Z0-9]{16,40}", after in ".{0,40}") {
            let mut redactor = Redactor::default();
            redactor.hide(&secret, None);
            let said = format!("{before}{secret}{after}");
            prop_assert!(!redactor.shown(&said).contains(&secret));
        }
    }
}
