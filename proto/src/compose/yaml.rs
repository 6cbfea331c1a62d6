//! Owns reading YAML as plain data: the one file that names the YAML library.
//!
//! Refuses text that grows when it is read: what aliases stand for is counted each time. Refuses also what JSON
//! has no word for: keys that are not text, tags, numbers that are not finite, a key that is there twice.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_yaml::Deserializer;

use super::ComposeError;
use crate::problem::{FieldError, Pointer};

/// Values in one document, those behind aliases counted each time: 512 services with a hundred each.
const MOST_VALUES: usize = 51_200;
/// Text in one document, that behind aliases counted each time: as much as a target may have.
const MOST_TEXT_BYTES: usize = 1024 * 1024;
/// A service's deepest field is at eight; the rest is for extensions.
const DEEPEST: usize = 32;
/// A place is written out of its keys: long ones would make it cost more than the file.
const LONGEST_KEY_BYTES: usize = 256;
/// `{` and `[` in one file, wherever they stand: the library looks at every open one again for each that it reads,
/// so that 60,000 cost it most of a minute, and 8,000 a second in a build without optimisation.
pub(super) const MOST_BRACKETS: usize = 8_000;
/// YAML's name for "the entries of that mapping, too" (the merge key of YAML 1.1, which Compose takes).
const MERGE: &str = "<<";

/// Reads one document.
///
/// # Errors
/// When it is no YAML, with line and column; or when a value in it is refused, with its place.
pub(super) fn read(bytes: &[u8]) -> Result<Value, ComposeError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ComposeError::Malformed("the text is not UTF-8".to_owned()))?;
    let brackets = text.bytes().filter(|byte| matches!(byte, b'{' | b'['));
    if brackets.count() > MOST_BRACKETS {
        let detail = format!("more than {MOST_BRACKETS} brackets `{{` and `[`: write it in lines");
        return Err(ComposeError::Invalid(vec![
            Pointer::default().error(detail),
        ]));
    }
    let left = Left {
        values: MOST_VALUES,
        text_bytes: MOST_TEXT_BYTES,
        refused: None,
    };
    let left = RefCell::new(left);
    let node = Node {
        left: &left,
        at: Place::Root,
        depth: 0,
    };
    let read = node.deserialize(Deserializer::from_str(text));
    match (read, left.into_inner().refused) {
        (_, Some(refused)) => Err(ComposeError::Invalid(vec![refused])),
        (Ok(value), None) => Ok(value),
        (Err(error), None) => Err(ComposeError::Malformed(error.to_string())),
    }
}

/// What may still be read.
struct Left {
    values: usize,
    text_bytes: usize,
    /// Why reading ended: an error of the library has no place for a pointer.
    refused: Option<FieldError>,
}

/// Where a value stands. Written out only where something is wrong: keys may be long.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn pointer(&self) -> Pointer {
        match self {
            Self::Root => Pointer::default(),
            Self::Member(parent, name) => parent.pointer().member(name),
            Self::Item(parent, position) => parent.pointer().member(position),
        }
    }
}

/// One value about to be read.
struct Node<'a> {
    left: &'a RefCell<Left>,
    at: Place<'a>,
    depth: usize,
}

impl Node<'_> {
    fn refuse<E: de::Error>(&self, detail: impl Into<String>) -> E {
        let mut left = self.left.borrow_mut();
        // The first fault is the one that counts; the library may add its own on the way out.
        if left.refused.is_none() {
            left.refused = Some(self.at.pointer().error(detail));
        }
        E::custom("refused")
    }

    fn spend<E: de::Error>(&self, text_bytes: usize) -> Result<(), E> {
        let mut left = self.left.borrow_mut();
        let rest = (
            left.values.checked_sub(1),
            left.text_bytes.checked_sub(text_bytes),
        );
        let (Some(values), Some(text_bytes)) = rest else {
            drop(left);
            return Err(self.refuse(format!(
                "too much: with its aliases written out, a file has at most {MOST_VALUES} values and \
                 {MOST_TEXT_BYTES} bytes of text"
            )));
        };
        left.values = values;
        left.text_bytes = text_bytes;
        Ok(())
    }

    /// Counts a mapping or a list, which may stand only so deep.
    fn enter<E: de::Error>(&self) -> Result<(), E> {
        self.spend(0)?;
        if self.depth >= DEEPEST {
            return Err(self.refuse(format!("stands deeper than {DEEPEST} levels")));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Value, E> {
        Err(self.refuse("too large for a number: put it in quotes if it is text"))
    }

    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Value, E> {
        Err(self.refuse("too large for a number: put it in quotes if it is text"))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.spend(0)?;
        match serde_json::Number::from_f64(value) {
            Some(number) => Ok(Value::Number(number)),
            None => Err(self.refuse("not a finite number: put it in quotes if it is text")),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        self.spend(text.len())?;
        Ok(text.into())
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(self.refuse("tags such as `!reset` are not taken: write the value"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut found = Vec::new();
        loop {
            let item = Node {
                left: self.left,
                at: Place::Item(&self.at, found.len()),
                depth: self.depth + 1,
            };
            match items.next_element_seed(item)? {
                Some(value) => found.push(value),
                None => return Ok(Value::Array(found)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut found = Map::new();
        let mut merged = Vec::new();
        while let Some(name) = members.next_key_seed(Key(&self))? {
            let member = Node {
                left: self.left,
                at: Place::Member(&self.at, &name),
                depth: self.depth + 1,
            };
            if found.contains_key(&name) || (name == MERGE && !merged.is_empty()) {
                return Err(member.refuse("is there twice"));
            }
            let (left, at) = (self.left, member.at);
            let value = members.next_value_seed(member)?;
            if name == MERGE {
                merged = mappings(value).ok_or_else(|| {
                    let merge = Node { left, at, depth: 0 };
                    merge.refuse::<A::Error>("merges a mapping or a list of mappings")
                })?;
            } else {
                found.insert(name, value);
            }
        }
        // What is written here counts before what is merged, and that before what is merged after it.
        for (name, value) in merged.into_iter().flatten() {
            found.entry(name).or_insert(value);
        }
        Ok(Value::Object(found))
    }
}

/// The mappings behind a merge key.
fn mappings(value: Value) -> Option<Vec<Map<String, Value>>> {
    let mapping = |value| match value {
        Value::Object(members) => Some(members),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            None
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => items.into_iter().map(mapping).collect(),
        one => mapping(one).map(|members| vec![members]),
    }
}

/// The name of a member of this mapping.
struct Key<'a, 'b>(&'a Node<'b>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = String;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let key = Node {
            left: self.0.left,
            at: self.0.at,
            depth: self.0.depth + 1,
        };
        match key.deserialize(deserializer)? {
            Value::String(name) if name.len() > LONGEST_KEY_BYTES => Err(self
                .0
                .refuse(format!("has a key of more than {LONGEST_KEY_BYTES} bytes"))),
            Value::String(name) => Ok(name),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => Err(self
                .0
                .refuse("has a key that is not text: put the key in quotes")),
        }
    }
}
