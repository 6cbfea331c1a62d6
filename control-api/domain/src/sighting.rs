//! Owns what a tag's digest of today means beside those of before: the same, moved, moved back.

use holdfast_proto::image::Digest;
use holdfast_proto::time::Timestamp;

/// A time in which a reference meant one digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// What it meant.
    pub digest: Digest,
    /// When that was seen first.
    pub first_seen: Timestamp,
    /// When it was seen last.
    pub last_seen: Timestamp,
}

/// What seeing a digest behind a reference tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// The reference is seen for the first time.
    First,
    /// It means what it meant.
    Same,
    /// It means something that it never meant before.
    Moved {
        /// What it meant until now.
        from: Digest,
    },
    /// It means again what it meant once: somebody went back.
    MovedBack {
        /// What it meant until now.
        from: Digest,
        /// When it meant this before, for the last time.
        last_seen: Timestamp,
    },
}

/// Judges one digest by the periods that are known, the newest first.
pub fn judge(newest_first: &[Period], digest: &Digest) -> Sighting {
    let Some((newest, earlier)) = newest_first.split_first() else {
        return Sighting::First;
    };
    if newest.digest == *digest {
        return Sighting::Same;
    }
    let from = newest.digest;
    match earlier.iter().find(|period| period.digest == *digest) {
        Some(period) => Sighting::MovedBack {
            from,
            last_seen: period.last_seen,
        },
        None => Sighting::Moved { from },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn period(text: &str, ms: i64) -> Period {
        Period {
            digest: digest(text),
            first_seen: Timestamp::from_millis(ms),
            last_seen: Timestamp::from_millis(ms + 5),
        }
    }

    #[test]
    fn a_digest_of_before_is_told_from_a_new_one() {
        assert_eq!(judge(&[], &digest("a")), Sighting::First);
        let known = [period("b", 10), period("a", 1)];
        assert_eq!(judge(&known, &digest("b")), Sighting::Same);
        let from = digest("b");
        assert_eq!(judge(&known, &digest("c")), Sighting::Moved { from });
        let last_seen = Timestamp::from_millis(6);
        assert_eq!(
            judge(&known, &digest("a")),
            Sighting::MovedBack { from, last_seen }
        );
    }
}
