//! Owns messages to systemd (`sd_notify(3)`); without systemd every message is silently unneeded.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where systemd listens, if it does.
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog_ms: Option<u64>,
}

impl Notifier {
    /// Reads the addresses that systemd gave this process.
    pub fn from_env() -> Self {
        let watchdog_ms = std::env::var("WATCHDOG_USEC")
            .ok()
            .and_then(|micros| micros.parse::<u64>().ok())
            .map(|micros| micros / 1_000)
            .filter(|millis| *millis > 0);
        Self {
            socket: std::env::var_os("NOTIFY_SOCKET").and_then(|path| connect(&path)),
            watchdog_ms,
        }
    }

    /// One that tells nobody.
    pub fn silent() -> Self {
        Self {
            socket: None,
            watchdog_ms: None,
        }
    }

    /// How often [`Self::alive`] must be called at least: half of what systemd allows.
    pub fn alive_interval_ms(&self) -> Option<u64> {
        self.watchdog_ms.map(|limit| limit / 2)
    }

    /// The agent has started.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The agent is ending.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// One line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// The reconcile loop turns.
    pub fn alive(&self) {
        if self.watchdog_ms.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // systemd that does not listen any more is no reason to stop looking after containers.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn connect(path: &std::ffi::OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    use std::os::unix::ffi::OsStrExt as _;
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_listening_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier {
            socket: connect(path.as_os_str()),
            watchdog_ms: Some(30_000),
        };
        notifier.ready();
        notifier.status("two\nlines");
        notifier.alive();
        let mut buffer = [0; 64];
        let mut read = || {
            let len = systemd.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };
        assert_eq!(read(), "READY=1");
        assert_eq!(read(), "STATUS=two lines");
        assert_eq!(read(), "WATCHDOG=1");
        assert_eq!(notifier.alive_interval_ms(), Some(15_000));
    }
}
