//! Owns handing one mail to a server; the only file that names the mail crate.
//!
//! Refuses to go on without encryption where the channel wants it, and servers at addresses that were not judged.

use std::net::SocketAddr;

use holdfast_domain::notification::channel::{MailSettings, Settings};
use holdfast_domain::notification::destination::is_loopback;
use holdfast_domain::notification::schedule::Outcome;
use holdfast_proto::notification::MailSecurity;
use lettre::address::Envelope;
use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::extension::ClientId;

use super::{CONNECT, Courier, Kept, Parcel, Report, body};
use crate::secret::Secret;

/// What a server answers to a login that it does not take, or that it wants first (RFC 4954, section 6): a mistake
/// of a configuration, not of the message.
const LOGIN_CODES: [u16; 4] = [530, 534, 535, 538];

/// Why a mail was not handed over.
enum Fault {
    /// Before or beside the server.
    Words(String),
    /// The server said so, or the connection broke.
    Smtp(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Smtp(error)
    }
}

impl Courier {
    /// Hands a message to the channel's mail server.
    pub(super) async fn mail(
        &self,
        settings: &Settings,
        kept: &Kept,
        parcel: Parcel<'_>,
    ) -> Report {
        let Some(mail) = &settings.mail else {
            return Report::failed("the channel has no mail server");
        };
        let written = match body(settings, "", parcel) {
            Ok(written) => written,
            Err(why) => return Report::failed(why),
        };
        match self.hand_over(mail, kept.password.as_ref(), &written).await {
            Ok((status, said)) => Report {
                outcome: Outcome::Taken,
                status: Some(status),
                said: Some(said),
                error: None,
            },
            Err(Fault::Words(why)) => Report::failed(why),
            Err(Fault::Smtp(error)) => {
                let status = error.status().map(u16::from);
                let is_login = status.is_some_and(|code| LOGIN_CODES.contains(&code));
                let outcome = if error.is_permanent() && !is_login {
                    Outcome::Refused
                } else {
                    Outcome::Failed { peace_ms: None }
                };
                Report {
                    outcome,
                    status,
                    said: None,
                    error: Some(format!("{}: {}", settings.destination, error)),
                }
            }
        }
    }

    async fn hand_over(
        &self,
        mail: &MailSettings,
        password: Option<&Secret>,
        written: &str,
    ) -> Result<(u16, String), Fault> {
        let envelope =
            envelope(mail).ok_or_else(|| Fault::Words("an address cannot be used".into()))?;
        let hello = ClientId::default();
        let places = self.places(mail).await.map_err(Fault::Words)?;
        let (at_once, later) = match mail.security {
            MailSecurity::Tls => (Some(self.tls(mail)?), None),
            MailSecurity::Starttls => (None, Some(self.tls(mail)?)),
            MailSecurity::None => (None, None),
        };
        let patience = Some(CONNECT.min(self.settings.timeout));
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(places.as_slice(), patience, &hello, at_once, None)
                .await?;
        if let Some(tls) = later {
            // Fails when the server does not offer it: nothing is said to it in the clear.
            connection.starttls(tls, &hello).await?;
        }
        if let (Some(username), Some(password)) = (&mail.username, password) {
            let login = Credentials::new(username.clone(), password.expose().to_owned());
            connection
                .auth(&[Mechanism::Plain, Mechanism::Login], &login)
                .await?;
        }
        let taken = connection.send(&envelope, written.as_bytes()).await?;
        connection.abort().await;
        let said = taken.message().collect::<Vec<_>>().join(" ");
        Ok((u16::from(taken.code()), said))
    }

    /// The addresses of the server, judged; without encryption only on this machine, whatever its name means now.
    async fn places(&self, mail: &MailSettings) -> Result<Vec<SocketAddr>, String> {
        let outward = self.outward().map_err(|error| error.to_string())?;
        let found = outward.addresses(&mail.host, mail.port).await;
        let found = found.map_err(|error| error.to_string())?;
        if mail.security == MailSecurity::None
            && !found
                .iter()
                .all(|address| is_loopback(&address.to_string()))
        {
            return Err(format!(
                "{} is not this machine: it needs encryption",
                mail.host
            ));
        }
        let with_port = found
            .into_iter()
            .map(|address| SocketAddr::new(address, mail.port));
        Ok(with_port.collect())
    }

    /// Verified against the name of the server, not against the address that was connected to.
    fn tls(&self, mail: &MailSettings) -> Result<TlsParameters, Error> {
        let builder = TlsParameters::builder(mail.host.clone());
        match &self.settings.ca_pem {
            Some(pem) => builder.add_root_certificate(Certificate::from_pem(pem)?),
            None => builder,
        }
        .build_rustls()
    }
}

fn envelope(mail: &MailSettings) -> Option<Envelope> {
    let from = mail.from.parse().ok()?;
    let to = mail.to.iter().map(|address| address.parse().ok());
    Envelope::new(Some(from), to.collect::<Option<Vec<_>>>()?).ok()
}
