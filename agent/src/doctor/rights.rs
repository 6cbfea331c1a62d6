//! Owns looking at who may do what: the state folder, the engine's socket, files with settings and secrets.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::Check;
use crate::config::Settings;
use crate::enrolment;

/// Groups that the agent's unit gives it.
const OWN_GROUPS: [&str; 2] = ["docker", "holdfast"];
/// The user that the unit runs it as.
const OWN_USER: &str = "holdfast-agent";

pub(super) fn state_folder(folder: &Path) -> Check {
    let name = "state folder";
    let probe = folder.join("doctor.probe");
    let written = crate::durable::replace(&probe, b"x").and_then(|()| std::fs::remove_file(&probe));
    let shown = folder.display();
    match written {
        Ok(()) => Check::ok(name, format!("{shown} can be written")),
        Err(error) => Check::wrong(name, format!("{shown} cannot be written: {error}")).advice(
            "run this as root or as the agent's user; else look at owner, mount and free space",
        ),
    }
}

/// Whether the agent of the unit may open the engine's socket, and who else.
pub(super) fn engine_socket(socket: &Path, groups: &Path) -> Check {
    let (name, shown) = ("engine's socket", socket.display());
    let meta = match std::fs::metadata(socket) {
        Ok(meta) if meta.file_type().is_socket() => meta,
        Ok(_) => {
            return Check::wrong(name, format!("{shown} is no socket"))
                .advice("look at docker.socket in agent.yaml");
        }
        Err(error) => {
            return Check::wrong(name, format!("{shown}: {error}")).advice(
                "is an engine installed and running? Podman has another socket: name it in docker.socket \
                 in agent.yaml, and see the drop-ins in /usr/share/doc/holdfast-agent/examples",
            );
        }
    };
    let mode = meta.mode() & 0o777;
    let group = group(groups, meta.gid());
    let of = group.as_ref().map_or_else(
        || format!("group {}", meta.gid()),
        |group| format!("group {}", group.name),
    );
    let found = format!(
        "{shown} has mode {mode:04o} and belongs to user {} and {of}",
        meta.uid()
    );
    if mode & 0o002 != 0 {
        return Check::warning(name, found).advice(format!(
            "every program on this machine can become root by it: chmod 660 {shown}"
        ));
    }
    // A rootless engine's socket is its user's alone, and so is the agent.
    let may_open =
        meta.uid() != 0 || mode & 0o020 != 0 && group.is_some_and(|group| group.is_the_agents());
    if may_open {
        Check::ok(name, found)
    } else {
        Check::warning(name, found).advice(
            "the agent's unit is in the groups docker and holdfast: give the socket one of them, or the \
             unit the socket's group with a drop-in (SupplementaryGroups=)",
        )
    }
}

struct Group {
    name: String,
    has_the_agent: bool,
}

impl Group {
    fn is_the_agents(&self) -> bool {
        self.has_the_agent || OWN_GROUPS.contains(&self.name.as_str())
    }
}

/// What /etc/group says of a group.
fn group(file: &Path, gid: u32) -> Option<Group> {
    let text = std::fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == gid).then(|| Group {
            name: name.to_owned(),
            has_the_agent: fields
                .next()
                .is_some_and(|members| members.split(',').any(|member| member == OWN_USER)),
        })
    })
}

/// Settings that others could write, secrets that others can read.
pub(super) fn files(settings: &Settings, config: &Path) -> Check {
    let name = "files";
    let mut faults = Vec::new();
    if let Some(mode) = mode(config)
        && mode & 0o022 != 0
    {
        faults.push((config, "can be written by others", "go-w"));
    }
    let token = enrolment::path_in(&settings.state_dir);
    let secrets = [
        Some(token.as_path()),
        settings.pull.credentials_file.as_deref(),
        settings.peers.key_file.as_deref(),
    ];
    for file in secrets.into_iter().flatten() {
        if mode(file).is_some_and(|mode| mode & 0o007 != 0) {
            faults.push((file, "can be read by others", "o-rwx"));
        }
    }
    let Some((first, _, change)) = faults.first() else {
        return Check::ok(name, "settings and secrets are closed to others");
    };
    let advice = format!("chmod {change} {}", first.display());
    let found: Vec<String> = faults
        .iter()
        .map(|(file, what, _)| format!("{} {what}", file.display()))
        .collect();
    Check::wrong(name, found.join("; ")).advice(advice)
}

/// A file's permissions; nothing of one that is not there, or cannot be looked at.
fn mode(file: &Path) -> Option<u32> {
    std::fs::metadata(file).ok().map(|meta| meta.mode() & 0o777)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt as _;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_written_is_wrong_and_nothing_is_left_in_one_that_can() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state_folder(folder.path()).verdict, Verdict::Ok);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let missing = state_folder(&folder.path().join("none"));
        assert_eq!(missing.verdict, Verdict::Wrong);
        assert!(missing.advice.is_some());
    }

    #[test]
    fn settings_that_others_write_and_secrets_that_others_read_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("agent.yaml");
        let text = format!("state_dir: {}\n", folder.path().display());
        write(&config, &text).unwrap();
        let token = folder.path().join("enrolment.json");
        write(&token, "{}").unwrap();
        let settings = Settings::parse(&config, &text, &[]).unwrap();
        let verdict = |config_mode, token_mode| {
            set_permissions(&config, Permissions::from_mode(config_mode)).unwrap();
            set_permissions(&token, Permissions::from_mode(token_mode)).unwrap();
            files(&settings, &config)
        };
        assert_eq!(verdict(0o644, 0o600).verdict, Verdict::Ok);
        let advice = verdict(0o664, 0o600).advice.unwrap();
        assert!(advice.starts_with("chmod go-w ") && advice.ends_with("agent.yaml"));
        let both = verdict(0o666, 0o604);
        assert_eq!(both.verdict, Verdict::Wrong);
        assert!(both.found.contains("enrolment.json can be read by others"));
        let missing = files(&settings, Path::new("/nowhere/agent.yaml"));
        assert_eq!(missing.verdict, Verdict::Wrong, "the token is still open");
    }

    #[test]
    fn the_sockets_group_must_be_one_that_the_unit_has() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("engine.sock");
        let groups = folder.path().join("group");
        assert_eq!(engine_socket(&socket, &groups).verdict, Verdict::Wrong);
        write(&socket, "").unwrap();
        assert_eq!(engine_socket(&socket, &groups).verdict, Verdict::Wrong);
        std::fs::remove_file(&socket).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let verdict = |mode, text: &str| {
            set_permissions(&socket, Permissions::from_mode(mode)).unwrap();
            write(&groups, text).unwrap();
            engine_socket(&socket, &groups).verdict
        };
        let meta = std::fs::metadata(&socket).unwrap();
        let gid = meta.gid();
        let line = |name: &str, members: &str| format!("daemon:x:1:\n{name}:x:{gid}:{members}\n");
        assert_eq!(verdict(0o666, &line("docker", "")), Verdict::Warning);
        assert_eq!(verdict(0o660, &line("docker", "")), Verdict::Ok);
        // Root's socket for root alone; an ordinary user's is that user's engine.
        let closed = if meta.uid() == 0 {
            Verdict::Warning
        } else {
            Verdict::Ok
        };
        assert_eq!(verdict(0o600, &line("docker", "")), closed);
        assert_eq!(verdict(0o660, &line("wheel", "till")), closed);
        assert_eq!(
            verdict(0o660, &line("wheel", "till,holdfast-agent")),
            Verdict::Ok
        );
        assert_eq!(verdict(0o660, ""), closed);
    }
}
