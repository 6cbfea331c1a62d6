//! Counts the intents that are open in an agent's journal. It never writes to it.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::{apt, place};

/// Open intents in the journal of a state folder, read from a copy of the files as they lie there.
pub(super) async fn open_intents(state: &Path) -> anyhow::Result<u64> {
    let state = state.to_owned();
    tokio::task::spawn_blocking(move || count(&state)).await?
}

fn count(state: &Path) -> anyhow::Result<u64> {
    let copy = place::temporary("journal")?;
    for name in ["journal.db", "journal.db-wal"] {
        let from = state.join(name);
        if from.exists() {
            std::fs::copy(&from, copy.path().join(name))?;
        }
    }
    let mut command = Command::new(apt::require(&["sqlite3"])?.remove(0));
    command.arg(copy.path().join("journal.db"));
    let text = apt::run(command.arg("select count(*) from intents"))?;
    let open = text.trim().parse();
    open.with_context(|| format!("the journal in {} has {text}", state.display()))
}
