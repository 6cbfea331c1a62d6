//! Owns checking a JSON value against the part of JSON Schema that our OpenAPI document uses.
//!
//! Refuses keywords it does not know, so that it cannot pass what it did not check.

use serde_json::{Map, Value};

/// Everything about `value` that `schema` does not allow, each with its place.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(document, schema, value, "", &mut found);
    found
}

fn check(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let schema = match schema {
        Value::Bool(true) => return,
        Value::Object(schema) => schema,
        other => panic!("{at}: not a schema: {other}"),
    };
    for (keyword, rule) in schema {
        match keyword.as_str() {
            "$ref" => {
                let pointer = rule.as_str().unwrap().strip_prefix('#').unwrap();
                let target = document
                    .pointer(pointer)
                    .unwrap_or_else(|| panic!("{pointer} is not in the document"));
                check(document, target, value, at, found);
            }
            "type" => check_type(rule, value, at, found),
            "properties" => each_property(document, rule, value, at, found),
            "required" => required(rule, value, at, found),
            "items" => {
                for (position, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(document, rule, item, &format!("{at}/{position}"), found);
                }
            }
            "additionalProperties" => additional(document, schema, rule, value, at, found),
            "allOf" => {
                for part in rule.as_array().unwrap() {
                    check(document, part, value, at, found);
                }
            }
            "oneOf" | "anyOf" => {
                let fits = |part: &&Value| faults(document, part, value).is_empty();
                if !rule.as_array().unwrap().iter().any(|part| fits(&part)) {
                    found.push(format!("{at}: fits no alternative: {value}"));
                }
            }
            "enum" => {
                if !rule.as_array().unwrap().contains(value) {
                    found.push(format!("{at}: {value} is not one of {rule}"));
                }
            }
            "const" => {
                if rule != value {
                    found.push(format!("{at}: {value} is not {rule}"));
                }
            }
            "minimum" => {
                if value.as_f64().is_some_and(|it| it < rule.as_f64().unwrap()) {
                    found.push(format!("{at}: {value} is below {rule}"));
                }
            }
            "minLength" => {
                let length = value.as_str().map(|text| text.chars().count() as u64);
                if length.is_some_and(|it| it < rule.as_u64().unwrap()) {
                    found.push(format!("{at}: {value} is too short"));
                }
            }
            "maxLength" => {
                let length = value.as_str().map(|text| text.chars().count() as u64);
                if length.is_some_and(|it| it > rule.as_u64().unwrap()) {
                    found.push(format!("{at}: {value} is too long"));
                }
            }
            "description" | "format" | "pattern" | "examples" | "example" | "default" | "title"
            | "propertyNames" | "maximum" | "deprecated" => {}
            other => panic!("{at}: the checker does not know `{other}`"),
        }
    }
}

fn check_type(rule: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let is = |kind: &Value| match kind.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: no such type: {other}"),
    };
    let fits = match rule {
        Value::Array(kinds) => kinds.iter().any(is),
        kind => is(kind),
    };
    if !fits {
        found.push(format!("{at}: {value} is not of type {rule}"));
    }
}

fn each_property(document: &Value, rule: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (name, schema) in rule.as_object().unwrap() {
        if let Some(member) = value.get(name) {
            check(document, schema, member, &format!("{at}/{name}"), found);
        }
    }
}

fn required(rule: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for name in rule.as_array().unwrap() {
        if value.is_object() && value.get(name.as_str().unwrap()).is_none() {
            found.push(format!("{at}: {name} is missing"));
        }
    }
}

fn additional(
    document: &Value,
    schema: &Map<String, Value>,
    rule: &Value,
    value: &Value,
    at: &str,
    found: &mut Vec<String>,
) {
    let named = |name: &String| {
        schema
            .get("properties")
            .is_some_and(|properties| properties.get(name).is_some())
    };
    for (name, member) in value.as_object().into_iter().flatten() {
        if named(name) {
            continue;
        }
        if rule == &Value::Bool(false) {
            found.push(format!("{at}: {name} is not allowed"));
        } else {
            check(document, rule, member, &format!("{at}/{name}"), found);
        }
    }
}
