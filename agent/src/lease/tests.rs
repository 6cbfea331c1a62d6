//! Facts about lease files.

use std::fs;

use super::*;

struct Folder(tempfile::TempDir, LeaseFiles);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = LeaseFiles::new(folder.path());
        Self(folder, files)
    }

    fn write(&self, place: &str, content: &str) -> PathBuf {
        let path = self.0.path().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn look(&mut self, now_ms: u64) -> (Option<String>, Option<String>) {
        let key = key();
        let found = self.1.look(std::iter::once(&key), now_ms);
        let words = |held: &Held| held.to_string();
        (
            found.device.as_ref().map(words),
            found.services.get(&key).map(words),
        )
    }
}

fn key() -> ServiceKey {
    ServiceKey {
        app: "1001".parse().unwrap(),
        service: "web".parse().unwrap(),
    }
}

#[test]
fn a_file_locks_its_service_or_the_device_until_it_is_gone() {
    let mut folder = Folder::new();
    assert_eq!(folder.look(0), (None, None));
    let lock = folder.write(
        "1001/web/update.lock",
        r#"{"owner":"till","reason":"a sale is open"}"#,
    );
    folder.write("1001/other/update.lock", "");
    assert_eq!(
        folder.look(0),
        (None, Some("locked by till: a sale is open".to_owned()))
    );
    assert!(folder.look(u64::MAX).1.is_some());
    fs::remove_file(lock).unwrap();
    folder.write("update.lock", " \n");
    assert_eq!(folder.look(0), (Some("locked".to_owned()), None));
}

#[test]
fn a_lease_ends_so_long_after_it_was_first_seen_and_can_be_renewed() {
    let mut folder = Folder::new();
    let lease = r#"{"ttl_seconds":60}"#;
    let path = folder.write("update.lock", lease);
    assert!(folder.look(5_000).0.is_some());
    assert!(folder.look(64_999).0.is_some());
    assert!(folder.look(65_000).0.is_none());
    assert!(folder.look(u64::MAX).0.is_none(), "it stays ended");
    // Written again, or touched, it is a new lease.
    let later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert!(folder.look(70_000).0.is_some());
    assert!(folder.look(130_000).0.is_none());
    folder.write("update.lock", r#"{"ttl_seconds":60,"owner":"x"}"#);
    assert!(folder.look(140_000).0.is_some());
    // One that was gone for a look begins anew.
    fs::remove_file(&path).unwrap();
    assert!(folder.look(199_000).0.is_none());
    folder.write("update.lock", lease);
    assert!(folder.look(250_000).0.is_some());
}

#[test]
fn what_cannot_be_read_is_a_lock_that_never_ends() {
    let mut folder = Folder::new();
    let unreadable = Some("locked: unreadable lock".to_owned());
    for garbage in [
        "{",
        "locked",
        r#"{"ttl":60}"#,
        r#"{"ttl_seconds":-1}"#,
        "\u{0}",
        &" ".repeat(5_000),
    ] {
        folder.write("update.lock", garbage);
        assert_eq!(folder.look(0).0, unreadable, "{garbage}");
        assert_eq!(folder.look(u64::MAX).0, unreadable, "{garbage}");
    }
}

#[test]
fn links_pipes_and_folders_are_not_followed_and_not_waited_for() {
    let mut folder = Folder::new();
    let unreadable = Some("locked: unreadable lock".to_owned());
    let path = folder.0.path().join("update.lock");
    std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
    assert_eq!(folder.look(0).0, unreadable);
    fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    assert_eq!(folder.look(0).0, unreadable);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(folder.look(0).0, unreadable);
    // A file where a folder should be holds no locks.
    fs::write(folder.0.path().join("1001"), "").unwrap();
    assert_eq!(folder.look(0).1, None);
}

#[test]
fn foreign_words_are_bounded_and_on_one_line() {
    let mut folder = Folder::new();
    let long = "x".repeat(1_000);
    folder.write(
        "update.lock",
        &format!(r#"{{"owner":"a\u001b[31m\nb","reason":"{long}"}}"#),
    );
    let said = folder.look(0).0.unwrap();
    assert!(
        said.starts_with("locked by a [31m b: xxx") && said.len() < 450,
        "{said}"
    );
}
