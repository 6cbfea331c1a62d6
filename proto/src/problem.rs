//! Owns how errors look on the wire: problem details (RFC 9457) and the faults of single fields.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Media type of [`Problem`] documents (RFC 9457, section 3).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// One thing wrong with one field of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to the field, such as `/apps/1001/services/0/config/ports/0`.
    pub pointer: String,
    /// What is wrong, in words that say what to write instead.
    pub detail: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pointer = if self.pointer.is_empty() {
            "/"
        } else {
            &self.pointer
        };
        write!(f, "{pointer}: {}", self.detail)
    }
}

/// An error answer: what went wrong, where, and what to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// URI reference naming the kind of problem; `about:blank` when the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short summary, the same for every problem of this kind.
    pub title: String,
    /// The HTTP status code, repeated for readers that only keep the body.
    pub status: u16,
    /// What went wrong this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The path of the request that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Stable `snake_case` name that programs can match, such as `unsupported_platform`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Every field that is wrong, when fields are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The request's id, to find it in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// On refused images: the refusal's short name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// On refused images: the refusal in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// On refused images: what a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_required: Option<String>,
}

/// A place in a document while it is being checked; writes JSON pointers.
#[derive(Clone, Debug, Default)]
pub struct Pointer(String);

impl Pointer {
    /// The member `name` of this place; `~` and `/` are escaped as RFC 6901 says.
    #[must_use]
    pub fn member(&self, name: impl fmt::Display) -> Self {
        let name = name.to_string().replace('~', "~0").replace('/', "~1");
        Self(format!("{}/{name}", self.0))
    }

    /// An error at this place.
    pub fn error(&self, detail: impl Into<String>) -> FieldError {
        FieldError {
            pointer: self.0.clone(),
            detail: detail.into(),
        }
    }

    /// An error of a document that stands at this place in a larger one.
    pub fn beneath(&self, error: FieldError) -> FieldError {
        FieldError {
            pointer: format!("{}{}", self.0, error.pointer),
            detail: error.detail,
        }
    }
}

/// Reads JSON as `T`; a fault names the field it is in.
///
/// Text with the NUL character is refused everywhere: PostgreSQL cannot store it and no field needs it.
pub fn parse_json<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Vec<FieldError>> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = pointer_of(error.path());
        vec![pointer.error(error.into_inner().to_string())]
    })?;
    deserializer
        .end()
        .map_err(|error| vec![Pointer::default().error(error.to_string())])?;
    match find_nul(bytes) {
        Some(error) => Err(vec![error]),
        None => Ok(parsed),
    }
}

/// Looks for NUL only when the bytes could hold one: the escape is the only way JSON can write it.
fn find_nul(bytes: &[u8]) -> Option<FieldError> {
    if !bytes
        .windows(6)
        .any(|window| window.eq_ignore_ascii_case(br"\u0000"))
    {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    nul_in(&value, &Pointer::default())
}

fn nul_in(value: &serde_json::Value, at: &Pointer) -> Option<FieldError> {
    use serde_json::Value;
    match value {
        Value::String(text) if text.contains('\0') => {
            Some(at.error("text must not contain the NUL character"))
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(position, item)| nul_in(item, &at.member(position))),
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            if name.contains('\0') {
                Some(at.error("a member's name must not contain the NUL character"))
            } else {
                nul_in(member, &at.member(name))
            }
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

fn pointer_of(path: &serde_path_to_error::Path) -> Pointer {
    use serde_path_to_error::Segment;
    path.iter()
        .fold(Pointer::default(), |pointer, segment| match segment {
            Segment::Seq { index } => pointer.member(index),
            Segment::Map { key } => pointer.member(key),
            Segment::Enum { variant } => pointer.member(variant),
            Segment::Unknown => pointer,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "a/b")]
        _count: Option<u8>,
        #[serde(rename = "text")]
        _text: Option<String>,
    }

    fn pointer_for(json: &str) -> String {
        parse_json::<Outer>(json.as_bytes())
            .unwrap_err()
            .remove(0)
            .pointer
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        assert_eq!(
            pointer_for(r#"{"inner":[{},{"a/b":"x"}]}"#),
            "/inner/1/a~1b"
        );
        assert_eq!(pointer_for(r#"{"inner":[{"other":1}]}"#), "/inner/0/other");
        assert_eq!(
            pointer_for(r#"{"inner":[{"text":"a\u0000b"}]}"#),
            "/inner/0/text"
        );
        assert_eq!(pointer_for(r#"{"inner":"#), "/inner");
        assert_eq!(pointer_for(r#"{"inner":[]} x"#), "");
    }

    #[test]
    fn deep_nesting_is_an_error_not_a_crash() {
        let deep = "[".repeat(100_000);
        assert!(parse_json::<serde_json::Value>(deep.as_bytes()).is_err());
    }
}
