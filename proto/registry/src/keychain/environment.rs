//! Owns what the environment of a program says about logins: a login itself, where docker's configuration
//! is, and which clouds to ask.
//!
//! Refuses to ask a cloud that nobody named: its logins are this machine's own.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{
    Cloud, CloudKeychain, DEFAULT_REGISTRY, DockerConfig, DockerConfigError, Keychain,
    KeychainError, Keychains, Keys, Now, canonical,
};
use crate::settings::{Credentials, Secret};

/// Environment variables with a login.
const ENV_USERNAME: &str = "DOCKER_REGISTRY_USERNAME";
const ENV_PASSWORD: &str = "DOCKER_REGISTRY_PASSWORD";
/// The registry that they are for.
const ENV_REGISTRY: &str = "DOCKER_REGISTRY";
/// The folder of docker's `config.json`.
const ENV_DOCKER: &str = "DOCKER_CONFIG";
/// Clouds whose logins are used, with commas between them.
const ENV_CLOUDS: &str = "HOLDFAST_CLOUD_LOGINS";

/// One login from the environment, for one registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    registry: String,
    credentials: Credentials,
}

impl Environment {
    /// Reads `DOCKER_REGISTRY_USERNAME` and `DOCKER_REGISTRY_PASSWORD`, for `DOCKER_REGISTRY` or Docker Hub.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| variable(name).filter(|text| !text.is_empty());
        Some(Self {
            registry: canonical(&set(ENV_REGISTRY).unwrap_or_else(|| DEFAULT_REGISTRY.to_owned())),
            credentials: Credentials::Password {
                username: set(ENV_USERNAME)?,
                password: Secret::new(set(ENV_PASSWORD)?),
            },
        })
    }
}

impl Keychain for Environment {
    fn may_know(&self, registry: &str) -> bool {
        registry == self.registry
    }

    fn find<'a>(
        &'a self,
        registry: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credentials>, KeychainError>> {
        let known = self.may_know(registry).then(|| self.credentials.clone());
        Box::pin(std::future::ready(Ok(known)))
    }
}

/// What the environment says cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// Docker's configuration is damaged.
    #[error(transparent)]
    Docker(#[from] DockerConfigError),
    /// A cloud's keychain cannot be made.
    #[error(transparent)]
    Cloud(#[from] KeychainError),
    /// A word is no cloud.
    #[error("`{0}` in {ENV_CLOUDS} is none of amazon, google, azure")]
    NoCloud(String),
    /// Amazon's keys are missing.
    #[error("{ENV_CLOUDS} names amazon, but {0} is not set")]
    NoKey(&'static str),
}

impl Keychains {
    /// What an environment knows, in this order: its own login, docker's configuration (`DOCKER_CONFIG`, or
    /// `.docker` in `HOME`; none when there is no file), the clouds of `HOLDFAST_CLOUD_LOGINS`.
    ///
    /// Beside it stands whatever is named there and cannot be used; it takes nothing from the rest. The
    /// process must have a TLS provider by now.
    pub fn of_environment(
        variable: impl Fn(&str) -> Option<String>,
        now: &Now,
    ) -> (Self, Vec<EnvironmentError>) {
        let set = |name: &str| variable(name).filter(|text| !text.is_empty());
        let mut all: Vec<Arc<dyn Keychain>> = Vec::new();
        let mut faults = Vec::new();
        if let Some(own) = Environment::read(&variable) {
            all.push(Arc::new(own));
        }
        let named = set(ENV_DOCKER).map(PathBuf::from);
        let folder = named.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".docker")));
        let file = folder.map(|folder| folder.join("config.json"));
        if let Some(file) = file.filter(|file| file.exists()) {
            match DockerConfig::load(&file) {
                Ok(config) => all.push(Arc::new(config)),
                Err(error) => faults.push(error.into()),
            }
        }
        let words = set(ENV_CLOUDS).unwrap_or_default();
        let words = words.split(',').map(str::trim);
        for word in words.filter(|word| !word.is_empty()) {
            match cloud(word, &set, now) {
                Ok(cloud) => all.push(Arc::new(cloud)),
                Err(error) => faults.push(error),
            }
        }
        (Self(all), faults)
    }
}

fn cloud(
    word: &str,
    set: &impl Fn(&str) -> Option<String>,
    now: &Now,
) -> Result<CloudKeychain, EnvironmentError> {
    let key = |name| set(name).ok_or(EnvironmentError::NoKey(name));
    let cloud = match word {
        "amazon" => Cloud::Amazon {
            keys: Keys {
                id: key("AWS_ACCESS_KEY_ID")?,
                secret: Secret::new(key("AWS_SECRET_ACCESS_KEY")?),
                session: set("AWS_SESSION_TOKEN").map(Secret::new),
            },
            endpoint: None,
            now: Arc::clone(now),
        },
        "google" => Cloud::Google { metadata: None },
        "azure" => Cloud::Azure {
            metadata: None,
            exchange: None,
        },
        other => return Err(EnvironmentError::NoCloud(other.chars().take(40).collect())),
    };
    Ok(CloudKeychain::new(cloud)?)
}

#[cfg(test)]
mod tests {
    use holdfast_proto::time::Timestamp;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Option<Environment> {
        Environment::read(|wanted| {
            let mut variables = variables.iter();
            let found = variables.find(|(name, _)| *name == wanted)?;
            Some(found.1.to_owned())
        })
    }

    #[tokio::test]
    async fn a_login_of_the_environment_is_for_one_registry() {
        let hub = [(ENV_USERNAME, "reader"), (ENV_PASSWORD, "hunter2")];
        let found = environment(&hub).unwrap();
        assert!(found.find("docker.io").await.unwrap().is_some());
        assert!(found.find("evil.example").await.unwrap().is_none());
        assert!(!format!("{found:?}").contains("hunter2"));
        let own = [&hub[..], &[(ENV_REGISTRY, "https://reg.example:5000/v2/")]].concat();
        let own = Keychains(vec![Arc::new(environment(&own).unwrap())]);
        assert!(own.find("reg.example:5000").await.unwrap().is_some());
        assert!(own.find("docker.io").await.unwrap().is_none());
        assert_eq!(environment(&hub[..1]), None);
        assert_eq!(environment(&[hub[0], (ENV_PASSWORD, "")]), None);
    }

    #[test]
    fn an_environment_says_which_keychains_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let docker = folder.path().join(".docker");
        std::fs::create_dir(&docker).unwrap();
        let file = docker.join("config.json");
        std::fs::write(
            &file,
            r#"{"auths":{"reg.example":{"username":"u","password":"p"}}}"#,
        )
        .unwrap();
        let home = folder.path().display().to_string();
        let of = |variables: &[(&str, &str)]| {
            let now: Now = Arc::new(|| Timestamp::from_millis(0));
            let variable = |wanted: &str| {
                let found = variables.iter().find(|(name, _)| *name == wanted)?;
                Some(found.1.to_owned())
            };
            Keychains::of_environment(variable, &now)
        };
        let both = [
            ("HOME", home.as_str()),
            (ENV_USERNAME, "a"),
            (ENV_PASSWORD, "b"),
        ];
        let (found, faults) = of(&both);
        assert!(faults.is_empty(), "{faults:?}");
        for (registry, expected) in [
            ("reg.example", true),
            ("docker.io", true),
            ("other.example", false),
        ] {
            assert_eq!(found.may_know(registry), expected, "{registry}");
        }
        let (none, faults) = of(&[(ENV_DOCKER, "/nowhere")]);
        assert_eq!((none.0.len(), faults.len()), (0, 0));
        let error = |variables: &[(&str, &str)]| match of(variables).1.as_slice() {
            [error] => error.to_string(),
            other => panic!("one fault expected: {other:?}"),
        };
        assert!(error(&[(ENV_CLOUDS, "oracle")]).contains("`oracle`"));
        assert_eq!(of(&[(ENV_CLOUDS, "oracle,amazon")]).1.len(), 2);
        assert!(error(&[(ENV_CLOUDS, "amazon")]).contains("AWS_ACCESS_KEY_ID"));
        std::fs::write(&file, "{").unwrap();
        assert!(error(&both).contains("line 1"));
        // What is damaged takes nothing from the rest.
        let (left, _) = of(&both);
        assert!(left.may_know("docker.io") && !left.may_know("reg.example"));
    }
}
