//! Owns platforms: their normal form and which platform's image another platform can run.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// The text is not `os/architecture` or `os/architecture/variant`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform of the form os/architecture or os/architecture/variant")]
pub struct PlatformError(String);

/// An operating system, an architecture and its variant, in normal form.
///
/// Normal form follows containerd's platforms package: `aarch64` and `arm64/v8` are `arm64`,
/// `armhf` is `arm/v7`, `x86_64` is `amd64`, `arm` alone is `arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Platform {
    /// Operating system in Go's spelling, such as `linux`.
    pub os: String,
    /// Architecture in Go's spelling, such as `amd64`, `arm64` or `arm`.
    pub architecture: String,
    /// Variant such as `v7`; absent where the architecture has only one in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Brings any usual spelling into normal form.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant
            .map(str::to_ascii_lowercase)
            .filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64", Some(other)) => ("amd64", Some(other)),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
            ("aarch64" | "arm64", None | Some("v8" | "8")) => ("arm64", None),
            ("aarch64", Some(other)) => ("arm64", Some(other)),
            ("armhf" | "armv7" | "armv7l", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel" | "armv6" | "armv6l", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("armv5" | "armv5l" | "armv5tel" | "armv5tejl", _) | ("arm", Some("5")) => {
                ("arm", Some("v5"))
            }
            ("armv8l", _) | ("arm", Some("8")) => ("arm", Some("v8")),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// The platforms whose images this one runs, best first (containerd's order).
    ///
    /// `arm/v7` also runs v6 and v5. `arm64` runs only `arm64`: 32-bit images there need a kernel and
    /// CPU that allow it, so a device that can must say so itself.
    pub fn candidates(&self) -> Vec<Self> {
        let arm = |variants: &[&str]| {
            variants
                .iter()
                .map(|variant| Self::new(&self.os, "arm", Some(variant)))
                .collect()
        };
        match (self.architecture.as_str(), self.variant.as_deref()) {
            ("arm", Some("v8")) => arm(&["v8", "v7", "v6", "v5"]),
            ("arm", Some("v7")) => arm(&["v7", "v6", "v5"]),
            ("arm", Some("v6")) => arm(&["v6", "v5"]),
            ("amd64", Some(_)) => {
                vec![self.clone(), Self::new(&self.os, "amd64", None)]
            }
            _ => vec![self.clone()],
        }
    }

    /// The position in `offered` of the image this platform should run, if any fits.
    ///
    /// The first offer of the best candidate wins (OCI image index: "the first matching entry").
    pub fn choose(&self, offered: &[&Self]) -> Option<usize> {
        self.candidates()
            .iter()
            .find_map(|candidate| offered.iter().position(|platform| *platform == candidate))
    }

    /// Whether an image of platform `image` can run here.
    pub fn runs(&self, image: &Self) -> bool {
        self.candidates().contains(image)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let fits = parts.iter().all(|part| {
            (1..=32).contains(&part.len())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        });
        match parts.as_slice() {
            [os, architecture] if fits => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if fits => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

impl<'de> Deserialize<'de> for Platform {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written<'a> {
            #[serde(borrow)]
            os: Cow<'a, str>,
            #[serde(borrow)]
            architecture: Cow<'a, str>,
            #[serde(borrow, default)]
            variant: Option<Cow<'a, str>>,
        }
        let written = Written::deserialize(deserializer)?;
        Ok(Self::new(
            &written.os,
            &written.architecture,
            written.variant.as_deref(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn usual_spellings_have_one_normal_form() {
        for (written, normal) in [
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armv7l", "linux/arm/v7"),
            ("linux/armv6l", "linux/arm/v6"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armv5tejl", "linux/arm/v5"),
            ("linux/armv8l", "linux/arm/v8"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/i686", "linux/386"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(written).to_string(), normal);
        }
    }

    #[test]
    fn falls_back_to_older_arm_variants_but_never_to_newer_ones() {
        let offered = ["linux/amd64", "linux/arm/v6", "linux/arm/v7"].map(platform);
        let offered: Vec<&Platform> = offered.iter().collect();
        assert_eq!(platform("linux/arm/v7").choose(&offered), Some(2));
        assert_eq!(platform("linux/arm/v6").choose(&offered), Some(1));
        assert_eq!(platform("linux/arm/v5").choose(&offered), None);
        assert_eq!(platform("linux/arm64").choose(&offered), None);
        assert_eq!(platform("linux/amd64").choose(&offered), Some(0));
    }

    #[test]
    fn reads_documents_in_any_spelling() {
        let read: Platform =
            serde_json::from_str(r#"{"os":"linux","architecture":"aarch64","variant":""}"#)
                .unwrap();
        assert_eq!(read, platform("linux/arm64"));
    }

    #[test]
    fn refuses_what_is_not_a_platform() {
        for bad in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm/v7/x",
            "linux/a b",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
