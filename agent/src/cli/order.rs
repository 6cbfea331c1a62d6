//! Owns the orders of the command line: update now, lock, unlock, pause, resume. The agent carries them out.

use std::io::Write;

use holdfast_proto::id::ServiceKey;
use hyper::Method;
use serde_json::{Value, json};

use super::{Lock, Output, json as write_json, show, table};
use crate::config::Settings;
use crate::local_api::client::ask;
use crate::status::Control;

/// An order as the local API takes it.
pub(super) struct Order {
    method: Method,
    path: String,
    body: Value,
    /// What is said once it is carried out.
    done: &'static str,
}

impl Order {
    pub(super) fn update_now(force: bool) -> Self {
        Self {
            method: Method::POST,
            path: "/v1/update-now".to_owned(),
            body: json!({ "force": force }),
            done: "the agent asks for its target and works on it; `holdfast-agent status` shows how far it is",
        }
    }

    pub(super) fn lock(arguments: Lock) -> Self {
        let Lock {
            service,
            owner,
            ttl,
            reason,
        } = arguments;
        // A part of a second must not make a lease of no time at all.
        let ttl_seconds = ttl.map(|ttl| ttl.as_millis().div_ceil(1_000));
        Self {
            method: Method::POST,
            path: path_of(service.as_ref()),
            body: json!({ "owner": owner, "ttl_seconds": ttl_seconds, "reason": reason }),
            done: "locked: no update begins",
        }
    }

    pub(super) fn unlock(service: Option<&ServiceKey>) -> Self {
        Self {
            method: Method::DELETE,
            path: path_of(service),
            body: json!({}),
            done: "no lock of the command line is left there",
        }
    }

    pub(super) fn pause(reason: Option<&str>) -> Self {
        Self {
            method: Method::POST,
            path: "/v1/pause".to_owned(),
            body: json!({ "reason": reason }),
            done: "paused: nothing is updated or deployed until `holdfast-agent resume`",
        }
    }

    pub(super) fn resume() -> Self {
        Self {
            method: Method::DELETE,
            path: "/v1/pause".to_owned(),
            body: json!({}),
            done: "resumed",
        }
    }
}

fn path_of(service: Option<&ServiceKey>) -> String {
    service.map_or_else(|| "/v1/lock".to_owned(), |key| format!("/v1/lock/{key}"))
}

/// Gives an order to the running agent and shows the orders that are in force then.
pub(super) async fn give(
    settings: &Settings,
    order: Order,
    output: Output,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<()> {
    let Order {
        method,
        path,
        body,
        done,
    } = order;
    let socket = &settings.local_api.socket;
    let control: Control = ask(socket, method, &path, Some(&body)).await?;
    match output {
        Output::Table => {
            let rows = show::orders(&control).map(|(name, words)| vec![name.to_owned(), words]);
            table(out, &rows.collect::<Vec<_>>())?;
        }
        Output::Json => write_json(out, &control)?,
    }
    writeln!(talk, "{done}")?;
    Ok(())
}
