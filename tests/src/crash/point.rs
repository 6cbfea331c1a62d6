//! Names of the moments at which something dies. It does not know how to get there.

use std::fmt;

use serde_json::Value;

use super::check::Violation;
use super::scenario::Scenario;
use crate::tap::{Call, Rule, When};

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The agent, at a call to the engine.
    Agent,
    /// dockerd, at a call to the engine; the agent and the containers' shims live on.
    Engine,
    /// Agent, dockerd, containerd, shims and containers together, at a call to the engine.
    Power,
    /// The agent, at a syscall.
    Syscall,
}

impl Kind {
    /// All of them, in the order of the page.
    pub const ALL: [Self; 4] = [Self::Agent, Self::Engine, Self::Power, Self::Syscall];

    /// Its name on the command line and on the page.
    pub fn word(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Engine => "engine",
            Self::Power => "power",
            Self::Syscall => "syscall",
        }
    }

    /// Whether the engine dies.
    pub fn takes_the_engine(self) -> bool {
        match self {
            Self::Engine | Self::Power => true,
            Self::Agent | Self::Syscall => false,
        }
    }
}

/// Where it dies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At the `nth` call of this shape since the scenario began.
    Call {
        /// Method and path, `*` for each part that is a name.
        shape: String,
        /// Counted from 1.
        nth: usize,
        /// Before the engine sees it, or after it answered.
        moment: Moment,
    },
    /// At the `nth` syscall of this name since the agent's start; the call itself is not made.
    Syscall {
        /// `pwrite64`, …
        name: String,
        /// Counted from 1.
        nth: usize,
    },
}

/// When, around a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// The engine never sees the request.
    Before,
    /// The engine began to answer, and the agent does not see it.
    After,
    /// The engine answered to the end (a pull is complete), and the agent does not see it.
    Done,
}

impl Moment {
    fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Done => "done",
        }
    }

    /// The tap's word for it.
    pub fn when(self) -> When {
        match self {
            Self::Before => When::BeforeRequest,
            Self::After => When::AfterResponse,
            Self::Done => When::AfterBody,
        }
    }
}

/// One point of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// What the device is doing.
    pub scenario: Scenario,
    /// What dies.
    pub kind: Kind,
    /// Where.
    pub place: Place,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.scenario.word(), self.kind.word())?;
        match &self.place {
            Place::Call { shape, nth, moment } => {
                write!(f, "{}#{nth}.{}", short(shape), moment.word())
            }
            Place::Syscall { name, nth } => write!(f, "{name}#{nth}"),
        }
    }
}

impl Place {
    /// The tap's rule for a call; none for a syscall.
    pub fn rule(&self) -> Option<Rule> {
        match self {
            Self::Call { shape, nth, moment } => {
                Some(Rule::on(shape).nth(*nth).when(moment.when()))
            }
            Self::Syscall { .. } => None,
        }
    }
}

/// Words of the engine's interface that are no names of things.
const VERBS: &[&str] = &[
    "archive",
    "connect",
    "containers",
    "create",
    "disconnect",
    "exec",
    "images",
    "json",
    "kill",
    "load",
    "networks",
    "pause",
    "prune",
    "rename",
    "restart",
    "start",
    "stop",
    "tag",
    "unpause",
    "update",
    "volumes",
    "wait",
];

/// A call's shape: its names made `*`.
pub fn shape(call: &Call) -> String {
    let parts = call.path.split('/').map(|part| {
        let known = part.is_empty() || VERBS.contains(&part);
        if known { part } else { "*" }
    });
    format!("{} {}", call.method, parts.collect::<Vec<_>>().join("/"))
}

/// A shape's short name: `POST /containers/*/stop` is `stop`.
fn short(shape: &str) -> String {
    let (method, path) = shape.split_once(' ').unwrap_or(("", shape));
    let words: Vec<&str> = path
        .split('/')
        .filter(|word| !word.is_empty() && *word != "*")
        .collect();
    match (method, words.as_slice()) {
        ("POST", ["images", "create"]) => "pull".to_owned(),
        ("POST", ["containers", "update"]) => "set_restart".to_owned(),
        ("DELETE", [things]) => format!("remove_{}", things.trim_end_matches('s')),
        ("POST", ["containers", verb]) => (*verb).to_owned(),
        (_, [things, verbs @ ..]) => {
            format!("{}_{}", things.trim_end_matches('s'), verbs.join("_"))
        }
        (_, []) => method.to_lowercase(),
    }
}

/// What became of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every invariant held; the device was where it had to be after so many milliseconds.
    Held {
        /// From the restart of what had died.
        recovery_ms: u64,
    },
    /// The run ended without coming to the point: nothing died.
    NotReached,
    /// What was violated, with the evidence.
    Violated(Vec<Violation>),
}

impl Outcome {
    /// As a line of the results file.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Held { recovery_ms } => serde_json::json!({ "held": recovery_ms }),
            Self::NotReached => serde_json::json!("not reached"),
            Self::Violated(found) => {
                let found = found.iter().map(Violation::to_json);
                serde_json::json!({ "violated": found.collect::<Vec<_>>() })
            }
        }
    }

    /// From a line of the results file.
    pub fn from_json(value: &Value) -> Option<Self> {
        if value == "not reached" {
            return Some(Self::NotReached);
        }
        if let Some(recovery_ms) = value["held"].as_u64() {
            return Some(Self::Held { recovery_ms });
        }
        let found = value["violated"].as_array()?.iter();
        Some(Self::Violated(
            found.filter_map(Violation::from_json).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn name(method: Method, path: &str) -> String {
        let call = Call {
            method,
            path: path.to_owned(),
            query: String::new(),
            status: None,
            registry_auth: None,
        };
        short(&shape(&call))
    }

    #[test]
    fn calls_have_names_that_people_read() {
        let names = [
            (Method::POST, "/images/create", "pull"),
            (Method::POST, "/containers/create", "create"),
            (Method::POST, "/containers/abc/update", "set_restart"),
            (Method::POST, "/containers/abc/stop", "stop"),
            (Method::DELETE, "/containers/abc", "remove_container"),
            (Method::POST, "/networks/create", "network_create"),
            (Method::POST, "/networks/abc/connect", "network_connect"),
            (Method::POST, "/images/host/web@sha256:1/tag", "image_tag"),
            (Method::PUT, "/containers/abc/archive", "container_archive"),
        ];
        for (method, path, expected) in names {
            assert_eq!(name(method, path), expected, "{path}");
        }
    }
}
