//! `lab`: keeps the shared engine up around a command, ends it, or says what is there.
//!
//! `lab run COMMAND…` is what `make test` uses: the engine stays between the tests' processes and
//! goes when the command has ended, however it ended.

use std::process::{Command, ExitCode};

use anyhow::{Context, bail};
use holdfast_tests::engine::{self, Engine};

const USAGE: &str = "usage: lab run COMMAND [ARGUMENT…] | lab up | lab down | lab socket
  run     starts the shared engine, runs the command, lets the engine go
  up      starts the shared engine and keeps it until standard input ends
  down    ends the shared engine now, unless somebody uses it
  socket  prints the shared engine's socket";

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut words = words.iter().map(String::as_str);
    match words.next() {
        Some("run") => {
            let program = words.next().context(USAGE)?;
            let _engine = Engine::shared().await?;
            let status = Command::new(program).args(words).status()?;
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            Ok(ExitCode::from(code.unwrap_or(1)))
        }
        Some("up") => {
            let engine = Engine::shared().await?;
            say(&engine.socket().display().to_string());
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            Ok(ExitCode::SUCCESS)
        }
        Some("down") => {
            let ended = engine::stop_shared()?;
            say(if ended { "ended" } else { "in use" });
            Ok(ExitCode::from(u8::from(!ended)))
        }
        Some("socket") => {
            let engine = Engine::shared().await?;
            say(&engine.socket().display().to_string());
            Ok(ExitCode::SUCCESS)
        }
        Some(_) | None => bail!(USAGE),
    }
}

#[expect(clippy::print_stdout, reason = "a command line program's answer")]
fn say(text: &str) {
    println!("{text}");
}
