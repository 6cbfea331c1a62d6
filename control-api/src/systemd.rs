//! Owns messages to systemd (`sd_notify(3)`): that the server listens, that it still accepts, that it ends.
//!
//! Without systemd nothing is sent. Nothing here can fail the server.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Without a watchdog there is nothing to feed: a timer that nearly never fires.
const NO_WATCHDOG: Duration = Duration::from_hours(1);

/// Where systemd listens, if it does, and how soon it wants to hear again.
#[derive(Debug, Default)]
pub struct Systemd {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Reads what systemd told this process in its environment.
    pub fn from_env() -> Self {
        Self::new(
            std::env::var_os("NOTIFY_SOCKET").as_deref(),
            std::env::var("WATCHDOG_USEC").ok().as_deref(),
        )
    }

    fn new(socket: Option<&OsStr>, watchdog_us: Option<&str>) -> Self {
        Self {
            socket: socket.and_then(connect),
            watchdog: watchdog_us
                .and_then(|micros| micros.parse().ok())
                .filter(|micros| *micros > 0)
                .map(Duration::from_micros),
        }
    }

    /// How often [`Self::alive`] must be called at least: half of what systemd allows.
    pub fn alive_interval(&self) -> Duration {
        self.watchdog.map_or(NO_WATCHDOG, |limit| limit / 2)
    }

    /// The server listens.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// The server still accepts connections.
    pub fn alive(&self) {
        if self.watchdog.is_some() {
            self.send("WATCHDOG=1");
        }
    }

    /// The server ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // A systemd that does not listen any more is no reason to stop serving devices.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

fn connect(path: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().ok()?;
    // A full queue must not hold the server up.
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_whoever_listens_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let heard = || {
            let mut buffer = [0; 128];
            let len = listener.recv(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..len]).into_owned())
        };
        let watched = Systemd::new(Some(path.as_os_str()), Some("60000000"));
        assert_eq!(watched.alive_interval(), Duration::from_secs(30));
        watched.ready("two\nlines");
        watched.alive();
        watched.stopping();
        assert_eq!(heard().as_deref(), Some("READY=1\nSTATUS=two lines"));
        assert_eq!(heard().as_deref(), Some("WATCHDOG=1"));
        assert_eq!(heard().as_deref(), Some("STOPPING=1"));

        for nonsense in [None, Some("0"), Some("soon")] {
            let unwatched = Systemd::new(Some(path.as_os_str()), nonsense);
            unwatched.alive();
            assert_eq!(heard(), None);
            assert_eq!(unwatched.alive_interval(), NO_WATCHDOG);
        }
        Systemd::default().ready("to nobody");
        assert_eq!(heard(), None);
    }
}
