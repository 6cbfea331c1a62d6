//! Runs one test again as a process of its own, where it may have what a thread cannot: another
//! environment, or a network that nobody else has.

use std::process::Command;

use anyhow::ensure;

use crate::apt;

/// Tells a test that it is the process of its own.
const ALONE: &str = "HOLDFAST_TEST_ALONE";

/// Whether this process was started by [`again`] or [`in_empty_network`].
pub fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs the test with this name again, with more environment.
///
/// # Errors
/// When it fails there, with what it wrote.
pub fn again(test: &str, environment: &[(&str, String)]) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    finish(command, test)
}

/// Runs the test with this name again, in a network namespace where every address is this machine's own
/// and no packet ever leaves: whoever is connected to is met by a listener of the test.
///
/// # Errors
/// As [`again`].
pub fn in_empty_network(test: &str) -> anyhow::Result<()> {
    apt::require(&["ip"])?;
    let mut command = Command::new("unshare");
    if !rustix::process::getuid().is_root() {
        command.arg("--map-root-user");
    }
    let routes = "ip link set lo up && ip route add local 0.0.0.0/0 dev lo \
                  && ip -6 route add local ::/0 dev lo && exec \"$@\"";
    command.args(["--net", "sh", "-c", routes, "sh"]);
    command.arg(std::env::current_exe()?);
    finish(command, test)
}

fn finish(mut command: Command, test: &str) -> anyhow::Result<()> {
    let command = command.args(["--exact", test, "--nocapture"]);
    let done = command.env(ALONE, "1").output()?;
    let said = String::from_utf8_lossy(&done.stdout);
    ensure!(
        done.status.success() && said.contains("1 passed"),
        "{test} by itself: {}\n{said}\n{}",
        done.status,
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}
