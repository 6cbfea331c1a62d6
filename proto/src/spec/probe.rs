//! Owns the health probe that the agent itself runs while a container is on trial.
//!
//! It stands beside Compose's `healthcheck`, which the engine runs: a probe needs no shell and no
//! program in the image. Refuses a probe that could never pass, naming the field.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::values::{Period, excerpt};

/// How often a probe may be asked, how long one may take, how long failures may be forgiven.
const INTERVAL_MS: std::ops::RangeInclusive<u64> = 100..=3_600_000;
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 10..=600_000;
const MAX_START_PERIOD_MS: u64 = 3_600_000;
/// More failures in a row than anybody waits for.
const MAX_RETRIES: u32 = 1_000;
/// Longer paths and commands are mistakes.
const MAX_PATH_CHARS: usize = 2_048;
const MAX_WORDS: usize = 256;

/// What is asked, and how a container on trial answers for itself.
///
/// Written with exactly one of `http`, `tcp` and `exec`:
/// `{"http": {"port": 8080, "path": "/health"}, "interval": "1s"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// What is asked.
    #[serde(flatten)]
    pub action: ProbeAction,
    /// Time between two questions.
    pub interval: Period,
    /// Time after which a question counts as failed.
    pub timeout: Period,
    /// Failures in a row, after the start period, that mean no.
    pub retries: u32,
    /// Time after the start in which failures do not count; a success does.
    pub start_period: Period,
}

/// One way to ask a container whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeAction {
    /// A GET over plain HTTP to the container's own address; redirects are not followed.
    Http(HttpProbe),
    /// A connection to the container's own address.
    Tcp(TcpProbe),
    /// A program inside the container and its arguments; 0 means well. No shell is involved.
    Exec(Vec<String>),
}

/// Where a probe over HTTP asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// The port inside the container.
    pub port: u16,
    /// The path, with its query if it has one.
    pub path: String,
    /// The one status that means well; any from 200 to 399 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// Where a probe connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// The port inside the container.
    pub port: u16,
}

impl<'de> Deserialize<'de> for Probe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            http: Option<HttpProbe>,
            tcp: Option<TcpProbe>,
            exec: Option<Vec<String>>,
            interval: Option<Period>,
            timeout: Option<Period>,
            retries: Option<u32>,
            start_period: Option<Period>,
        }
        let Written {
            http,
            tcp,
            exec,
            interval,
            timeout,
            retries,
            start_period,
        } = Written::deserialize(deserializer)?;
        let action = match (http, tcp, exec) {
            (Some(http), None, None) => ProbeAction::Http(http),
            (None, Some(tcp), None) => ProbeAction::Tcp(tcp),
            (None, None, Some(words)) => ProbeAction::Exec(words),
            (None, None, None) => {
                return Err(de::Error::custom(
                    "a probe asks something: write one of http, tcp and exec",
                ));
            }
            (_, _, _) => {
                return Err(de::Error::custom(
                    "a probe asks one thing: keep one of http, tcp and exec",
                ));
            }
        };
        let second = Period::from_millis(1_000);
        let probe = Self {
            action,
            interval: interval.unwrap_or(second),
            timeout: timeout.unwrap_or(second),
            retries: retries.unwrap_or(3),
            start_period: start_period.unwrap_or(Period::from_millis(0)),
        };
        probe.check().map_err(de::Error::custom)?;
        Ok(probe)
    }
}

impl Probe {
    fn check(&self) -> Result<(), String> {
        match &self.action {
            ProbeAction::Http(http) => check_http(http)?,
            ProbeAction::Tcp(tcp) => check_port("tcp", tcp.port)?,
            ProbeAction::Exec(words) => check_words(words)?,
        }
        if !INTERVAL_MS.contains(&self.interval.as_millis()) {
            return Err("interval: write 100ms to 1h".to_owned());
        }
        if !TIMEOUT_MS.contains(&self.timeout.as_millis()) {
            return Err("timeout: write 10ms to 10m".to_owned());
        }
        if !(1..=MAX_RETRIES).contains(&self.retries) {
            return Err(format!("retries: write 1 to {MAX_RETRIES}"));
        }
        if self.start_period.as_millis() > MAX_START_PERIOD_MS {
            return Err("start_period: write at most 1h".to_owned());
        }
        Ok(())
    }
}

fn check_port(kind: &str, port: u16) -> Result<(), String> {
    if port == 0 {
        return Err(format!("{kind}.port: write a port from 1 to 65535"));
    }
    Ok(())
}

fn check_http(http: &HttpProbe) -> Result<(), String> {
    check_port("http", http.port)?;
    // What cannot stand in a request line would end it early and say something else.
    let plain = http.path.bytes().all(|byte| byte.is_ascii_graphic());
    if !http.path.starts_with('/') || !plain || http.path.contains('#') {
        return Err(format!(
            "http.path: `{}` is not a path such as /health",
            excerpt(&http.path)
        ));
    }
    if http.path.len() > MAX_PATH_CHARS {
        return Err(format!(
            "http.path: write at most {MAX_PATH_CHARS} characters"
        ));
    }
    if http
        .status
        .is_some_and(|status| !(200..=599).contains(&status))
    {
        return Err("http.status: write a status from 200 to 599".to_owned());
    }
    Ok(())
}

fn check_words(words: &[String]) -> Result<(), String> {
    if words.first().is_none_or(String::is_empty) {
        return Err("exec: write a program and its arguments".to_owned());
    }
    if words.len() > MAX_WORDS {
        return Err(format!("exec: write at most {MAX_WORDS} words"));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err("exec: a word cannot contain a zero byte".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Probe, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_written_has_one_canonical_form() {
        for (written, canonical) in [
            (
                r#"{"tcp":{"port":5432}}"#,
                r#"{"tcp":{"port":5432},"interval":"1s","timeout":"1s","retries":3,"start_period":"0s"}"#,
            ),
            (
                r#"{"http":{"port":80,"path":"/ok?x=1","status":204},"interval":"500ms","retries":1}"#,
                r#"{"http":{"port":80,"path":"/ok?x=1","status":204},"interval":"500ms","timeout":"1s","retries":1,"start_period":"0s"}"#,
            ),
            (
                r#"{"exec":["/bin/check","-q"],"start_period":"1m"}"#,
                r#"{"exec":["/bin/check","-q"],"interval":"1s","timeout":"1s","retries":3,"start_period":"1m"}"#,
            ),
        ] {
            let probe = read(written).unwrap();
            assert_eq!(serde_json::to_string(&probe).unwrap(), canonical);
            assert_eq!(read(canonical).unwrap(), probe);
        }
    }

    #[test]
    fn a_probe_that_could_never_pass_is_refused_with_the_field() {
        for (bad, expected) in [
            ("{}", "write one of http, tcp and exec"),
            (
                r#"{"tcp":{"port":1},"exec":["x"]}"#,
                "keep one of http, tcp and exec",
            ),
            (r#"{"tcp":{"port":0}}"#, "tcp.port"),
            (r#"{"tcp":{"port":70000}}"#, "70000"),
            (r#"{"tcp":{"port":1,"host":"x"}}"#, "unknown field `host`"),
            (r#"{"http":{"port":80,"path":"health"}}"#, "http.path"),
            (
                r#"{"http":{"port":80,"path":"/a b HTTP/1.1"}}"#,
                "http.path",
            ),
            (r#"{"http":{"port":80,"path":"/a\r\nX: y"}}"#, "http.path"),
            (r#"{"http":{"port":80}}"#, "missing field `path`"),
            (
                r#"{"http":{"port":80,"path":"/","status":100}}"#,
                "http.status",
            ),
            (r#"{"exec":[]}"#, "exec"),
            (r#"{"exec":[""]}"#, "exec"),
            (r#"{"exec":["a\u0000b"]}"#, "exec"),
            (r#"{"exec":"true"}"#, "sequence"),
            (r#"{"tcp":{"port":1},"interval":"0s"}"#, "interval"),
            (r#"{"tcp":{"port":1},"timeout":"0s"}"#, "timeout"),
            (r#"{"tcp":{"port":1},"retries":0}"#, "retries"),
            (r#"{"tcp":{"port":1},"start_period":"2h"}"#, "start_period"),
            (
                r#"{"tcp":{"port":1},"every":"1s"}"#,
                "unknown field `every`",
            ),
        ] {
            let fault = read(bad).unwrap_err();
            assert!(fault.contains(expected), "{bad}: {fault}");
        }
    }
}
