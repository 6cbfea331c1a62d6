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

/// A question to one of Amazon's services, as far as its signature counts.
struct Question<'a> {
    method: &'a str,
    region: &'a str,
    service: &'a str,
    /// `20150830T123600Z`.
    time: &'a str,
    /// In the order of their names.
    headers: &'a [(&'static str, String)],
    body: &'a str,
}

impl Question<'_> {
    fn scope(&self) -> String {
        let date = self.time.split('T').next().unwrap_or_default();
        let Self {
            region, service, ..
        } = self;
        format!("{date}/{region}/{service}/aws4_request")
    }

    fn signed_names(&self) -> String {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }

    /// The signature, by the four steps of Amazon's description; the path is `/`, without a query.
    fn signature(&self, secret: &Secret) -> String {
        let lines = self.headers.iter();
        let lines: Vec<String> = lines
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let canonical = format!(
            "{}\n/\n\n{}\n{}\n{}",
            self.method,
            lines.concat(),
            self.signed_names(),
            sha256_hex(self.body.as_bytes())
        );
        let (time, scope) = (self.time, self.scope());
        let hashed = sha256_hex(canonical.as_bytes());
        let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashed}");
        let date = time.split('T').next().unwrap_or_default();
        let key = signing_key(secret.expose(), date, self.region, self.service);
        hex(sign(&key, to_sign.as_bytes()).as_ref())
    }
}

/// The headers of the question for a login, with its signature.
pub(super) fn token_request(
    keys: &Keys,
    host: &str,
    region: &str,
    now: Timestamp,
) -> Vec<(&'static str, String)> {
    let time = compact(now);
    let mut headers = vec![
        ("content-type", CONTENT_TYPE.to_owned()),
        ("host", host.to_owned()),
        ("x-amz-date", time.clone()),
    ];
    if let Some(session) = &keys.session {
        headers.push(("x-amz-security-token", session.expose().to_owned()));
    }
    headers.push(("x-amz-target", TARGET.to_owned()));
    let question = Question {
        method: "POST",
        region,
        service: SERVICE,
        time: &time,
        headers: &headers,
        body: TOKEN_REQUEST_BODY,
    };
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={}, Signature={}",
        keys.id,
        question.scope(),
        question.signed_names(),
        question.signature(&keys.secret)
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
    fn signatures_are_those_of_amazons_test_suite() {
        let secret = Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned());
        let time = "20150830T123600Z";
        let plain = vec![
            ("host", "example.amazonaws.com".to_owned()),
            ("x-amz-date", time.to_owned()),
        ];
        let form = [
            vec![(
                "content-type",
                "application/x-www-form-urlencoded".to_owned(),
            )],
            plain.clone(),
        ]
        .concat();
        for (method, headers, body, expected) in [
            (
                "GET",
                &plain,
                "",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "POST",
                &plain,
                "",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "POST",
                &form,
                "Param1=value1",
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
        ] {
            let question = Question {
                method,
                region: "us-east-1",
                service: "service",
                time,
                headers,
                body,
            };
            assert_eq!(question.signature(&secret), expected, "{method} {body}");
        }
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
