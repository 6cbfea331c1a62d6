//! Owns the process: its runtime, its TLS provider and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use holdfast_agent::cli::{self, Cli, EXIT_FAILED};

fn main() -> ExitCode {
    let arguments = Cli::parse();
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // One thread: the agent mostly waits, and each further thread costs memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(cli::main(
            arguments,
            &mut std::io::stdout(),
            &mut std::io::stderr(),
        ))
    });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nothing better can be done when even standard error is gone.
            let _ = writeln!(std::io::stderr(), "holdfast-agent: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
