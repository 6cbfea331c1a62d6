//! Owns the socket's place in the file system: made for owner and group, never taken from another agent.

use std::fs::Permissions;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use tokio::net::UnixListener;

/// The group whose members may use the local API, where it exists.
const GROUP: &str = "holdfast";

/// Listens on `path`; what an agent that died left there is replaced.
pub(super) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            let detail = format!("{} is there and is no socket", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, detail));
        }
        Ok(_) => {
            if UnixStream::connect(path).is_ok() {
                let detail = format!("another agent listens on {}", path.display());
                return Err(Error::new(ErrorKind::AddrInUse, detail));
            }
            std::fs::remove_file(path)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    // Until here only the owner can write to it, and so connect: no usual umask gives more.
    if let Some(group) = group_id(&std::fs::read_to_string("/etc/group").unwrap_or_default()) {
        // Not a member of it: the group that the folder gave must do.
        let _ = std::os::unix::fs::chown(path, None, Some(group));
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// The id of [`GROUP`] in the text of /etc/group (group(5)).
fn group_id(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let named = fields.next() == Some(GROUP);
        let id = fields.nth(1)?.parse().ok()?;
        named.then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn is_open_to_owner_and_group_and_replaces_only_what_a_dead_agent_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "the kernel leaves the file behind");
        drop(listen(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let no_folder = folder.path().join("none/agent.sock");
        assert_eq!(listen(&no_folder).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_group_is_found_by_its_whole_name() {
        let groups = "root:x:0:\nholdfasters:x:7:\nbroken\nholdfast:x:998:pi,anna\n";
        assert_eq!(group_id(groups), Some(998));
        assert_eq!(group_id("root:x:0:"), None);
    }
}
