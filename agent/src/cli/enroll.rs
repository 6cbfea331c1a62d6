//! Owns `holdfast-agent enroll`: makes the device known and keeps what the server gave.

use std::io::{Read as _, Write};
use std::path::Path;

use anyhow::Context as _;
use holdfast_proto::operator::EnrolRequest;

use super::{Enroll, Output, json};
use crate::config::Settings;
use crate::control::client::{Client, Origin};
use crate::engine::Engine as _;
use crate::engine::docker::DockerEngine;
use crate::enrolment::{Enrolment, Token, hand_over, make_state_folder};
use crate::fault::chain;
use crate::lock::FolderLock;
use crate::system;

/// A key has 60 characters or so: what is longer is another file.
const MOST_KEY_BYTES: u64 = 4_096;

/// The enrolment key that the arguments give, or name a file for.
fn key(arguments: &Enroll) -> anyhow::Result<Token> {
    let text = match (&arguments.key, &arguments.key_file) {
        (Some(key), _) => key.clone(),
        (None, Some(file)) => {
            read_key(file).with_context(|| format!("--key-file {}", file.display()))?
        }
        (None, None) => anyhow::bail!("which enrolment key? give --key-file FILE, or --key KEY"),
    };
    Ok(Token::new(text))
}

fn read_key(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(file)?
        .take(MOST_KEY_BYTES)
        .read_to_string(&mut text)?;
    let key = text.trim();
    // What the file holds instead is not shown: it may be another secret.
    anyhow::ensure!(
        !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic()),
        "must hold an enrolment key and nothing else"
    );
    Ok(key.to_owned())
}

pub(super) async fn enroll(
    settings: &Settings,
    arguments: Enroll,
    output: Output,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> anyhow::Result<()> {
    let key = key(&arguments)?;
    let origin = match (&arguments.api, &settings.api.url) {
        (Some(text), _) => Origin::parse(text).map_err(|why| anyhow::anyhow!("--api: {why}"))?,
        (None, Some(origin)) => origin.clone(),
        (None, None) => {
            anyhow::bail!("which control API? give --api URL, or api.url in the configuration")
        }
    };
    if origin.is_readable_on_the_way() {
        writeln!(
            talk,
            "warning: {origin} is not encrypted: the token can be read on the way"
        )?;
    }
    make_state_folder(&settings.state_dir)?;
    // A running agent would go on with the old token.
    let _folder = FolderLock::take(&settings.state_dir)?;
    let before = match Enrolment::load(&settings.state_dir) {
        Ok(enrolment) => Some(enrolment),
        Err(crate::enrolment::EnrolmentError::Missing) => None,
        Err(error) => {
            writeln!(talk, "warning: {}; the device gets a new id", chain(&error))?;
            None
        }
    };
    let engine = DockerEngine::looking(&settings.docker.socket);
    let platform = match engine.describe().await {
        Ok(info) => info.platform,
        Err(error) => {
            let platform = system::own_platform();
            writeln!(
                talk,
                "warning: {}; enrolling as {platform}, the platform of this program",
                chain(&error)
            )?;
            platform
        }
    };
    let mut labels = settings.device.labels.clone();
    labels.extend(arguments.labels);
    let request = EnrolRequest {
        uuid: before.as_ref().map(|enrolment| enrolment.uuid),
        name: arguments
            .name
            .or_else(|| settings.device.name.clone())
            .or_else(system::host_name),
        labels,
        platform,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let client = Client::new(origin.clone(), settings.api.ca_file.as_deref())?;
    // The old token proves that this is the same device; only its own server may see it.
    let old_token = before
        .as_ref()
        .filter(|enrolment| Origin::parse(&enrolment.api_url).as_ref() == Ok(&origin))
        .map(|enrolment| &enrolment.token);
    let answer = match old_token {
        None => client.enrol(&key, &request).await,
        Some(old_token) => match client.enrol(old_token, &request).await {
            // The server forgot it, or forbade it: the key may still do.
            Err(error) if error.is_unauthorised() => client.enrol(&key, &request).await,
            other => other,
        },
    };
    let answer = answer.with_context(|| format!("enrolling at {origin} failed"))?;
    Enrolment {
        uuid: answer.uuid,
        token: Token::new(answer.token),
        api_url: origin.to_string(),
        poll_interval_seconds: answer.poll_interval_seconds,
    }
    .store(&settings.state_dir)?;
    hand_over(&settings.state_dir)?;
    match output {
        Output::Table => writeln!(out, "{}", answer.uuid)?,
        Output::Json => json(
            out,
            &serde_json::json!({ "uuid": answer.uuid, "api_url": origin.to_string() }),
        )?,
    }
    writeln!(
        talk,
        "enrolled at {origin}; start the agent with `systemctl start holdfast-agent`, or `holdfast-agent run`"
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_holds_a_key_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        assert!(read_key(&file).is_err());
        for text in ["", "\n", "two words", "hfk_a\nhfk_b", "hfk_\u{e4}"] {
            std::fs::write(&file, text).unwrap();
            let error = read_key(&file).unwrap_err();
            assert!(error.to_string().contains("an enrolment key"), "{text:?}");
        }
        std::fs::write(&file, "hfk_secret\r\n").unwrap();
        assert_eq!(read_key(&file).unwrap(), "hfk_secret");
    }
}
