//! A real distribution registry on a loopback port, with the logins and notifications a test wants.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::client;
use crate::apt;
use crate::certificates::Certificates;
use crate::images::Pushed;
use crate::place::Port;
use crate::process::{Process, Program};
use crate::token_server::{ISSUER, SERVICE, TokenPolicy, TokenServer};
use crate::wait::try_wait_for;

/// The four kinds of manifest a client must accept, in one header.
pub const ACCEPT_ALL: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Starts take ~100 ms; a busy machine more.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// What a registry should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether manifests may be deleted.
    pub delete: bool,
    /// Where pushes are announced: the endpoint, and a bearer token it expects.
    pub notify: Option<(String, String)>,
    /// Who may come in.
    pub login: Login,
    /// Whether it speaks HTTPS, with a certificate that only [`Registry::ca_pem`] vouches for.
    pub tls: bool,
}

/// How a registry knows its users.
#[derive(Debug, Clone, Default)]
pub enum Login {
    /// Everybody may do everything.
    #[default]
    Open,
    /// One user with a password, sent with each request.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: String,
    },
    /// Tokens from a token server of ours.
    Token(TokenPolicy),
}

/// A running registry; dropping it ends it and forgets its content.
#[derive(Debug)]
pub struct Registry {
    port: Port,
    process: Process,
    login: Login,
    tokens: Option<TokenServer>,
    ca_pem: Option<String>,
    client: reqwest::Client,
    _folder: TempDir,
}

/// One line of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// HTTP method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The status answered.
    pub status: u16,
}

impl Registry {
    /// An open registry.
    pub async fn open() -> anyhow::Result<Self> {
        Self::start(Options::default()).await
    }

    /// A registry with options.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let program = apt::require(&["docker-registry", "setpriv"])?.swap_remove(0);
        let folder = crate::place::temporary("registry")?;
        let port = Port::take()?;
        let tokens = match &options.login {
            Login::Token(policy) => Some(TokenServer::start(policy.clone()).await?),
            Login::Open | Login::Basic { .. } => None,
        };
        let at = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: info}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/blobs}}, delete: {{enabled: {}}}}}\n\
             http: {{addr: '{}'{}}}\n",
            options.delete,
            port.address(),
            if options.tls {
                format!(", tls: {{certificate: {at}/tls.pem, key: {at}/tls.key}}")
            } else {
                String::new()
            }
        );
        let mut client = client();
        let mut ca_pem = None;
        if options.tls {
            let made = Certificates::make(&["127.0.0.1", "registry.lab"])?;
            fs::write(folder.path().join("tls.pem"), made.leaf)?;
            fs::write(folder.path().join("tls.key"), made.leaf_key)?;
            let ca = reqwest::Certificate::from_pem(made.ca.as_bytes())?;
            client = reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([ca])
                .build()?;
            ca_pem = Some(made.ca);
        }
        match (&options.login, &tokens) {
            (Login::Basic { username, password }, _) => {
                // Cost 4 is bcrypt's least: this guards nothing.
                let hash = bcrypt::hash(password, 4)?;
                fs::write(
                    folder.path().join("htpasswd"),
                    format!("{username}:{hash}\n"),
                )?;
                writeln!(
                    config,
                    "auth: {{htpasswd: {{realm: lab, path: {at}/htpasswd}}}}"
                )?;
            }
            (Login::Token(_), Some(tokens)) => {
                fs::write(folder.path().join("roots.pem"), tokens.certificate())?;
                writeln!(
                    config,
                    "auth: {{token: {{realm: '{}', service: {SERVICE}, issuer: {ISSUER}, \
                     rootcertbundle: {at}/roots.pem}}}}",
                    tokens.realm()
                )?;
            }
            (Login::Open | Login::Token(_), _) => {}
        }
        if let Some((url, bearer)) = &options.notify {
            writeln!(
                config,
                "notifications: {{endpoints: [{{name: lab, url: '{url}', \
                 headers: {{Authorization: ['Bearer {bearer}']}}, \
                 timeout: 2s, threshold: 5, backoff: 1s}}]}}"
            )?;
        }
        let file = folder.path().join("config.yml");
        fs::write(&file, config)?;
        let program = Program::new(program, ["serve".to_owned(), file.display().to_string()])
            .env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::start("registry", program, &folder.path().join("log"))?;
        let registry = Self {
            port,
            process,
            login: options.login,
            tokens,
            ca_pem,
            client,
            _folder: folder,
        };
        registry.ready().await?;
        Ok(registry)
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let url = format!("{}/v2/", self.url());
        let ready = try_wait_for("the registry to answer", STARTS_WITHIN, async || {
            self.client.get(&url).send().await.map(drop)
        });
        ready.await.with_context(|| self.process.tail())
    }

    /// `127.0.0.1:PORT`, the host part of its image names.
    pub fn host(&self) -> String {
        self.port.address()
    }

    /// `http://127.0.0.1:PORT`, or with `https`.
    pub fn url(&self) -> String {
        let scheme = if self.ca_pem.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.port.address())
    }

    /// Who vouches for its certificate, as PEM; none when it speaks plain HTTP.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Ends the program; its content and its port stay for [`Registry::resume`].
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Starts it again on the same port with the same content.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        self.process.restart()?;
        self.ready().await
    }

    /// A request to the registry with the lab's own login for this repository.
    pub fn request(
        &self,
        method: Method,
        repository: &str,
        url: &str,
    ) -> anyhow::Result<RequestBuilder> {
        let url = if url.starts_with('/') {
            format!("{}{url}", self.url())
        } else {
            url.to_owned()
        };
        let request = self.client.request(method, url);
        Ok(match (&self.login, &self.tokens) {
            (Login::Basic { username, password }, _) => {
                request.basic_auth(username, Some(password))
            }
            (Login::Token(_), Some(tokens)) => {
                let scope = format!("repository:{repository}:pull,push,delete");
                request.bearer_auth(tokens.token(&scope)?)
            }
            (Login::Open | Login::Token(_), _) => request,
        })
    }

    /// The token server, when there is one.
    pub fn tokens(&self) -> Option<&TokenServer> {
        self.tokens.as_ref()
    }

    /// GET of a manifest by tag or digest with an Accept header.
    pub async fn manifest(
        &self,
        repository: &str,
        reference: &str,
        accept: &str,
    ) -> anyhow::Result<Response> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let request = self.request(Method::GET, repository, &path)?;
        Ok(request.header("accept", accept).send().await?)
    }

    /// PUT of a manifest under a tag or digest; answers the digest the registry gave it.
    pub async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: Vec<u8>,
    ) -> anyhow::Result<String> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let request = self.request(Method::PUT, repository, &path)?;
        let request = request.header("content-type", media_type).body(bytes);
        let response = request.send().await?;
        let status = response.status();
        let digest = response.headers().get("docker-content-digest").cloned();
        let body = response.text().await?;
        ensure!(status.is_success(), "PUT {path}: {status} {body}");
        let digest = digest.context("the registry named no digest")?;
        Ok(digest.to_str()?.to_owned())
    }

    /// Moves a tag to a manifest that is there already.
    pub async fn tag(&self, repository: &str, digest: &str, tag: &str) -> anyhow::Result<()> {
        let response = self.manifest(repository, digest, ACCEPT_ALL).await?;
        ensure!(response.status().is_success(), "no {digest} to tag");
        let kind = response.headers().get("content-type").cloned();
        let kind = kind.context("a manifest without a type")?;
        let bytes = response.bytes().await?.to_vec();
        self.put_manifest(repository, tag, kind.to_str()?, bytes)
            .await?;
        Ok(())
    }

    /// Deletes a manifest by digest; needs [`Options::delete`].
    pub async fn delete(&self, repository: &str, digest: &str) -> anyhow::Result<StatusCode> {
        let path = format!("/v2/{repository}/manifests/{digest}");
        let request = self.request(Method::DELETE, repository, &path)?;
        Ok(request.send().await?.status())
    }

    /// Puts a blob there, unless it is there.
    pub async fn put_blob(
        &self,
        repository: &str,
        digest: &str,
        bytes: &[u8],
    ) -> anyhow::Result<()> {
        let path = format!("/v2/{repository}/blobs/{digest}");
        let there = self
            .request(Method::HEAD, repository, &path)?
            .send()
            .await?;
        if there.status().is_success() {
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let begun = self
            .request(Method::POST, repository, &path)?
            .send()
            .await?;
        let status = begun.status();
        let location = begun.headers().get("location");
        let location = location.with_context(|| format!("POST {path}: {status}"))?;
        let location = location.to_str()?;
        let join = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{join}digest={digest}");
        let put = self.request(Method::PUT, repository, &url)?;
        let put = put
            .header("content-type", "application/octet-stream")
            .body(bytes.to_vec())
            .send()
            .await?;
        ensure!(put.status().is_success(), "PUT of a blob: {}", put.status());
        Ok(())
    }

    /// What was asked of it so far, from its own access log.
    pub fn requests(&self) -> Vec<Access> {
        self.process
            .lines()
            .iter()
            .filter_map(|line| access(line))
            .collect()
    }

    /// The digest of an image's largest layer.
    pub async fn largest_layer(&self, image: &Pushed) -> anyhow::Result<String> {
        let manifest = &image.child("linux/amd64").manifest_digest;
        let manifest = self.manifest(&image.repository, manifest, ACCEPT_ALL);
        let manifest: Value = manifest.await?.json().await?;
        let layers = manifest["layers"].as_array().context("it has layers")?;
        let largest = layers.iter().max_by_key(|layer| layer["size"].as_u64());
        let digest = largest.and_then(|layer| layer["digest"].as_str());
        digest.map(str::to_owned).context("a layer has a digest")
    }

    /// How often it was asked for the bytes of a blob.
    pub fn gave(&self, blob: &str) -> usize {
        let end = format!("/blobs/{blob}");
        let requests = self.requests();
        let of_blob = requests
            .iter()
            .filter(|asked| asked.method == "GET" && asked.path.ends_with(&end));
        of_blob.count()
    }

    /// The program itself, for its log or to kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// Reads a line in the common log format: `… "GET /v2/ HTTP/1.1" 200 …`.
fn access(line: &str) -> Option<Access> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    Some(Access {
        method: words.next()?.to_owned(),
        path: words.next()?.to_owned(),
        status: rest.split(' ').next()?.parse().ok()?,
    })
}
