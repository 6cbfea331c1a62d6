//! Facts about the files of secrets and configs.

use std::os::unix::fs::MetadataExt as _;

use serde_json::{Value, json};

use super::*;

fn key(service: &str) -> ServiceKey {
    ServiceKey {
        app: "1001".parse().unwrap(),
        service: service.parse().unwrap(),
    }
}

fn spec(config: &Value) -> ServiceSpec {
    serde_json::from_value(config.clone()).unwrap()
}

/// `/dev/shm` is memory on every Linux; the build folder's disk is not.
fn in_memory() -> (tempfile::TempDir, Place) {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = Place {
        runtime_dir: folder.path().to_owned(),
        on_disk: false,
    };
    (folder, place)
}

fn secret(content: &str) -> ServiceSpec {
    spec(&json!({ "secrets": [{ "source": "key", "content": content }] }))
}

#[test]
fn files_have_the_content_and_nobody_else_may_look() {
    let (_folder, place) = in_memory();
    let spec = spec(&json!({
        "secrets": [{ "source": "../../key", "content": "hunter2" }],
        "configs": [{ "source": "conf", "target": "etc/conf", "mode": 0o4640, "content": "x" }],
    }));
    ensure(&place, &key("web"), &spec).unwrap();
    let files = files(&place.runtime_dir, &key("web"), &spec);
    let targets: Vec<&str> = files.iter().map(|file| file.target.as_str()).collect();
    assert_eq!(targets, ["/run/secrets/../../key", "/etc/conf"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(fs::read_to_string(&files[0].path).unwrap(), "hunter2");
    assert_eq!(mode(&files[0].path), 0o444);
    assert_eq!(mode(&files[1].path), 0o640, "no special bits");
    for folder in files[0].path.ancestors().skip(1).take(4) {
        assert_eq!(mode(folder), 0o700, "{}", folder.display());
        assert!(folder.starts_with(&place.runtime_dir));
    }
}

#[test]
fn a_file_that_is_there_is_not_touched_and_a_missing_one_comes_back() {
    let (_folder, place) = in_memory();
    let spec = secret("hunter2");
    ensure(&place, &key("web"), &spec).unwrap();
    let path = &files(&place.runtime_dir, &key("web"), &spec)[0].path;
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let before = inode(path);
    ensure(&place, &key("web"), &spec).unwrap();
    assert_eq!(inode(path), before);
    // What a crash in the middle of writing leaves behind.
    fs::remove_file(path).unwrap();
    fs::write(path.with_file_name("half"), "hun").unwrap();
    ensure(&place, &key("web"), &spec).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "hunter2");
    // What Podman makes of it.
    fs::remove_file(path).unwrap();
    fs::create_dir(path).unwrap();
    ensure(&place, &key("web"), &spec).unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "hunter2");
}

#[test]
fn a_folder_on_a_disk_is_refused_unless_that_is_meant() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let mut place = Place {
        runtime_dir: folder.path().to_owned(),
        on_disk: false,
    };
    let error = ensure(&place, &key("web"), &secret("hunter2")).unwrap_err();
    assert!(matches!(error, SecretsError::OnDisk { .. }), "{error}");
    assert!(!error.to_string().contains("hunter2"));
    let written = files(&place.runtime_dir, &key("web"), &secret("hunter2"));
    assert!(!written[0].path.exists());
    // A service without secrets needs no memory.
    ensure(&place, &key("web"), &ServiceSpec::default()).unwrap();
    place.on_disk = true;
    ensure(&place, &key("web"), &secret("hunter2")).unwrap();
    assert!(written[0].path.exists());
}

#[test]
fn owners_are_given_or_the_reason_is_said() {
    let (_folder, place) = in_memory();
    let grant = |uid: &str| {
        spec(&json!({ "secrets": [{ "source": "key", "uid": uid, "gid": "8", "content": "c" }] }))
    };
    let error = ensure(&place, &key("web"), &grant("root")).unwrap_err();
    assert!(error.to_string().contains("`uid` of key"), "{error}");
    let spec = grant("7");
    match ensure(&place, &key("web"), &spec) {
        Ok(()) => {
            let path = &files(&place.runtime_dir, &key("web"), &spec)[0].path;
            let found = fs::metadata(path).unwrap();
            assert_eq!((found.uid(), found.gid()), (7, 8));
        }
        // Where the tests do not run as root.
        Err(error) => assert!(error.to_string().contains("CAP_CHOWN"), "{error}"),
    }
}

#[test]
fn only_the_files_of_wanted_specs_stay() {
    let (_folder, place) = in_memory();
    let (old, new, other) = (secret("old"), secret("new"), secret("other"));
    for (service, spec) in [("web", &old), ("web", &new), ("db", &other)] {
        ensure(&place, &key(service), spec).unwrap();
    }
    let exists = |service: &str, spec: &ServiceSpec| {
        let files = files(&place.runtime_dir, &key(service), spec);
        files[0].path.exists()
    };
    keep_only(&place.runtime_dir, [(key("web"), &new)]).unwrap();
    assert!(exists("web", &new) && !exists("web", &old) && !exists("db", &other));
    keep_only(&place.runtime_dir, []).unwrap();
    assert!(!place.runtime_dir.join("files/1001").exists());
    keep_only(Path::new("/nowhere"), []).unwrap();
}

#[test]
fn what_is_told_of_a_spec_never_has_the_content() {
    let spec = secret("hunter2");
    let (_folder, place) = in_memory();
    let said = format!(
        "{spec:?} {:?}",
        files(&place.runtime_dir, &key("web"), &spec)
    );
    assert!(!said.contains("hunter2"));
}
