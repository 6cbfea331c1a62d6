//! Owns proving who sends a webhook: by a secret that it brings, or by a signature of its body.
//!
//! Everything wrong is one and the same refusal, in a time that does not tell what; nothing is understood of a body
//! before its sender is known. Only a signature needs the bytes: few of those are read at once, and not for long.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts as _, RawPathParams, Request};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};

use crate::app::Shared;
use crate::http::auth::bearer;
use crate::http::extract::{JsonBytes, WEBHOOK_LIMIT, bytes, expect_json};
use crate::http::problem::Refusal;
use crate::secret::{Secret, from_hex, same, signs};

/// How long an unknown sender may take for its body.
const UNPROVEN_PATIENCE: Duration = Duration::from_secs(10);
/// A secret as it is, for senders that can set a header.
const OWN: HeaderName = HeaderName::from_static("x-holdfast-secret");
/// The same in GitLab's words.
const GITLAB: HeaderName = HeaderName::from_static("x-gitlab-token");
/// `sha256=` and the HMAC-SHA256 of the body in hex: GitHub's form, which others copied.
const SIGNATURE: HeaderName = HeaderName::from_static("x-hub-signature-256");
/// `JFrog`'s: the secret itself, or the HMAC-SHA256 of the body in hex, as it is set there.
const JFROG: HeaderName = HeaderName::from_static("x-jfrog-event-auth");

/// A webhook whose sender is known.
#[derive(Debug)]
pub struct Proven {
    /// The vendor in the path, if one is there.
    pub vendor: Option<String>,
    /// The name of the secret.
    pub secret: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most 256 KiB.
    pub bytes: Bytes,
}

impl FromRequest<Shared> for Proven {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let (vendor, in_path) = match RawPathParams::from_request_parts(&mut parts, app).await {
            Ok(params) => {
                let part = |name: &str| {
                    let mut all = params.iter();
                    all.find(|(known, _)| *known == name)
                        .map(|(_, value)| value.to_owned())
                };
                (part("vendor"), part("secret"))
            }
            Err(_) => (None, None),
        };
        let headers = parts.headers.clone();
        let request = Request::from_parts(parts, body);
        let secrets = &app.pushes.secrets;
        let (secret, bytes) = match proof(&headers, in_path.as_deref(), secrets) {
            Proof::Secret(name) => {
                let JsonBytes(bytes) =
                    JsonBytes::<WEBHOOK_LIMIT>::from_request(request, app).await?;
                (name, bytes)
            }
            Proof::Signature(signature) => {
                let Ok(_turn) = app.pushes.unproven.try_acquire() else {
                    return Err(Refusal::busy());
                };
                let bytes = bytes(request, WEBHOOK_LIMIT, UNPROVEN_PATIENCE).await?;
                let Some(name) = signer(secrets, &bytes, &signature) else {
                    return Err(unproven(app));
                };
                expect_json(&headers)?;
                (name, bytes)
            }
            Proof::None => return Err(unproven(app)),
        };
        Ok(Self {
            vendor,
            secret,
            headers,
            bytes,
        })
    }
}

fn unproven(app: &Shared) -> Refusal {
    app.metrics.auth_failure();
    Refusal::unauthenticated()
}

/// What a request brings to prove its sender.
#[derive(Debug, PartialEq, Eq)]
enum Proof {
    /// The secret of this name.
    Secret(String),
    /// A signature, to be compared with the body's.
    Signature([u8; 32]),
    /// Nothing that counts.
    None,
}

/// Judges what was brought; a signature that is there has to be right, whatever else is.
fn proof(headers: &HeaderMap, in_path: Option<&str>, secrets: &[(String, Secret)]) -> Proof {
    if headers.contains_key(SIGNATURE) {
        let hex = one(headers, &SIGNATURE).and_then(|value| value.strip_prefix("sha256="));
        return hex.and_then(from_hex).map_or(Proof::None, Proof::Signature);
    }
    let presented = [
        in_path,
        bearer(headers),
        // Harbor sends what is configured there as the whole header.
        one(headers, &header::AUTHORIZATION),
        one(headers, &OWN),
        one(headers, &GITLAB),
        one(headers, &JFROG),
    ];
    // No comparison is left out: the time tells neither which secret nor which place was right.
    let mut found = None;
    for (name, secret) in secrets {
        for text in presented.iter().flatten() {
            if same(secret.expose(), text) {
                found = Some(name.clone());
            }
        }
    }
    match (found, one(headers, &JFROG).and_then(from_hex)) {
        (Some(name), _) => Proof::Secret(name),
        (None, Some(signature)) => Proof::Signature(signature),
        (None, None) => Proof::None,
    }
}

/// A header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().map(str::trim),
        (_, _) => None,
    }
}

fn signer(secrets: &[(String, Secret)], bytes: &[u8], signature: &[u8; 32]) -> Option<String> {
    let mut found = None;
    for (name, secret) in secrets {
        if signs(secret, bytes, signature) {
            found = Some(name.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(lines: &[(&'static str, &str)], in_path: Option<&str>) -> Proof {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        let secrets = ["old", "new"].map(|name| {
            let secret = Secret::new(format!("the {name} secret"));
            (name.to_owned(), secret)
        });
        proof(&headers, in_path, &secrets)
    }

    #[test]
    fn a_secret_counts_wherever_its_sender_can_put_it() {
        let old = || Proof::Secret("old".into());
        assert_eq!(
            judged(&[("authorization", "Bearer the old secret")], None),
            old()
        );
        assert_eq!(judged(&[("authorization", "the old secret")], None), old());
        assert_eq!(
            judged(&[("x-holdfast-secret", "the old secret")], None),
            old()
        );
        assert_eq!(judged(&[("x-gitlab-token", "the old secret")], None), old());
        assert_eq!(
            judged(&[("x-jfrog-event-auth", "the old secret")], None),
            old()
        );
        assert_eq!(judged(&[], Some("the old secret")), old());
        let new = Proof::Secret("new".into());
        assert_eq!(judged(&[], Some("the new secret")), new);
    }

    #[test]
    fn a_signature_decides_alone_and_two_are_none() {
        let hex = "0f".repeat(32);
        let signed = format!("sha256={hex}");
        let signature = Proof::Signature([0x0f; 32]);
        assert_eq!(judged(&[("x-hub-signature-256", &signed)], None), signature);
        assert_eq!(judged(&[("x-jfrog-event-auth", &hex)], None), signature);
        let right = Some("the old secret");
        assert_eq!(
            judged(&[("x-hub-signature-256", "sha256=00")], right),
            Proof::None
        );
        assert_eq!(judged(&[("x-hub-signature-256", &hex)], right), Proof::None);
        let twice = [("x-hub-signature-256", signed.as_str()); 2];
        assert_eq!(judged(&twice, right), Proof::None);
    }

    #[test]
    fn nothing_and_half_a_secret_prove_nothing() {
        assert_eq!(judged(&[], None), Proof::None);
        assert_eq!(judged(&[], Some("")), Proof::None);
        assert_eq!(judged(&[], Some("the old secre")), Proof::None);
        assert_eq!(
            judged(&[("authorization", "Basic the old secret")], None),
            Proof::None
        );
        let twice = [("x-gitlab-token", "the old secret"); 2];
        assert_eq!(judged(&twice, None), Proof::None);
        assert_eq!(proof(&HeaderMap::new(), Some("any"), &[]), Proof::None);
    }
}
