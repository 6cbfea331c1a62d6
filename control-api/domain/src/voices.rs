//! Owns telling one machine from two that report under one name, by the journals and the starts that they come from.
//!
//! Refuses to take a late report for a second machine, and an older report for a newer one.

use holdfast_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Voices remembered of a device: a start of the machine is one, so the oldest of them say nothing any more.
const MOST_VOICES: usize = 8;
/// Times that voices come back before they are two machines: of one machine, a report may be late by a whole restart,
/// but not again and again.
const RETURNS: u32 = 3;
/// Only those within this time count together: two machines that run report many times in an hour.
const WITHIN_MS: i64 = 60 * 60_000;

/// Where a report comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voice {
    /// The journal that its number was counted in.
    pub journal: String,
    /// The start of the machine on which it was written; empty if it does not say.
    pub boot: String,
    /// Its number.
    pub sequence: u64,
}

/// Who was heard under a device's name: each voice with its greatest number, the one that spoke last at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heard {
    voices: Vec<Voice>,
    returns: u32,
    first_return: Option<Timestamp>,
}

/// What a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The newest.
    Newer,
    /// Late, repeated, or of a machine that is behind: it replaces nothing.
    Older,
    /// The word of a second machine.
    Shared,
}

impl Heard {
    /// Whether anybody was heard yet.
    pub fn is_empty(&self) -> bool {
        self.voices.is_empty()
    }

    /// Judges a report, and remembers its voice.
    ///
    /// A machine that starts again, or loses its journal, has a new voice and never speaks with the old one again. So a
    /// voice that goes on counting after another one spoke is that of another machine.
    pub fn hear(&mut self, mut voice: Voice, now: Timestamp) -> Verdict {
        let same_journal = || {
            let voices = self.voices.iter();
            voices.filter(|known| known.journal == voice.journal)
        };
        let newest = same_journal().map(|known| known.sequence).max();
        let verdict = if newest.is_none_or(|newest| voice.sequence > newest) {
            Verdict::Newer
        } else {
            Verdict::Older
        };
        let last_boot = same_journal().next_back().map(|known| known.boot.clone());
        if voice.boot.is_empty() {
            // It does not say which start that was: the one that is known.
            voice.boot = last_boot.unwrap_or_default();
        }
        let same = |known: &Voice| (&known.journal, &known.boot) == (&voice.journal, &voice.boot);
        let Some(at) = self.voices.iter().position(same) else {
            if self.voices.len() >= MOST_VOICES {
                self.voices.remove(0);
            }
            match verdict {
                // It says nothing new: perhaps a late word of a start that is forgotten, and no turn.
                Verdict::Older => self.voices.insert(0, voice),
                Verdict::Newer | Verdict::Shared => self.voices.push(voice),
            }
            return verdict;
        };
        let known = self.voices.get(at).map_or(0, |known| known.sequence);
        if voice.sequence <= known {
            return Verdict::Older;
        }
        let spoke_last = at + 1 == self.voices.len();
        self.voices.remove(at);
        self.voices.push(voice);
        if !spoke_last && self.is_one_too_many(now) {
            return Verdict::Shared;
        }
        verdict
    }

    /// Counts a voice that came back.
    fn is_one_too_many(&mut self, now: Timestamp) -> bool {
        let first = self.first_return.unwrap_or(now);
        if (0..WITHIN_MS).contains(&now.since_ms(first)) {
            self.first_return = Some(first);
            self.returns += 1;
        } else {
            self.first_return = Some(now);
            self.returns = 1;
        }
        self.returns >= RETURNS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn voice(journal: &str, boot: &str, sequence: u64) -> Voice {
        let (journal, boot) = (journal.to_owned(), boot.to_owned());
        Voice {
            journal,
            boot,
            sequence,
        }
    }

    /// What each of these is, a minute after the one before it.
    fn heard(voices: &[(&str, &str, u64)]) -> Vec<Verdict> {
        heard_every(60_000, voices)
    }

    fn heard_every(pause_ms: i64, voices: &[(&str, &str, u64)]) -> Vec<Verdict> {
        let mut heard = Heard::default();
        let mut now = Timestamp::from_millis(0);
        let judged = voices.iter().map(|(journal, boot, sequence)| {
            now = now.plus_ms(pause_ms);
            heard.hear(voice(journal, boot, *sequence), now)
        });
        judged.collect()
    }

    #[test]
    fn one_machine_counts_on_and_is_never_two() {
        use Verdict::{Newer, Older};
        // It starts again, loses its journal, and one report of each kind comes late or twice.
        let life = [
            ("j", "a", 1),
            ("j", "a", 3),
            ("j", "a", 2),
            ("j", "b", 5),
            ("j", "a", 4),
            ("j", "b", 6),
            ("k", "b", 1),
            ("j", "b", 6),
            ("k", "b", 2),
            ("k", "", 3),
            ("k", "b", 3),
        ];
        let judged = [
            Newer, Newer, Older, Newer, Older, Newer, Newer, Older, Newer, Newer, Older,
        ];
        assert_eq!(heard(&life), judged);
    }

    #[test]
    fn a_machine_that_starts_again_and_again_is_one() {
        let boots: Vec<String> = (0..100).map(|boot| boot.to_string()).collect();
        let life = boots.iter().zip(1..).flat_map(|(boot, n)| {
            // Its first report after a start does not know which start that was.
            [("j", "", n * 2), ("j", boot.as_str(), n * 2 + 1)]
        });
        let life: Vec<_> = life.collect();
        assert_eq!(heard(&life), vec![Verdict::Newer; 200]);
    }

    #[test]
    fn c29_two_machines_that_take_turns_are_found_out() {
        use Verdict::{Newer, Older, Shared};
        // A copied card: one journal, two starts, each counting on for itself.
        let copied = [
            ("j", "a", 10),
            ("j", "b", 11),
            ("j", "a", 11),
            ("j", "b", 12),
            ("j", "a", 12),
        ];
        assert_eq!(heard(&copied), [Newer, Newer, Older, Newer, Shared]);
        // One of the two is far behind: nothing of it is taken, and it is found out as well.
        let behind = [
            ("j", "a", 900),
            ("j", "b", 11),
            ("j", "a", 901),
            ("j", "b", 12),
            ("j", "a", 902),
            ("j", "b", 13),
        ];
        let judged = [Newer, Older, Newer, Older, Newer, Shared];
        assert_eq!(heard(&behind), judged);
        // Two journals, and nobody says which start it was.
        let taken = [
            ("j", "", 900),
            ("k", "", 1),
            ("j", "", 901),
            ("k", "", 2),
            ("j", "", 902),
        ];
        assert_eq!(heard(&taken), [Newer, Newer, Newer, Newer, Shared]);
        // What comes back once in two hours is no proof.
        assert_eq!(heard_every(2 * 60 * 60_000, &taken), [Newer; 5]);
    }

    proptest! {
        #[test]
        fn a_journals_newest_report_is_never_replaced_by_an_older_one(
            sequences in prop::collection::vec((0_u8..3, 0_u64..50), 1..60),
        ) {
            let mut heard = Heard::default();
            let mut newest = None;
            for (minute, (boot, sequence)) in sequences.into_iter().enumerate() {
                let now = Timestamp::from_millis(i64::try_from(minute).unwrap() * 60_000);
                let verdict = heard.hear(voice("j", &boot.to_string(), sequence), now);
                if verdict == Verdict::Newer {
                    prop_assert!(newest.is_none_or(|newest| sequence > newest));
                    newest = Some(sequence);
                }
                newest = newest.max(Some(sequence));
                prop_assert!(heard.voices.len() <= MOST_VOICES);
            }
        }

        #[test]
        fn one_machine_is_one_however_its_reports_are_repeated(
            starts in prop::collection::vec(1_usize..6, 1..20),
            again in prop::collection::vec(any::<prop::sample::Index>(), 1..60),
        ) {
            let mut heard = Heard::default();
            let mut sent: Vec<Voice> = Vec::new();
            // Where the reports of each start begin: nothing that is repeated is from more than six starts ago.
            let mut begun = Vec::new();
            let mut again = again.into_iter();
            for (boot, reports) in starts.into_iter().enumerate() {
                begun.push(sent.len());
                for _ in 0..reports {
                    let sequence = u64::try_from(sent.len()).unwrap();
                    let new = voice("j", &boot.to_string(), sequence);
                    prop_assert_eq!(heard.hear(new.clone(), Timestamp::from_millis(0)), Verdict::Newer);
                    sent.push(new);
                    if let Some(old) = again.next() {
                        let recent = &sent[begun[boot.saturating_sub(6)]..];
                        let old = recent[old.index(recent.len())].clone();
                        prop_assert_eq!(heard.hear(old, Timestamp::from_millis(0)), Verdict::Older);
                    }
                }
            }
        }
    }
}
