//! Writes the agent's man pages and shell completions: `cargo run --example man -- FOLDER`.
//!
//! An example and no command of the agent, so that what it needs stays out of the program on devices.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use holdfast_agent::cli::Cli;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("which folder? write one")?;
    let written = write(Path::new(&folder))?;
    writeln!(
        std::io::stdout(),
        "{written} files in {}",
        Path::new(&folder).display()
    )?;
    Ok(())
}

fn write(folder: &Path) -> anyhow::Result<usize> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(
            shell,
            &mut Cli::command(),
            "holdfast-agent",
            OsString::from(folder),
        )?;
    }
    Ok(std::fs::read_dir(folder)?.count())
}
