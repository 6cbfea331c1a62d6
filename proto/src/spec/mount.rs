//! Owns volumes: Compose's short and long forms, and files given to a container.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;

use super::values::{ByteSize, excerpt};

/// What is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A named or anonymous volume of the engine.
    Volume,
    /// A path of the device.
    Bind,
    /// Memory.
    Tmpfs,
}

/// Options of a bind mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindOptions {
    /// Mount propagation, such as `rslave`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub propagation: Option<String>,
    /// Whether a missing path of the device is created; short forms say yes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub create_host_path: bool,
}

/// Options of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeOptions {
    /// Whether an empty volume is left empty instead of filled from the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nocopy: bool,
}

/// Options of a memory file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TmpfsOptions {
    /// Its largest size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Its permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

/// One thing mounted into a container (Compose spec, "volumes", long form).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// What is mounted.
    #[serde(rename = "type")]
    pub kind: MountKind,
    /// The device's path or the volume's name; none for tmpfs and anonymous volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The absolute path in the container.
    pub target: String,
    /// Whether the container may only read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// More about a bind mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<BindOptions>,
    /// More about a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeOptions>,
    /// More about a tmpfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<TmpfsOptions>,
}

fn is_volume_name(name: &str) -> bool {
    name.len() >= 2
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn absolute(path: &str) -> Result<String, String> {
    if path.starts_with('/') && !path.split('/').any(|part| part == "..") {
        Ok(path.to_owned())
    } else {
        Err(format!(
            "`{}` must be an absolute path without `..`",
            excerpt(path)
        ))
    }
}

fn short(text: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => (None, *target, ""),
        [source, target] => (Some(*source), *target, ""),
        [source, target, options] => (Some(*source), *target, *options),
        _ => {
            return Err(format!(
                "`{}` is not source:target[:options]",
                excerpt(text)
            ));
        }
    };
    let kind = match source {
        Some(source) if source.starts_with('/') => MountKind::Bind,
        Some(_) | None => MountKind::Volume,
    };
    let mut mount = Mount {
        kind,
        source: source.map(str::to_owned),
        target: target.to_owned(),
        read_only: false,
        bind: None,
        volume: None,
        tmpfs: None,
    };
    if kind == MountKind::Bind {
        mount.bind = Some(BindOptions {
            propagation: None,
            create_host_path: true,
        });
    }
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match (option, kind) {
            ("ro", _) => mount.read_only = true,
            ("rw", _) => mount.read_only = false,
            ("nocopy", MountKind::Volume) => mount.volume = Some(VolumeOptions { nocopy: true }),
            (
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave",
                MountKind::Bind,
            ) => {
                mount.bind = Some(BindOptions {
                    propagation: Some(option.to_owned()),
                    create_host_path: true,
                });
            }
            _ => {
                return Err(format!(
                    "`{}` is not an option of this mount",
                    excerpt(option)
                ));
            }
        }
    }
    checked(mount)
}

fn checked(mount: Mount) -> Result<Mount, String> {
    absolute(&mount.target)?;
    match (mount.kind, &mount.source) {
        (MountKind::Bind, Some(source)) => absolute(source).map(drop)?,
        (MountKind::Bind, None) => return Err("a bind mount needs a source path".to_owned()),
        (MountKind::Volume, Some(name)) if !is_volume_name(name) => {
            return Err(format!(
                "`{}` is neither an absolute path nor a volume name: a device has no project folder",
                excerpt(name)
            ));
        }
        (MountKind::Tmpfs, Some(_)) => return Err("a tmpfs has no source".to_owned()),
        (MountKind::Volume | MountKind::Tmpfs, _) => {}
    }
    let fits = match mount.kind {
        MountKind::Bind => mount.volume.is_none() && mount.tmpfs.is_none(),
        MountKind::Volume => mount.bind.is_none() && mount.tmpfs.is_none(),
        MountKind::Tmpfs => mount.bind.is_none() && mount.volume.is_none(),
    };
    if fits {
        Ok(mount)
    } else {
        Err("options of another mount type are set".to_owned())
    }
}

impl<'de> Deserialize<'de> for Mount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            #[serde(rename = "type")]
            kind: MountKind,
            source: Option<String>,
            target: String,
            #[serde(default)]
            read_only: bool,
            bind: Option<BindOptions>,
            volume: Option<VolumeOptions>,
            tmpfs: Option<TmpfsOptions>,
        }
        let mount = match Value::deserialize(deserializer)? {
            Value::String(text) => short(&text),
            value @ Value::Object(_) => {
                let long: Long = serde_json::from_value(value).map_err(de::Error::custom)?;
                let Long {
                    kind,
                    source,
                    target,
                    read_only,
                    bind,
                    volume,
                    tmpfs,
                } = long;
                checked(Mount {
                    kind,
                    source,
                    target,
                    read_only,
                    bind,
                    volume,
                    tmpfs,
                })
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
                Err("expected a volume such as \"data:/var/lib/app\"".to_owned())
            }
        };
        mount.map_err(de::Error::custom)
    }
}

/// A secret or config that a container sees as a file on a private tmpfs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileGrant {
    /// Its name; also the file's name when no target is given.
    pub source: String,
    /// The file's absolute path in the container, or its name in the default folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The file's owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The file's group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<String>,
    /// The file's permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// The file's text.
    pub content: String,
}

impl std::fmt::Debug for FileGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content may be a secret: it never reaches a log.
        f.debug_struct("FileGrant")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Result<String, serde_json::Error> {
        serde_json::from_str::<Mount>(json).map(|mount| serde_json::to_string(&mount).unwrap())
    }

    #[test]
    fn short_forms_become_long_forms_that_read_back_the_same() {
        for (short, long) in [
            (
                r#""data:/var/lib""#,
                r#"{"type":"volume","source":"data","target":"/var/lib"}"#,
            ),
            (
                r#""/etc/app:/etc/app:ro""#,
                r#"{"type":"bind","source":"/etc/app","target":"/etc/app","read_only":true,"bind":{"create_host_path":true}}"#,
            ),
            (r#""/cache""#, r#"{"type":"volume","target":"/cache"}"#),
            (
                r#"{"type":"tmpfs","target":"/run","tmpfs":{"size":"64m"}}"#,
                r#"{"type":"tmpfs","target":"/run","tmpfs":{"size":67108864}}"#,
            ),
        ] {
            assert_eq!(written(short).unwrap(), long);
            assert_eq!(written(long).unwrap(), long);
        }
    }

    #[test]
    fn refuses_relative_paths_and_foreign_options() {
        for bad in [
            r#""./data:/data""#,
            r#""data:data""#,
            r#""/a/../b:/b""#,
            r#""data:/d:shared""#,
            r#""a:/b:c:d""#,
            r#"{"type":"bind","target":"/x"}"#,
            r#"{"type":"tmpfs","source":"x","target":"/x"}"#,
            r#"{"type":"volume","source":"data","target":"/x","bind":{}}"#,
            r#"{"type":"npipe","target":"/x"}"#,
        ] {
            assert!(written(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_never_shows_its_content() {
        let grant: FileGrant =
            serde_json::from_str(r#"{"source":"key","content":"hunter2"}"#).unwrap();
        assert!(!format!("{grant:?}").contains("hunter2"));
    }
}
