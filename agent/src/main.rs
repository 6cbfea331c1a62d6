//! Owns the process: its runtime, its TLS provider and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use holdfast_agent::cli::{self, Cli, EXIT_CONFIG, EXIT_FAILED, EXIT_MAKES_PLACE};
use holdfast_agent::selfupdate::launcher;
use holdfast_agent::selfupdate::slots::Place;

fn main() -> ExitCode {
    let arguments = Cli::parse();
    // First of all, while nothing is open yet: another program of the agent may be the one to run.
    let launched = arguments.launch();
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread: the agent mostly waits, and each further thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Room for a thousand events at once is for servers.
        .max_io_events_per_tick(64)
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(cli::main(
            arguments,
            &launched,
            &mut std::io::stdout(),
            &mut std::io::stderr(),
        ))
    });
    match outcome {
        Ok(EXIT_MAKES_PLACE) => {
            let why = launcher::again(&launched);
            let _ = writeln!(
                std::io::stderr(),
                "holdfast-agent: cannot start again: {why}"
            );
            ExitCode::from(EXIT_MAKES_PLACE)
        }
        // Service managers may take this code for one that no new start mends; the installed program does.
        Ok(EXIT_CONFIG) if launched.place != Place::Package => ExitCode::from(EXIT_FAILED),
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nothing better can be done when even standard error is gone.
            let _ = writeln!(std::io::stderr(), "holdfast-agent: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
