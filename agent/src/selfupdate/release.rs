//! Owns what a release's files must say before its program may run here. Pure.

use super::minisign::{PublicKey, verify};

/// The platform that this program was built for, as releases name it.
pub const TARGET: &str = env!("HOLDFAST_TARGET");
/// The bytes of a program that say what machine it is for: word size, byte order and processor.
pub const HEAD_BYTES: usize = 20;
/// How long a version may be: it goes into reports and messages.
const MAX_VERSION_CHARS: usize = 64;

/// The program that a release has for this platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The release's version.
    pub version: String,
    /// The program's hash, in hexadecimal digits.
    pub sha256: String,
}

/// Proves a list of sums and finds this platform's line in it; says why not.
pub fn listed(keys: &[PublicKey], sums: &[u8], signature: &[u8]) -> Result<Listed, String> {
    if keys.is_empty() {
        let why = "this device has no key to prove a release with: set `update.keys`";
        return Err(why.to_owned());
    }
    let signature = std::str::from_utf8(signature)
        .map_err(|_| "SHA256SUMS.minisig is no minisign signature".to_owned())?;
    verify(keys, sums, signature)
        .map_err(|why| format!("the signature in SHA256SUMS.minisig does not count: {why}"))?;
    let sums = std::str::from_utf8(sums).map_err(|_| "SHA256SUMS is no text".to_owned())?;
    let mut lines = sums.lines().filter_map(line);
    lines
        .find(|(target, _)| *target == TARGET)
        .map(|(_, listed)| listed)
        .ok_or_else(|| format!("SHA256SUMS has no line for {TARGET}"))
}

/// `<sha256>  holdfast-agent_<version>_<target>`, as `sha256sum` writes it.
fn line(text: &str) -> Option<(&str, Listed)> {
    let (sum, name) = text.split_once(char::is_whitespace)?;
    let name = name.trim_start().trim_start_matches('*').trim_end();
    let rest = name.strip_prefix("holdfast-agent_")?;
    // A version has no underscore; a target may.
    let (version, target) = rest.split_once('_')?;
    let is_sum = sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
    let is_version = !version.is_empty()
        && version.len() <= MAX_VERSION_CHARS
        && version
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-+~".contains(c));
    (is_sum && is_version).then(|| {
        let listed = Listed {
            version: version.to_owned(),
            sha256: sum.to_ascii_lowercase(),
        };
        (target, listed)
    })
}

/// Whether a program with this head can run where the program with the other one does; says why not.
pub fn fits(head: &[u8], own: &[u8; HEAD_BYTES]) -> Result<(), String> {
    let Some(head) = head.first_chunk::<HEAD_BYTES>() else {
        return Err("its program is shorter than a program can be".to_owned());
    };
    if head[..4] != own[..4] {
        return Err("its program is no program of Linux (ELF)".to_owned());
    }
    // Class and byte order; then the processor, in that byte order.
    if head[4..6] != own[4..6] || head[18..20] != own[18..20] {
        return Err("its program was made for another processor".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::minisign::tests::signed;
    use super::*;

    fn sums(target: &str) -> String {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        format!(
            "{a}  holdfast-agent_1.2.0_other-unknown-linux-gnu\n{b}  holdfast-agent_1.2.0_{target}\n"
        )
    }

    #[test]
    fn finds_this_platforms_program_in_a_proved_list() {
        let text = sums(TARGET);
        let (key, signature) = signed(7, text.as_bytes());
        let found = listed(&[key], text.as_bytes(), signature.as_bytes());
        let wanted = Listed {
            version: "1.2.0".to_owned(),
            sha256: "b".repeat(64),
        };
        assert_eq!(found, Ok(wanted));
    }

    #[test]
    fn says_what_is_missing() {
        let refused = |keys: &[PublicKey], text: &str, signature: &[u8], why: &str| {
            let said = listed(keys, text.as_bytes(), signature).unwrap_err();
            assert!(said.contains(why), "{said}");
        };
        let text = sums(TARGET);
        let (key, signature) = signed(7, text.as_bytes());
        let keys = [key];
        refused(&[], &text, signature.as_bytes(), "update.keys");
        refused(&keys, &text, b"", "does not count");
        refused(&keys, &text, b"\xff", "no minisign signature");
        refused(&keys, &sums("x"), signature.as_bytes(), "not of this text");
        let text = sums("sparc64-unknown-linux-gnu");
        let (_, signature) = signed(7, text.as_bytes());
        refused(&keys, &text, signature.as_bytes(), TARGET);
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let sum = "c".repeat(64);
        for bad in [
            String::new(),
            "nothing".to_owned(),
            format!("{sum}  holdfast-api_1_x"),
            format!("{sum}  holdfast-agent_1"),
            format!("{}  holdfast-agent_1_x", &sum[1..]),
            format!("{sum}  holdfast-agent_1\u{1b}_x"),
            format!("{sum}  holdfast-agent_{}_x", "1".repeat(65)),
        ] {
            assert_eq!(line(&bad), None, "{bad}");
        }
        let binary = format!("{sum} *holdfast-agent_1_x86_64");
        assert_eq!(line(&binary).map(|(target, _)| target), Some("x86_64"));
    }

    #[test]
    fn another_processors_program_does_not_fit() {
        let mut own = [0; HEAD_BYTES];
        own[..6].copy_from_slice(b"\x7fELF\x02\x01");
        own[18] = 62;
        assert_eq!(fits(&own, &own), Ok(()));
        for (at, byte) in [(4, 1), (5, 2), (18, 183), (19, 1), (0, 0)] {
            let mut other = own;
            other[at] = byte;
            assert!(fits(&other, &own).is_err(), "byte {at}");
        }
        assert!(fits(&own[..19], &own).unwrap_err().contains("shorter"));
    }
}
