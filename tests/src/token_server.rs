//! A token server as registries expect one: Basic in, a signed JWT out.
//!
//! The registry trusts it through a certificate made on the spot, which travels in `x5c`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Response, StatusCode};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use crate::clock;
use crate::serve::{Request, Server, answer};

/// The service name registries of the lab use.
pub const SERVICE: &str = "holdfast-lab-registry";
/// The issuer registries of the lab trust.
pub const ISSUER: &str = "holdfast-lab-tokens";

/// Hands out tokens for one registry.
#[derive(Debug)]
pub struct TokenServer {
    server: Server,
    signer: Arc<Signer>,
    policy: Arc<Mutex<TokenPolicy>>,
    asked: Arc<AtomicUsize>,
    certificate: String,
}

#[derive(Debug)]
struct Signer {
    key: EcdsaKeyPair,
    x5c: String,
    lifetime_seconds: u64,
}

/// Who may have tokens, and for how long they are good.
#[derive(Debug, Clone)]
pub struct TokenPolicy {
    /// Passwords by user.
    pub users: BTreeMap<String, String>,
    /// Whether everybody may pull without a name.
    pub anonymous_pull: bool,
    /// Lifetime of a token.
    pub lifetime_seconds: u64,
}

impl TokenPolicy {
    /// One user, no anonymous pulls, tokens for five minutes.
    pub fn user(name: &str, password: &str) -> Self {
        Self {
            users: BTreeMap::from([(name.to_owned(), password.to_owned())]),
            anonymous_pull: false,
            lifetime_seconds: 300,
        }
    }
}

impl TokenServer {
    /// Starts on a free loopback port.
    pub async fn start(policy: TokenPolicy) -> anyhow::Result<Self> {
        let pair = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["tokens.lab".to_owned()])?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&pair)?;
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &pair.serialize_der(),
            &SystemRandom::new(),
        )
        .map_err(|error| anyhow!("the token server's key: {error}"))?;
        let signer = Arc::new(Signer {
            key,
            x5c: STANDARD.encode(certificate.der()),
            lifetime_seconds: policy.lifetime_seconds,
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let policy = Arc::new(Mutex::new(policy));
        let (sign, count) = (Arc::clone(&signer), Arc::clone(&asked));
        let current = Arc::clone(&policy);
        let server = Server::start(move |request| {
            count.fetch_add(1, Ordering::SeqCst);
            let policy = current.lock().unwrap_or_else(PoisonError::into_inner);
            grant(&policy, &sign, &request)
        })
        .await?;
        Ok(Self {
            server,
            signer,
            policy,
            asked,
            certificate: certificate.pem(),
        })
    }

    /// The realm registries name in their challenge.
    pub fn realm(&self) -> String {
        format!("{}/token", self.server.url())
    }

    /// The certificate registries must trust, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// How many tokens were asked for so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// From now on this user gets no tokens.
    pub fn revoke(&self, user: &str) {
        let mut policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        policy.users.remove(user);
    }

    /// A token as the others, whose time was over an hour ago.
    pub fn expired_token(&self, scope: &str) -> anyhow::Result<String> {
        let access = access(scope, false).context("a scope")?;
        let ended = clock::unix_seconds() - 3_600;
        self.signer.signed("lab", SERVICE, &[access], ended)
    }

    /// A token for the lab itself.
    pub fn token(&self, scope: &str) -> anyhow::Result<String> {
        let access = access(scope, false).context("a scope")?;
        self.signer.token("lab", SERVICE, &[access])
    }
}

impl Signer {
    fn token(&self, subject: &str, service: &str, access: &[Value]) -> anyhow::Result<String> {
        let ends = clock::unix_seconds() + self.lifetime_seconds;
        self.signed(subject, service, access, ends)
    }

    fn signed(
        &self,
        subject: &str,
        service: &str,
        access: &[Value],
        ends: u64,
    ) -> anyhow::Result<String> {
        let begins = ends - self.lifetime_seconds;
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.x5c] });
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": service, "iat": begins, "nbf": begins - 10,
            "exp": ends, "jti": crate::place::unique(), "access": access,
        });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| anyhow!("signing a token failed"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// `repository:demo/web:pull,push` as an access entry; reduced to pulling when told so.
fn access(scope: &str, pull_only: bool) -> Option<Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let actions = actions
        .split(',')
        .filter(|action| !pull_only || *action == "pull");
    let actions: Vec<&str> = actions.collect();
    Some(json!({ "type": kind, "name": name, "actions": actions }))
}

fn grant(policy: &TokenPolicy, signer: &Signer, request: &Request) -> Response<Bytes> {
    let refuse = || {
        let errors = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "wrong login" }] });
        answer(StatusCode::UNAUTHORIZED, &errors)
    };
    let user = match request.header("authorization").map(basic) {
        None if policy.anonymous_pull => None,
        Some(Some((user, password))) if policy.users.get(&user) == Some(&password) => Some(user),
        None | Some(_) => return refuse(),
    };
    let scopes = request.query_all("scope");
    let scopes = scopes.iter().flat_map(|scope| scope.split(' '));
    let access: Vec<Value> = scopes
        .filter_map(|scope| access(scope, user.is_none()))
        .collect();
    let service = request.query_all("service").pop().unwrap_or_default();
    match signer.token(user.as_deref().unwrap_or_default(), &service, &access) {
        Ok(token) => {
            let body = json!({ "token": token, "expires_in": signer.lifetime_seconds });
            answer(StatusCode::OK, &body)
        }
        Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, &Value::Null),
    }
}

fn basic(header: &str) -> Option<(String, String)> {
    let coded = header.strip_prefix("Basic ")?;
    let plain = String::from_utf8(STANDARD.decode(coded).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
