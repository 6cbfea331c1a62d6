//! Owns the chain of the audit log: the hash of each row covers its content and the hash of the row before it.
//!
//! Whoever edits, removes, adds or swaps rows breaks it, unless they write every later row and the end anew; the
//! end is what to note elsewhere. Refuses to believe a stored hash that it did not compute.

use holdfast_proto::image::Digest;

/// What stands for the hash before the first row.
pub const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What a row says that records how far the log was pruned; its `after` is [`pruned`].
pub const PRUNE: &str = "audit.prune";
/// Begins the hashed bytes, so that another form of them can never give the same hash.
const FORM: &[u8] = b"holdfast audit row 1\0";

/// What a row says, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// Number of the row.
    pub id: i64,
    /// Kind of actor.
    pub actor_kind: &'a str,
    /// Name of the actor.
    pub actor: &'a str,
    /// What was done.
    pub action: &'a str,
    /// The kind of thing it was done to.
    pub subject_kind: &'a str,
    /// Which one.
    pub subject: &'a str,
    /// How it was, in the very text that is stored.
    pub before: Option<&'a str>,
    /// How it is, in the very text that is stored.
    pub after: Option<&'a str>,
    /// The request that carried it.
    pub request_id: &'a str,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// The hash of a row, in hex: SHA-256 over the form, the hash before it, and each field with its length.
pub fn hash(previous: &str, content: &Content<'_>) -> String {
    let mut bytes = FORM.to_vec();
    let mut add = |field: Option<&[u8]>| {
        // A length before each field: no two different rows have the same bytes.
        bytes.push(u8::from(field.is_some()));
        let field = field.unwrap_or_default();
        bytes.extend((field.len() as u64).to_be_bytes());
        bytes.extend(field);
    };
    add(Some(previous.as_bytes()));
    add(Some(&content.id.to_be_bytes()));
    for text in [
        content.actor_kind,
        content.actor,
        content.action,
        content.subject_kind,
        content.subject,
    ] {
        add(Some(text.as_bytes()));
    }
    add(content.before.map(str::as_bytes));
    add(content.after.map(str::as_bytes));
    add(Some(content.request_id.as_bytes()));
    add(Some(&content.at_ms.to_be_bytes()));
    Digest::of(&bytes).hex()
}

/// A place in the chain: a row's number and its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Number of the row; zero before the first.
    pub id: i64,
    /// Its hash in hex.
    pub hash: String,
}

impl Point {
    /// The point before the first row there ever was.
    pub fn beginning() -> Self {
        Self {
            id: 0,
            hash: BEGINNING.to_owned(),
        }
    }
}

/// What a row with the action [`PRUNE`] has as its `after`: rows up to and with this point were removed.
pub fn pruned(through: &Point, rows: u64) -> serde_json::Value {
    serde_json::json!({ "through": through.id, "hash": through.hash, "rows": rows })
}

/// How a chain is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The row is not what was written, or is not where it was written.
    Changed,
    /// The row is not there.
    Missing,
    /// Rows up to this one were removed, and not by the retention.
    Beginning,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every row follows from the one before it, up to this point.
    Whole(Point),
    /// The first row that does not.
    Broken(i64, Break),
}

/// A walk along the chain, row by row in the order of their numbers.
#[derive(Debug, Clone)]
pub struct Walk {
    from: Point,
    here: Point,
    rows: u64,
    is_beginning_known: bool,
}

impl Walk {
    /// Starts where the rows begin: after the point up to which the log was pruned.
    pub fn from(pruned: Point) -> Self {
        Self {
            is_beginning_known: pruned == Point::beginning(),
            here: pruned.clone(),
            from: pruned,
            rows: 0,
        }
    }

    /// How many rows were looked at.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Where the walk is.
    pub fn here(&self) -> &Point {
        &self.here
    }

    /// Looks at the next row.
    ///
    /// # Errors
    /// When it does not follow from the one before it: which row is broken, and how.
    pub fn step(&mut self, row: &Content<'_>, stored: Option<&str>) -> Result<(), (i64, Break)> {
        self.rows += 1;
        let found = hash(&self.here.hash, row);
        if stored != Some(found.as_str()) {
            // Rows older than the chain may have gaps in their numbers, so a gap alone means nothing.
            return Err(if row.id > self.here.id + 1 {
                (self.here.id + 1, Break::Missing)
            } else {
                (row.id, Break::Changed)
            });
        }
        if !self.is_beginning_known && row.action == PRUNE {
            self.is_beginning_known = row.after.is_some_and(|after| says(after, &self.from));
        }
        self.here = Point {
            id: row.id,
            hash: found,
        };
        Ok(())
    }

    /// Judges the end: `last` is the point that the last writer left.
    pub fn end(self, last: &Point) -> Verdict {
        if self.here.id < last.id {
            Verdict::Broken(self.here.id + 1, Break::Missing)
        } else if self.here != *last {
            Verdict::Broken(self.here.id, Break::Changed)
        } else if !self.is_beginning_known {
            Verdict::Broken(self.from.id, Break::Beginning)
        } else {
            Verdict::Whole(self.here)
        }
    }
}

/// Whether a record of pruning is about this point.
fn says(after: &str, point: &Point) -> bool {
    serde_json::from_str::<serde_json::Value>(after)
        .is_ok_and(|after| after["through"] == point.id && after["hash"] == point.hash.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Row {
        id: i64,
        action: String,
        after: Option<String>,
        hash: Option<String>,
    }

    fn content(row: &Row) -> Content<'_> {
        Content {
            id: row.id,
            actor_kind: "operator",
            actor: "ci",
            action: &row.action,
            subject_kind: "device",
            subject: "a",
            before: None,
            after: row.after.as_deref(),
            request_id: "r",
            at_ms: 5,
        }
    }

    fn chained(from: Point, rows: &[(&str, Option<String>)]) -> (Vec<Row>, Point) {
        let mut here = from;
        let mut made = Vec::new();
        for (action, after) in rows {
            let mut row = Row {
                id: here.id + 1,
                action: (*action).to_owned(),
                after: after.clone(),
                hash: None,
            };
            here = Point {
                id: row.id,
                hash: hash(&here.hash, &content(&row)),
            };
            row.hash = Some(here.hash.clone());
            made.push(row);
        }
        (made, here)
    }

    fn some(count: usize) -> (Vec<Row>, Point) {
        let rows: Vec<_> = (0..count).map(|n| ("x", Some(n.to_string()))).collect();
        chained(Point::beginning(), &rows)
    }

    fn judge(from: Point, rows: &[Row], last: &Point) -> Verdict {
        let mut walk = Walk::from(from);
        for row in rows {
            if let Err((id, how)) = walk.step(&content(row), row.hash.as_deref()) {
                return Verdict::Broken(id, how);
            }
        }
        walk.end(last)
    }

    #[test]
    fn an_untouched_chain_is_whole_up_to_its_end() {
        let (rows, last) = some(5);
        let verdict = judge(Point::beginning(), &rows, &last);
        assert_eq!(verdict, Verdict::Whole(last));
        let none = Point::beginning();
        assert_eq!(judge(none.clone(), &[], &none), Verdict::Whole(none));
    }

    #[test]
    fn the_first_row_that_was_touched_is_named() {
        let (rows, last) = some(6);
        let judged = |rows: &[Row]| judge(Point::beginning(), rows, &last);
        let mut edited = rows.clone();
        edited[2].after = Some("9".to_owned());
        assert_eq!(judged(&edited), Verdict::Broken(3, Break::Changed));
        let mut unhashed = rows.clone();
        unhashed[2].hash = None;
        assert_eq!(judged(&unhashed), Verdict::Broken(3, Break::Changed));
        let mut removed = rows.clone();
        removed.remove(2);
        assert_eq!(judged(&removed), Verdict::Broken(3, Break::Missing));
        let mut swapped = rows.clone();
        swapped.swap(2, 4);
        (swapped[2].id, swapped[4].id) = (3, 5);
        assert_eq!(judged(&swapped), Verdict::Broken(3, Break::Changed));
        assert_eq!(judged(&rows[..4]), Verdict::Broken(5, Break::Missing));
        assert_eq!(judged(&rows[1..]), Verdict::Broken(1, Break::Missing));
        let (longer, _) = some(7);
        assert_eq!(judged(&longer), Verdict::Broken(7, Break::Changed));
    }

    #[test]
    fn a_row_hashed_anew_breaks_the_one_after_it() {
        let (mut rows, last) = some(6);
        rows[2].after = Some("9".to_owned());
        rows[2].hash = Some(hash(rows[1].hash.as_deref().unwrap(), &content(&rows[2])));
        let verdict = judge(Point::beginning(), &rows, &last);
        assert_eq!(verdict, Verdict::Broken(4, Break::Changed));
    }

    #[test]
    fn a_pruned_chain_is_whole_when_a_row_of_it_says_so() {
        let (old, through) = some(4);
        assert_eq!(old.len(), 4);
        let record = |point: &Point| Some(pruned(point, 4).to_string());
        let rows = [("x", None), (PRUNE, record(&through)), ("x", None)];
        let (rows, last) = chained(through.clone(), &rows);
        let verdict = judge(through.clone(), &rows, &last);
        assert_eq!(verdict, Verdict::Whole(last.clone()));
        // The same rows, with the beginning moved on by somebody else.
        let moved = Point {
            id: rows[0].id,
            hash: rows[0].hash.clone().unwrap(),
        };
        let verdict = judge(moved, &rows[1..], &last);
        assert_eq!(verdict, Verdict::Broken(5, Break::Beginning));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let (rows, _) = some(1);
        let row = Content {
            actor: "ab",
            action: "c",
            ..content(&rows[0])
        };
        let shifted = Content {
            actor: "a",
            action: "bc",
            ..row
        };
        assert_ne!(hash(BEGINNING, &row), hash(BEGINNING, &shifted));
        let empty = Content {
            after: Some(""),
            ..row
        };
        let none = Content { after: None, ..row };
        assert_ne!(hash(BEGINNING, &empty), hash(BEGINNING, &none));
    }

    /// Rows that were written are read for years: the form of what is hashed must not change.
    #[test]
    fn the_hash_of_a_row_is_the_same_for_ever() {
        let (rows, _) = some(1);
        assert_eq!(
            rows[0].hash.as_deref(),
            Some("aa678061198b79c5076bbc705d771db23fc522d305e94ca14002504bcc9a4921")
        );
    }

    proptest! {
        #[test]
        fn any_touch_is_found(count in 1_usize..12, at in 0_usize..12, with in ".{0,8}") {
            let (rows, last) = some(count);
            let at = at % count;
            let mut edited = rows.clone();
            edited[at].after = Some(with);
            if edited != rows {
                let id = edited[at].id;
                let verdict = judge(Point::beginning(), &edited, &last);
                prop_assert_eq!(verdict, Verdict::Broken(id, Break::Changed));
            }
            let mut removed = rows.clone();
            let id = removed.remove(at).id;
            let verdict = judge(Point::beginning(), &removed, &last);
            prop_assert_eq!(verdict, Verdict::Broken(id, Break::Missing));
        }
    }
}
