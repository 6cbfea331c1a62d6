//! Owns how an error becomes one line: the error and its causes, each said once.

use std::error::Error;
use std::fmt::Write as _;

/// An error with its chain of causes, `what: why: why`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&said) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}

/// The longest text of an engine or a server that is kept: its words are not ours to trust.
const MAX_FOREIGN_CHARS: usize = 400;

/// Foreign text made fit for a log line and a report: bounded, one line, no control characters.
pub fn foreign(text: &str) -> String {
    text.trim()
        .chars()
        .take(MAX_FOREIGN_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the file")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn says_each_cause_once() {
        let error = Outer(std::io::Error::other("disk is full"));
        assert_eq!(chain(&error), "reading the file: disk is full");
    }

    #[test]
    fn foreign_text_is_one_bounded_line() {
        assert_eq!(foreign("a\u{1b}[31m\nb "), "a [31m b");
        assert_eq!(foreign(&"x".repeat(1000)).len(), 400);
    }
}
