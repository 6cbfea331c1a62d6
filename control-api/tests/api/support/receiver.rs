//! Owns receivers of notifications on loopback: one of HTTP that answers as told, one of mail that keeps what it gets.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// What the next request is answered with.
#[derive(Clone, Debug)]
pub enum Reply {
    /// This status, with these headers and this text.
    Status(u16, Vec<(&'static str, String)>, String),
    /// What was sent: path, headers and body.
    Echo,
    /// Nothing, for ever.
    Silence,
}

#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// A receiver of HTTP; takes everything unless told otherwise.
#[derive(Clone)]
pub struct Receiver {
    pub address: std::net::SocketAddr,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            replies: Arc::default(),
            received: Arc::default(),
        };
        let answering = receiver.clone();
        let router = Router::new().fallback(move |request: Request| {
            let answering = answering.clone();
            async move { answering.answer(request).await }
        });
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        receiver
    }

    /// From now on these are the answers, then 200 again.
    pub fn reply(&self, replies: impl IntoIterator<Item = Reply>) {
        self.replies.lock().unwrap().extend(replies);
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn answer(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let received = Received {
            path: parts.uri.to_string(),
            headers: parts.headers,
            body: String::from_utf8(bytes.to_vec()).unwrap(),
        };
        self.received.lock().unwrap().push(received.clone());
        let next = self.replies.lock().unwrap().pop_front();
        match next {
            None => Response::new(Body::from("thanks")),
            Some(Reply::Silence) => std::future::pending().await,
            Some(Reply::Echo) => {
                let text = format!("{} {:?} {}", received.path, received.headers, received.body);
                let answer = Response::builder().status(400);
                answer.body(Body::from(text)).unwrap()
            }
            Some(Reply::Status(status, headers, text)) => {
                let mut answer = Response::builder().status(status);
                for (name, value) in headers {
                    answer = answer.header(name, value);
                }
                answer.body(Body::from(text)).unwrap()
            }
        }
    }
}

/// Only a status.
pub fn status(status: u16) -> Reply {
    Reply::Status(status, Vec::new(), String::new())
}

/// One mail as it was handed over.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    pub encrypted: bool,
    pub login: Option<String>,
    pub from: String,
    pub to: Vec<String>,
    pub data: String,
}

/// How a mail server behaves.
#[derive(Clone, Default)]
pub struct Manners {
    /// Offers encryption, with this certificate.
    pub tls: Option<Arc<ServerConfig>>,
    /// Answers this to recipients.
    pub refuses: Option<&'static str>,
}

/// A receiver of mail.
#[derive(Clone)]
pub struct MailServer {
    pub port: u16,
    taken: Arc<Mutex<Vec<Mail>>>,
    /// Every line that came unencrypted.
    clear: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    pub fn start(manners: Manners) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            taken: Arc::default(),
            clear: Arc::default(),
        };
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // A client that goes away in the middle is none of its business.
                let _ = serving.serve(stream, &manners);
            }
        });
        server
    }

    pub fn taken(&self) -> Vec<Mail> {
        self.taken.lock().unwrap().clone()
    }

    pub fn clear(&self) -> Vec<String> {
        self.clear.lock().unwrap().clone()
    }

    fn serve(&self, stream: TcpStream, manners: &Manners) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut mail = Mail::default();
        let plain = stream.try_clone()?;
        if !self.talk(plain, &mut mail, manners, true)? {
            return Ok(());
        }
        // The client asked for encryption.
        let config = manners.tls.clone().unwrap();
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        mail.encrypted = true;
        self.talk(
            StreamOwned::new(connection, stream),
            &mut mail,
            manners,
            false,
        )?;
        Ok(())
    }

    /// One conversation; true when it is to go on encrypted.
    fn talk<S: Read + Write>(
        &self,
        stream: S,
        mail: &mut Mail,
        manners: &Manners,
        greets: bool,
    ) -> std::io::Result<bool> {
        let mut stream = BufReader::new(stream);
        if greets {
            stream.get_mut().write_all(b"220 mail.test\r\n")?;
        }
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(false);
            }
            let line = line.trim_end();
            if !mail.encrypted {
                self.clear.lock().unwrap().push(line.to_owned());
            }
            let answer = match line.split([' ', ':']).next().unwrap_or_default() {
                "EHLO" if manners.tls.is_some() && !mail.encrypted => {
                    "250-mail.test\r\n250 STARTTLS".to_owned()
                }
                "EHLO" => "250-mail.test\r\n250 AUTH PLAIN LOGIN".to_owned(),
                "STARTTLS" => {
                    stream.get_mut().write_all(b"220 go ahead\r\n")?;
                    return Ok(true);
                }
                "AUTH" => {
                    mail.login = Some(line.to_owned());
                    "235 welcome".to_owned()
                }
                "MAIL" => {
                    mail.from = String::from(line);
                    "250 ok".to_owned()
                }
                "RCPT" => {
                    mail.to.push(line.to_owned());
                    manners.refuses.unwrap_or("250 ok").to_owned()
                }
                "DATA" => {
                    stream.get_mut().write_all(b"354 go on\r\n")?;
                    loop {
                        let mut line = String::new();
                        stream.read_line(&mut line)?;
                        if line == ".\r\n" {
                            break;
                        }
                        mail.data.push_str(&line);
                    }
                    self.taken.lock().unwrap().push(mail.clone());
                    "250 taken as 4711".to_owned()
                }
                "QUIT" => {
                    stream.get_mut().write_all(b"221 bye\r\n")?;
                    return Ok(false);
                }
                _ => "500 what?".to_owned(),
            };
            stream
                .get_mut()
                .write_all(format!("{answer}\r\n").as_bytes())?;
        }
    }
}

/// A certificate for this host, and who signed it (PEM).
pub fn certificate(host: &str) -> (Arc<ServerConfig>, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), made.cert.pem().into_bytes())
}
