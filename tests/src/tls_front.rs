//! TLS in front of a plain server, as a reverse proxy gives it, with a certificate of the lab's own.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::agent;
use crate::certificates::Certificates;
use crate::place;

/// How an agent speaks to the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Plain HTTP.
    Plain,
    /// With TLS, as on a real device.
    Tls,
}

/// The front; dropping it ends it and its connections.
#[derive(Debug)]
pub struct TlsFront {
    address: SocketAddr,
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl TlsFront {
    /// Answers with TLS on a free loopback port for the server at `to` (`127.0.0.1:PORT`).
    pub async fn start(to: impl Into<String>) -> anyhow::Result<Self> {
        let made = Certificates::make(&["127.0.0.1"])?;
        let folder = place::temporary("tls")?;
        std::fs::write(folder.path().join(CERTIFICATE), &made.ca)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(made.leaf.as_bytes())?],
                PrivateKeyDer::from_pem_slice(made.leaf_key.as_bytes())?,
            )?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let to: Arc<str> = to.into().into();
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                running.spawn(connection(acceptor.clone(), stream, Arc::clone(&to)));
                while running.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            folder,
            task,
        })
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Lets an agent trust it.
    #[must_use]
    pub fn trusted(&self, options: agent::Options) -> agent::Options {
        let file = self.folder.path().join(CERTIFICATE);
        options.set("api", "ca_file", file.display().to_string())
    }
}

const CERTIFICATE: &str = "certificate.pem";

/// One connection until either side ends it; a client that breaks off is no fault here.
async fn connection(acceptor: TlsAcceptor, stream: TcpStream, to: Arc<str>) {
    let Ok(mut client) = acceptor.accept(stream).await else {
        return;
    };
    if let Ok(mut server) = TcpStream::connect(&*to).await {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}
