//! Stands in for three clouds: their token endpoints as their documentation describes them, and one
//! registry behind them that takes nothing else.
//!
//! It refuses a signature, a header or a form that the real ones would refuse.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use holdfast_proto::image::Digest;
use http::{Method, Response, StatusCode};
use ring::{digest, hmac};
use serde_json::{Value, json};

use crate::http_tap::reply;
use crate::serve::{Request, Server, answer};

/// The access key that Amazon's stand-in knows.
pub const AMAZON_KEY: (&str, &str) = ("AKIDHOLDFAST", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYHOLDFAST");
/// What Amazon hands out.
pub const AMAZON_PASSWORD: &str = "ecr-password";
const GOOGLE_ACCESS: &str = "google-access";
const GOOGLE_TOKEN: &str = "gar-token";
const AZURE_ACCESS: &str = "azure-access";
const AZURE_REFRESH: &str = "acr-refresh";
const AZURE_TOKEN: &str = "acr-token";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = r#"{"os":"linux","architecture":"amd64"}"#;

/// The running stand-in.
#[derive(Debug)]
pub struct Clouds {
    server: Server,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Clouds {
    /// Starts on a free loopback port.
    pub async fn start() -> anyhow::Result<Self> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&asked);
        let server = Server::start(move |request| {
            let line = format!("{} {}", request.method, request.path);
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(line);
            respond(&request)
        })
        .await?;
        Ok(Self { server, asked })
    }

    /// `http://127.0.0.1:PORT`, for every endpoint.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Its port.
    pub fn port(&self) -> String {
        let url = self.url();
        url.rsplit(':').next().unwrap_or_default().to_owned()
    }

    /// How often a path was asked.
    pub fn asked(&self, line: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|found| *found == line).count()
    }
}

fn respond(request: &Request) -> Response<Bytes> {
    let refuse = |status| answer(status, &Value::Null);
    let is = |name: &str, value: &str| request.header(name) == Some(value);
    let ok = |body: &Value| answer(StatusCode::OK, body);
    match (&request.method, request.path.as_str()) {
        (&Method::POST, "/") if amazon_signed(request) => {
            let token = BASE64_STANDARD.encode(format!("AWS:{AMAZON_PASSWORD}"));
            ok(
                &json!({ "authorizationData": [{ "authorizationToken": token,
                "expiresAt": 1.8e9, "proxyEndpoint": "https://registry" }] }),
            )
        }
        (&Method::POST, "/") => answer(
            StatusCode::BAD_REQUEST,
            &json!({ "__type": "InvalidSignatureException" }),
        ),
        (&Method::GET, "/computeMetadata/v1/instance/service-accounts/default/token")
            if is("metadata-flavor", "Google") =>
        {
            ok(
                &json!({ "access_token": GOOGLE_ACCESS, "expires_in": 3599, "token_type": "Bearer" }),
            )
        }
        (&Method::GET, "/metadata/identity/oauth2/token")
            if is("metadata", "true")
                && !request.query_all("api-version").is_empty()
                && request.query_all("resource") == ["https://management.azure.com/"] =>
        {
            ok(&json!({ "access_token": AZURE_ACCESS, "expires_in": "3599" }))
        }
        (&Method::POST, "/oauth2/exchange")
            if request.field("grant_type") == "access_token"
                && request.field("access_token") == AZURE_ACCESS
                && request.field("service").contains(".azurecr.io") =>
        {
            ok(&json!({ "refresh_token": AZURE_REFRESH }))
        }
        (&Method::POST, "/oauth2/token")
            if request.field("grant_type") == "refresh_token"
                && request.field("refresh_token") == AZURE_REFRESH
                && request.field("scope") == "repository:app:pull" =>
        {
            ok(&json!({ "access_token": AZURE_TOKEN }))
        }
        (&Method::GET, "/v2/token")
            if is("authorization", &basic("oauth2accesstoken", GOOGLE_ACCESS))
                && request.query_all("scope") == ["repository:project/app:pull"] =>
        {
            ok(&json!({ "token": GOOGLE_TOKEN, "expires_in": 300 }))
        }
        (&Method::GET | &Method::HEAD, path) if path.starts_with("/v2/") => registry(request),
        _ => refuse(StatusCode::FORBIDDEN),
    }
}

/// The registry: which cloud's it is, its name tells.
fn registry(request: &Request) -> Response<Bytes> {
    let host = request.header("host").unwrap_or_default();
    let (login, challenge) = if host.contains(".amazonaws.com") {
        (
            basic("AWS", AMAZON_PASSWORD),
            format!(r#"Basic realm="https://{host}/",service="ecr.amazonaws.com""#),
        )
    } else if host.contains(".azurecr.io") {
        (
            format!("Bearer {AZURE_TOKEN}"),
            format!(r#"Bearer realm="http://{host}/oauth2/token",service="{host}""#),
        )
    } else {
        (
            format!("Bearer {GOOGLE_TOKEN}"),
            format!(r#"Bearer realm="http://{host}/v2/token",service="{host}""#),
        )
    };
    if request.header("authorization") != Some(login.as_str()) {
        return reply(401, &[("www-authenticate", challenge.as_str())], "");
    }
    let config = Digest::of(CONFIG.as_bytes());
    if request.path.contains("/blobs/") {
        return reply(200, &[], CONFIG);
    }
    let size = CONFIG.len();
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"digest":"{config}","size":{size}}},"layers":[]}}"#
    );
    let digest = Digest::of(body.as_bytes()).to_string();
    let headers = [
        ("content-type", MANIFEST),
        ("docker-content-digest", digest.as_str()),
    ];
    reply(200, &headers, body)
}

fn basic(user: &str, password: &str) -> String {
    format!(
        "Basic {}",
        BASE64_STANDARD.encode(format!("{user}:{password}"))
    )
}

/// Checks a signature as Amazon does ("Signature Version 4"), from what came and nothing else.
fn amazon_signed(request: &Request) -> bool {
    check(request).is_some()
}

fn check(request: &Request) -> Option<()> {
    let authorization = request.header("authorization")?;
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ")?;
    let part = |name: &str| {
        let mut parts = rest.split(", ");
        parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let (key, scope) = part("Credential")?.split_once('/')?;
    let [date, region, "ecr", "aws4_request"] = scope.split('/').collect::<Vec<_>>()[..] else {
        return None;
    };
    let time = request
        .header("x-amz-date")
        .filter(|time| time.starts_with(date))?;
    let names = part("SignedHeaders")?;
    // What Amazon insists on: these are signed.
    let all: Vec<&str> = names.split(';').collect();
    ["host", "x-amz-date", "x-amz-target"]
        .iter()
        .all(|name| all.contains(name))
        .then_some(())?;
    let lines: Option<Vec<String>> = all
        .iter()
        .map(|name| Some(format!("{name}:{}\n", request.header(name)?.trim())))
        .collect();
    let hex = |bytes: &[u8]| {
        let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.concat()
    };
    let hash = |bytes: &[u8]| hex(digest::digest(&digest::SHA256, bytes).as_ref());
    let canonical = format!(
        "POST\n/\n\n{}\n{names}\n{}",
        lines?.concat(),
        hash(&request.body)
    );
    let to_sign = format!(
        "AWS4-HMAC-SHA256\n{time}\n{scope}\n{}",
        hash(canonical.as_bytes())
    );
    let mut secret = format!("AWS4{}", AMAZON_KEY.1).into_bytes();
    for word in [date, region, "ecr", "aws4_request", to_sign.as_str()] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        secret = hmac::sign(&key, word.as_bytes()).as_ref().to_vec();
    }
    let target = request.header("x-amz-target")?;
    let good = key == AMAZON_KEY.0
        && target == "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
        && part("Signature")? == hex(&secret);
    good.then_some(())
}
