//! Owns `holdfast-api health`: one question to the server on this machine.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};

/// A server that needs longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
/// The status line is all that counts.
const MOST_BYTES: u64 = 64;

/// Asks the server that listens on `listen`.
pub(super) fn ask(listen: SocketAddr) -> anyhow::Result<()> {
    let address = reached_at(listen);
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request)?;
        let mut answer = Vec::new();
        stream.take(MOST_BYTES).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = asked().with_context(|| format!("no answer from {address}"))?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        Some(status) => bail!("{address} is not ready: {status}"),
        None => bail!("{address} does not speak HTTP"),
    }
}

/// Where a server is reached that listens on every address.
fn reached_at(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn ready_is_nothing_but_200() {
        let answered = |answer: &'static str| {
            let server = TcpListener::bind("0.0.0.0:0").unwrap();
            let address = server.local_addr().unwrap();
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = server.accept().unwrap();
                let mut request = [0; 64];
                let len = stream.read(&mut request).unwrap();
                assert!(request[..len].starts_with(b"GET /readyz "));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            let outcome = ask(address);
            serving.join().unwrap();
            outcome
        };
        assert!(answered("HTTP/1.1 200 OK\r\n\r\nok\n").is_ok());
        for answer in ["HTTP/1.1 503 Service Unavailable\r\n\r\n", "hello", ""] {
            assert!(answered(answer).is_err(), "{answer}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(ask(nobody).is_err());
    }
}
