//! Owns the judgement of what a container is given of the device's files: mounts and device files.

use std::path::Path;

use bollard::models::{
    DeviceMapping, Mount, MountBindOptions, MountTmpfsOptions, MountType, MountVolumeOptions,
};

use super::{NEVER, allow, refusal};
use crate::fault::foreign;
use crate::policy::{Refusal, Rules, clean_path};

fn is_volume_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

/// Judges a path of the device that a container wants mounted.
fn bind_source(rules: &Rules, source: &str, read_only: bool, field: &str) -> Result<(), Refusal> {
    let path = clean_path(source);
    allow(
        path.as_deref()
            .is_some_and(|path| rules.allows_bind(path, read_only)),
        field,
        || {
            let how = if read_only { "" } else { " for writing" };
            let path = foreign(path.as_deref().unwrap_or(source));
            format!("the device's path {path} is not listed{how}")
        },
    )
}

/// Judges a mount in the engine's short form, taken apart as the engine takes it apart.
pub(super) fn bind(rules: &Rules, text: &str, field: &str) -> Result<(), Refusal> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, options) = match parts.as_slice() {
        [source, _target] => (*source, ""),
        [source, _target, options] => (*source, *options),
        _ => return Err(refusal(field, "it is not source:target[:options]")),
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" | "nocopy" | "private" | "rprivate" | "shared" | "rshared" | "slave"
            | "rslave" => {}
            // Such as `z`, which relabels the device's own files.
            other => {
                let other = foreign(other);
                return Err(refusal(field, format!("{NEVER} with option `{other}`")));
            }
        }
    }
    if is_volume_name(source) {
        return Ok(());
    }
    bind_source(rules, source, read_only, field)
}

/// Judges a mount in the engine's long form.
pub(super) fn mount(
    rules: &Rules,
    mount: &Mount,
    own_files: Option<&Path>,
    field: &str,
) -> Result<(), Refusal> {
    let Mount {
        target: _,
        source,
        typ,
        read_only,
        consistency,
        bind_options,
        volume_options,
        image_options,
        tmpfs_options,
    } = mount;
    let of_other_kind = |unset: &[bool]| {
        allow(unset.iter().all(|unset| *unset), field, || {
            "it has options of another kind of mount".to_owned()
        })
    };
    allow(
        consistency.is_none(),
        format!("{field}.Consistency"),
        || NEVER.to_owned(),
    )?;
    let [no_bind, no_volume, no_image, no_tmpfs] = [
        bind_options.is_none(),
        volume_options.is_none(),
        image_options.is_none(),
        tmpfs_options.is_none(),
    ];
    let source = source.as_deref();
    match typ {
        Some(MountType::BIND) => {
            of_other_kind(&[no_volume, no_image, no_tmpfs])?;
            if let Some(options) = bind_options {
                bind_mount_options(options, field)?;
            }
            let own = source
                .and_then(clean_path)
                .zip(own_files)
                .is_some_and(|(path, own)| Path::new(&path).starts_with(own));
            if own && *read_only == Some(true) {
                return Ok(());
            }
            bind_source(
                rules,
                source.unwrap_or_default(),
                *read_only == Some(true),
                field,
            )
        }
        Some(MountType::VOLUME) => {
            of_other_kind(&[no_bind, no_image, no_tmpfs])?;
            if let Some(options) = volume_options {
                volume(options, field)?;
            }
            allow(
                source.is_none_or(|name| name.is_empty() || is_volume_name(name)),
                field,
                || "its source is no name of a volume".to_owned(),
            )
        }
        Some(MountType::TMPFS) => {
            of_other_kind(&[no_bind, no_volume, no_image])?;
            if let Some(MountTmpfsOptions {
                size_bytes: _,
                mode: _,
                options,
            }) = tmpfs_options
            {
                allow(
                    options.is_none(),
                    format!("{field}.TmpfsOptions.Options"),
                    || NEVER.to_owned(),
                )?;
            }
            allow(source.is_none(), field, || {
                "memory has no source".to_owned()
            })
        }
        Some(MountType::CLUSTER | MountType::IMAGE | MountType::NPIPE) | None => {
            Err(refusal(format!("{field}.Type"), NEVER))
        }
    }
}

fn bind_mount_options(options: &MountBindOptions, at: &str) -> Result<(), Refusal> {
    let MountBindOptions {
        propagation: _,
        create_mountpoint: _,
        read_only_force_recursive: _,
        non_recursive,
        read_only_non_recursive,
    } = options;
    let unset = non_recursive.is_none() && read_only_non_recursive.is_none();
    allow(unset, format!("{at}.BindOptions"), || NEVER.to_owned())
}

/// A driver's options can make any path of the device, or a share of another machine, a volume.
fn volume(options: &MountVolumeOptions, at: &str) -> Result<(), Refusal> {
    let MountVolumeOptions {
        no_copy: _,
        labels: _,
        driver_config,
        subpath,
    } = options;
    allow(
        driver_config.is_none(),
        format!("{at}.VolumeOptions.DriverConfig"),
        || "a volume is the engine's own, without a driver and its options".to_owned(),
    )?;
    allow(
        subpath.is_none(),
        format!("{at}.VolumeOptions.Subpath"),
        || NEVER.to_owned(),
    )
}

pub(super) fn device(rules: &Rules, device: &DeviceMapping, field: &str) -> Result<(), Refusal> {
    let DeviceMapping {
        path_on_host,
        path_in_container: _,
        cgroup_permissions: _,
    } = device;
    let written = path_on_host.as_deref().unwrap_or_default();
    let path = clean_path(written);
    allow(
        path.as_deref()
            .is_some_and(|path| rules.allows_device(path)),
        field,
        || format!("the device file {} is not listed", foreign(written)),
    )
}
