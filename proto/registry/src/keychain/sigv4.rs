//! Owns the signature of the one question that Amazon is asked (AWS, "Signature Version 4").

use holdfast_proto::time::Timestamp;
use ring::{digest, hmac};

use crate::settings::Secret;

/// The question's body: a login for every registry that the key may read.
pub(super) const TOKEN_REQUEST_BODY: &str = "{}";
const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const TARGET: &str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
const SERVICE: &str = "ecr";

/// An access key at Amazon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The key's id.
    pub id: String,
    /// The key itself.
    pub secret: Secret,
    /// Comes with keys that are good for some hours only.
    pub session: Option<Secret>,
}

/// The headers of the question, with its signature.
pub(super) fn token_request(
    keys: &Keys,
    host: &str,
    region: &str,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let time = compact(now);
    let date = time.split('T').next().unwrap_or_default().to_owned();
    // In the order of their names, as the signature wants them.
    let mut headers = vec![
        ("content-type", CONTENT_TYPE.to_owned()),
        ("host", host.to_owned()),
        ("x-amz-date", time.clone()),
    ];
    if let Some(session) = &keys.session {
        headers.push(("x-amz-security-token", session.expose().to_owned()));
    }
    headers.push(("x-amz-target", TARGET.to_owned()));
    let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let lines = lines.concat();
    let body = sha256_hex(TOKEN_REQUEST_BODY.as_bytes());
    let canonical = format!("POST\n/\n\n{lines}\n{names}\n{body}");
    let scope = format!("{date}/{region}/{SERVICE}/aws4_request");
    let hashed = sha256_hex(canonical.as_bytes());
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
    let key = signing_key(keys.secret.expose(), &date, region, SERVICE);
    let signature = hex(sign(&key, to_sign.as_bytes()).as_ref());
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        keys.id
    );
    // The client writes `host` itself.
    headers.retain(|(name, _)| *name != "host");
    headers.push(("authorization", authorization));
    headers
}

/// `20150830T123600Z`.
fn compact(now: Timestamp) -> String {
    let text = now.to_string();
    let seconds = text.split('.').next().unwrap_or_default();
    let bare: String = seconds.chars().filter(|c| !"-:Z".contains(*c)).collect();
    format!("{bare}Z")
}

fn signing_key(secret: &str, date: &str, region: &str, service: &str) -> hmac::Tag {
    let first = format!("AWS4{secret}");
    let first = hmac::Key::new(hmac::HMAC_SHA256, first.as_bytes());
    let date = hmac::sign(&first, date.as_bytes());
    let region = sign(&date, region.as_bytes());
    let service = sign(&region, service.as_bytes());
    sign(&service, b"aws4_request")
}

fn sign(key: &hmac::Tag, text: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()), text)
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signing_key_is_the_one_of_amazons_own_example() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let key = signing_key(secret, "20150830", "us-east-1", "iam");
        assert_eq!(
            hex(key.as_ref()),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }

    #[test]
    fn a_question_carries_its_time_and_scope_and_no_secret() {
        let keys = Keys {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("hunter2".to_owned()),
            session: Some(Secret::new("session".to_owned())),
        };
        let now = Timestamp::from_millis(1_440_938_160_500);
        let headers = token_request(
            &keys,
            "api.ecr.eu-central-1.amazonaws.com",
            "eu-central-1",
            now,
        );
        let of = |name: &str| {
            let found = headers.iter().find(|(found, _)| *found == name);
            found.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        assert_eq!(of("x-amz-date"), "20150830T123600Z");
        let authorization = of("authorization");
        assert!(authorization.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-central-1/ecr/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature="
        ));
        assert!(!authorization.contains("hunter2"));
        assert_eq!(of("host"), "");
    }
}
