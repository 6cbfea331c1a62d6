//! Owns a Compose file's secrets and configs: the text in the file goes to the services that name it.
//!
//! Refuses files, variables and stores of whoever wrote the Compose file: none of them is here.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::problem::{FieldError, Pointer};

/// Secrets or configs of the file with their text. Where that is wrong, there is none, and the fault is told once.
pub(super) type Texts = BTreeMap<String, Option<String>>;

/// The secrets or configs that the file declares.
pub(super) fn declared(value: Option<Value>, kind: &str, errors: &mut Vec<FieldError>) -> Texts {
    let at = Pointer::default().member(kind);
    let mut found = Texts::new();
    for (name, definition) in super::members(value, &at, errors) {
        let here = at.member(&name);
        let text = text(definition, &here, errors);
        found.insert(name, text);
    }
    found
}

fn text(definition: Value, at: &Pointer, errors: &mut Vec<FieldError>) -> Option<String> {
    let mut text = None;
    let before = errors.len();
    for (field, value) in super::members(Some(definition), at, errors) {
        match (field.as_str(), value) {
            ("content", Value::String(content)) => text = Some(content),
            ("content", _) => errors.push(at.member("content").error("must be text")),
            (other, _) if other.starts_with("x-") => {}
            (other, _) => errors.push(
                at.member(other)
                    .error("not taken: files and variables are not here, write `content`"),
            ),
        }
    }
    if text.is_none() && errors.len() == before {
        errors.push(at.member("content").error("is missing"));
    }
    text
}

/// Writes the text of each secret or config into the service that names it.
pub(super) fn fill(
    config: &mut Map<String, Value>,
    kind: &str,
    texts: &Texts,
    at: &Pointer,
    errors: &mut Vec<FieldError>,
) {
    let at = at.member(kind);
    let grants = match config.remove(kind) {
        None | Some(Value::Null) => return,
        Some(Value::Array(grants)) => grants,
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            errors.push(at.error("must be a list"));
            return;
        }
    };
    let mut filled = Vec::new();
    for (position, grant) in grants.into_iter().enumerate() {
        let here = at.member(position);
        let mut grant = match grant {
            Value::String(source) => Map::from_iter([("source".to_owned(), json!(source))]),
            Value::Object(members) => members,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                errors.push(here.error("must be a name, or a mapping with `source`"));
                continue;
            }
        };
        if grant.contains_key("content") {
            let detail = format!("not taken: the text stands in the file's {kind}");
            errors.push(here.member("content").error(detail));
            continue;
        }
        let source = grant.get("source").and_then(Value::as_str);
        let Some(text) = source.and_then(|source| texts.get(source)) else {
            let detail = format!("is not one of the file's {kind}");
            errors.push(here.member("source").error(detail));
            continue;
        };
        // Without a text, that fault is told already.
        let Some(text) = text else { continue };
        grant.insert("content".to_owned(), json!(text));
        normalise(&mut grant, &here, errors);
        filled.push(Value::Object(grant));
    }
    config.insert(kind.to_owned(), Value::Array(filled));
}

/// Owners may be numbers; permissions are written as people know them, `0440`, which YAML takes for text.
fn normalise(grant: &mut Map<String, Value>, at: &Pointer, errors: &mut Vec<FieldError>) {
    for owner in ["uid", "gid"] {
        if let Some(value @ Value::Number(_)) = grant.get_mut(owner) {
            *value = json!(value.to_string());
        }
    }
    if let Some(value @ Value::String(_)) = grant.get_mut("mode") {
        let digits = value.as_str().unwrap_or_default();
        let mode = u32::from_str_radix(digits, 8).ok();
        match mode.filter(|mode| digits.starts_with('0') && *mode <= 0o7777) {
            Some(mode) => *value = json!(mode),
            None => errors.push(at.member("mode").error("must be permissions such as 0440")),
        }
    }
}
