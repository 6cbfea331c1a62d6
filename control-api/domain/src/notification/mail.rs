//! Owns a message as mail (RFC 5322): plain text in UTF-8, every header on its own line.
//!
//! Refuses addresses that could be read as more than one, or as a header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::destination::is_host;
use super::forms::{Message, Told, detail_line};
use super::template::one_line;
use super::{Content, Notice};

/// Longest part before the `@` (RFC 5321, section 4.5.3.1).
const LONGEST_LOCAL: usize = 64;
/// Longest address (the same section, less the brackets).
const LONGEST_ADDRESS: usize = 254;
/// Characters in a line of base64 (RFC 2045, section 6.8).
const LINE: usize = 76;
/// Bytes in one encoded word: 45 make 60 characters, with the rest of it under 75 (RFC 2047, section 2).
const WORD: usize = 45;
/// Before every subject, for filters.
const PREFIX: &str = "[Holdfast] ";

/// Whether a text is one address of mail: the plain form, without quotes, comments and other scripts.
pub fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else {
        return false;
    };
    // RFC 5322, section 3.2.3: `atext`, with dots in between.
    let is_atom = |atom: &str| {
        let is_known =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
        !atom.is_empty() && atom.bytes().all(is_known)
    };
    text.len() <= LONGEST_ADDRESS
        && local.len() <= LONGEST_LOCAL
        && local.split('.').all(is_atom)
        && is_host(domain)
}

/// The whole mail, with the line ends that mail wants.
pub(super) fn write(message: &Message<'_>, told: &Told) -> String {
    let Some(mail) = &message.settings.mail else {
        return String::new();
    };
    let domain = mail
        .from
        .rsplit_once('@')
        .map_or("localhost", |(_, domain)| domain);
    let mut lines = Vec::new();
    // A time without a date in mail does not happen; a server adds its own.
    lines.extend(message.now.rfc_5322().map(|date| format!("Date: {date}")));
    lines.push(format!("From: Holdfast <{}>", mail.from));
    lines.push(format!("To: {}", mail.to.join(",\r\n ")));
    lines.push(format!("Subject: {}", subject(&told.title)));
    // The same for every try: programs that get it twice show it once.
    lines.push(format!("Message-ID: <{}@{domain}>", message.delivery));
    lines.push("Auto-Submitted: auto-generated".to_owned());
    lines.push("MIME-Version: 1.0".to_owned());
    lines.push("Content-Type: text/plain; charset=utf-8".to_owned());
    lines.push("Content-Transfer-Encoding: base64".to_owned());
    lines.push(String::new());
    let encoded = STANDARD.encode(text(message, told).replace('\n', "\r\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(LINE));
        lines.push(line.to_owned());
        rest = after;
    }
    lines.push(String::new());
    lines.join("\r\n")
}

/// A title as a header: as it is where that is safe, else in encoded words (RFC 2047).
fn subject(title: &str) -> String {
    let title = format!("{PREFIX}{}", one_line(title, usize::MAX));
    let is_plain = title
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic());
    if is_plain && !title.contains("=?") && title.len() <= LINE {
        return title;
    }
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    for c in title.chars() {
        if word.len() + c.len_utf8() > WORD {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let encoded: Vec<String> = words
        .iter()
        .map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word)))
        .collect();
    encoded.join("\r\n ")
}

/// What people read, and below it what the event itself says.
fn text(message: &Message<'_>, told: &Told) -> String {
    let mut lines = vec![told.title.clone()];
    if !told.text.is_empty() {
        lines.push(String::new());
        lines.push(told.text.clone());
    }
    if let Content::Event(notice) = message.content {
        lines.push(String::new());
        lines.push("-- ".to_owned());
        lines.extend(facts(notice));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn facts(notice: &Notice) -> Vec<String> {
    let device = notice.device.map(|id| match &notice.device_name {
        Some(name) => format!("{name} ({id})"),
        None => id.to_string(),
    });
    let number = (notice.id != 0).then(|| notice.id.to_string());
    let all = [
        (
            "Event",
            Some(format!("{} ({})", notice.kind, notice.severity.name())),
        ),
        ("Number", number),
        ("When", Some(notice.at.to_string())),
        ("Subject", notice.subject.clone()),
        ("Device", device),
        ("Fleet", notice.fleet.clone()),
        ("Detail", detail_line(&notice.detail)),
    ];
    let known = all
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    known
        .map(|(name, value)| format!("{name}: {}", one_line(&value, usize::MAX)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_one_address() {
        for good in ["ops@example.org", "a.b+c@localhost", "o'neil@mail.example"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "ops",
            "@example.org",
            "ops@",
            "a@b@c",
            ".a@b",
            "a..b@c",
            "a b@c",
            "a@b c",
            "a@b>",
            "<a@b>",
            "a,b@c",
            "a@b,c@d",
            "a@b\r\nBcc: c@d",
            "\"a\"@b",
            "ä@b",
            "a@b..c",
        ] {
            assert!(!is_address(bad), "{bad:?}");
        }
        assert!(!is_address(&format!("{}@b", "a".repeat(65))));
    }

    #[test]
    fn a_subject_that_is_not_plain_is_encoded() {
        assert_eq!(subject("till 3 is silent"), "[Holdfast] till 3 is silent");
        assert_eq!(subject("a\r\nBcc: x@y"), "[Holdfast] a  Bcc: x@y");
        assert_eq!(subject("Ärger"), "=?utf-8?B?W0hvbGRmYXN0XSDDhHJnZXI=?=");
        assert!(subject("=?utf-8?q?x?=").starts_with("=?utf-8?B?"));
    }

    proptest! {
        #[test]
        fn no_title_makes_a_header(title in any::<String>()) {
            let subject = subject(&title);
            for (n, line) in subject.split("\r\n").enumerate() {
                prop_assert!(line.len() <= 76, "{line}");
                prop_assert!(n == 0 || line.starts_with(' '));
                let plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
                prop_assert!(line.bytes().all(plain));
            }
        }
    }
}
