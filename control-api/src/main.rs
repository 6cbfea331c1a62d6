//! Owns the process of `holdfast-api`: its TLS provider, its exit code, how an error is printed.

use std::process::ExitCode;

use clap::Parser as _;
use holdfast_api::cli::{self, Cli};

fn main() -> ExitCode {
    // An error only means that a provider is installed already, and there is none but ring.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the command line's last word")]
            {
                eprintln!("holdfast-api: {error:#}");
            }
            ExitCode::from(cli::exit_code(&error))
        }
    }
}
