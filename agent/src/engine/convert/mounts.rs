//! Owns what is mounted into a container: volumes, paths of the device, and files of secrets.
//!
//! Refuses to let an engine make a missing secret: those mounts fail the start instead.

use std::path::Path;

use bollard::models::{
    Mount as EngineMount, MountBindOptions, MountBindOptionsPropagationEnum, MountTmpfsOptions,
    MountType, MountVolumeOptions,
};
use holdfast_proto::spec::{Mount, MountKind, ServiceSpec};

use super::whole;
use crate::engine::{NewContainer, labels};
use crate::secrets;

/// The mounts in the engine's short form.
pub(super) fn binds(spec: &ServiceSpec) -> impl Iterator<Item = String> {
    spec.volumes
        .iter()
        .filter(|mount| is_short_bind(mount))
        .map(bind)
}

/// The mounts in the engine's long form: all others, then the files of secrets and configs.
pub(super) fn mounts(new: &NewContainer<'_>, runtime_dir: &Path) -> Vec<EngineMount> {
    let spec = &new.service.config;
    let long = spec.volumes.iter().filter(|mount| !is_short_bind(mount));
    let files = secrets::files(runtime_dir, new.key, spec);
    long.map(|mount| engine_mount(new, mount))
        .chain(files.into_iter().map(|file| EngineMount {
            typ: Some(MountType::BIND),
            source: Some(file.path.to_string_lossy().into_owned()),
            target: Some(file.target),
            read_only: Some(true),
            ..EngineMount::default()
        }))
        .collect()
}

/// Whether a mount needs the engine's short form: only that creates a missing path of the device.
fn is_short_bind(mount: &Mount) -> bool {
    mount.kind == MountKind::Bind
        && mount
            .bind
            .as_ref()
            .is_some_and(|bind| bind.create_host_path)
}

fn bind(mount: &Mount) -> String {
    let source = mount.source.as_deref().unwrap_or_default();
    let propagation = mount
        .bind
        .as_ref()
        .and_then(|bind| bind.propagation.as_deref());
    let options: Vec<&str> = [mount.read_only.then_some("ro"), propagation]
        .into_iter()
        .flatten()
        .collect();
    if options.is_empty() {
        format!("{source}:{}", mount.target)
    } else {
        format!("{source}:{}:{}", mount.target, options.join(","))
    }
}

fn engine_mount(new: &NewContainer<'_>, mount: &Mount) -> EngineMount {
    let app = &new.key.app;
    let kind = match mount.kind {
        MountKind::Bind => MountType::BIND,
        MountKind::Volume => MountType::VOLUME,
        MountKind::Tmpfs => MountType::TMPFS,
    };
    let source = match mount.kind {
        // As Compose does: a volume belongs to its app, not to whoever knows its name.
        MountKind::Volume => mount.source.as_ref().map(|name| format!("{app}_{name}")),
        MountKind::Bind | MountKind::Tmpfs => mount.source.clone(),
    };
    let propagation = mount
        .bind
        .as_ref()
        .and_then(|bind| bind.propagation.as_deref());
    EngineMount {
        target: Some(mount.target.clone()),
        source,
        typ: Some(kind),
        read_only: Some(mount.read_only),
        bind_options: propagation.map(|word| MountBindOptions {
            propagation: word.parse::<MountBindOptionsPropagationEnum>().ok(),
            ..MountBindOptions::default()
        }),
        volume_options: (mount.kind == MountKind::Volume).then(|| MountVolumeOptions {
            no_copy: mount.volume.as_ref().map(|volume| volume.nocopy),
            labels: Some(
                [
                    (labels::MANAGED.to_owned(), "true".to_owned()),
                    (labels::DEVICE.to_owned(), new.device.to_string()),
                    (labels::APP.to_owned(), app.to_string()),
                ]
                .into(),
            ),
            ..MountVolumeOptions::default()
        }),
        tmpfs_options: mount.tmpfs.as_ref().map(|tmpfs| MountTmpfsOptions {
            size_bytes: tmpfs.size.map(|size| whole(size.0)),
            mode: tmpfs.mode.map(i64::from),
            ..MountTmpfsOptions::default()
        }),
        ..EngineMount::default()
    }
}
