//! Releases of the agent, good and bad, and devices whose agents take them.
//!
//! A loop of the shell stands for the service manager: it starts the installed program again some seconds after
//! it ended, and knows nothing else. Each device has an installed program of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::images::{Image, Pushed};
use crate::layers::sha256;
use crate::registry::Registry;
use crate::site::{Device, Site, service, target};
use crate::wait::wait_for;
use crate::{agent, apt, binaries, place};

/// From a target to its end on a busy machine: a pull, a trial of 40 s, a new start, a report.
pub const ENDS_WITHIN: Duration = Duration::from_mins(3);
/// Runs the program `$0` again and again, `$1` seconds after it ended; the agent's words follow.
const SUPERVISOR: &str = r#"
pause=$1; shift; while [ "$1" != -- ]; do shift; done; shift 2
while :; do
    setpriv --pdeathsig KILL -- "$0" "$@"
    echo "supervisor: it ended with $?"
    sleep "$pause"
done"#;
/// Where ELF says for which processor a program is, and the number of one that no test runs on (RISC-V).
const PROCESSOR_AT: usize = 18;
const ANOTHER_PROCESSOR: u8 = 243;

/// Who signs releases.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    id: [u8; 8],
}

impl Signer {
    /// A signer with a key made of one byte.
    pub fn new(seed: u8) -> anyhow::Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]);
        Ok(Self {
            pair: pair.ok().context("a seed of 32 bytes")?,
            id: [seed; 8],
        })
    }

    /// The key as minisign writes it.
    pub fn public_key(&self) -> String {
        STANDARD.encode([b"Ed", &self.id[..], self.pair.public_key().as_ref()].concat())
    }

    /// A signature as `minisign -S -l` writes it.
    pub fn sign(&self, text: &[u8]) -> String {
        let signed = self.pair.sign(text);
        let comment = "timestamp:1795219200";
        let global = self
            .pair
            .sign(&[signed.as_ref(), comment.as_bytes()].concat());
        let line = STANDARD.encode([b"Ed", &self.id[..], signed.as_ref()].concat());
        let global = STANDARD.encode(global.as_ref());
        format!("untrusted comment: test\n{line}\ntrusted comment: {comment}\n{global}\n")
    }
}

/// How a release is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The very agent with other bytes at its end.
    Good,
    /// It panics.
    Panicking,
    /// It does nothing for ever.
    Hanging,
    /// It was made for another processor.
    WrongArch,
    /// It was signed by somebody else.
    Unsigned,
    /// The end of its program is missing, and its sum says so.
    Truncated,
    /// The end of its program is missing, and its sum is that of the whole.
    CutOnTheWay,
}

impl Kind {
    /// The five that a campaign tries.
    pub const BAD: [Self; 5] = [
        Self::Panicking,
        Self::Hanging,
        Self::WrongArch,
        Self::Unsigned,
        Self::Truncated,
    ];

    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Panicking => "panicking",
            Self::Hanging => "hanging",
            Self::WrongArch => "wrong-arch",
            Self::Unsigned => "unsigned",
            Self::Truncated => "truncated",
            Self::CutOnTheWay => "cut-on-the-way",
        }
    }

    /// Whether the device finds out before it tries it.
    pub fn is_refused(self) -> bool {
        match self {
            Self::WrongArch | Self::Unsigned | Self::CutOnTheWay => true,
            Self::Good | Self::Panicking | Self::Hanging | Self::Truncated => false,
        }
    }

    /// The program of such a release; `mark` makes it unlike others.
    fn program(self, mark: &str) -> anyhow::Result<Vec<u8>> {
        let mut program = match self {
            Self::Good => fs::read(stripped(&binaries::agent()?)?)?,
            _ => fs::read(stripped(&beside("fake-agent")?)?)?,
        };
        program.extend(mark.as_bytes());
        match self {
            Self::Hanging => program.extend(b"hang"),
            Self::WrongArch => program[PROCESSOR_AT] = ANOTHER_PROCESSOR,
            Self::Truncated => program.truncate(program.len() / 2),
            Self::Good | Self::Panicking | Self::Unsigned | Self::CutOnTheWay => {}
        }
        Ok(program)
    }
}

/// The platform that this machine's agents are listed under.
fn triple() -> String {
    let libc = if cfg!(target_env = "musl") {
        "musl"
    } else {
        "gnu"
    };
    format!("{}-unknown-linux-{libc}", std::env::consts::ARCH)
}

/// A program of this workspace that was built beside the one that runs.
fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut folders = own.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.is_file()));
    found.with_context(|| format!("{name} was not built beside {}", own.display()))
}

/// A program without what only debuggers need: releases have none of it either. Made once for each process.
fn stripped(program: &Path) -> anyhow::Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = place::temporary("programs").map(tempfile::TempDir::keep);
        folder.map_err(|error| error.to_string())
    });
    let folder = made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let name = program.file_name().context("a program has a name")?;
    let place = folder.join(name);
    let _lock = place::lock("strip")?;
    if !place.is_file() {
        let mut strip = Command::new("strip");
        apt::run(strip.arg("-o").arg(&place).arg(program))?;
    }
    Ok(place)
}

/// Packs and pushes a release of the agent.
pub async fn push(
    registry: &Registry,
    repository: &str,
    kind: Kind,
    version: &str,
    signer: &Signer,
) -> anyhow::Result<Pushed> {
    let mut program = kind.program(&format!("\nrelease {version} {}\n", place::unique()))?;
    let sum = sha256(&program).replace("sha256:", "");
    let sums = format!(
        "{}  holdfast-agent_{version}_other-unknown-linux-gnu\n{sum}  holdfast-agent_{version}_{}\n",
        "0".repeat(64),
        triple()
    );
    let other = Signer::new(99)?;
    let signer = if kind == Kind::Unsigned {
        &other
    } else {
        signer
    };
    if kind == Kind::CutOnTheWay {
        program.truncate(program.len() / 2);
    }
    let signature = signer.sign(sums.as_bytes());
    let image = Image::new(repository)
        .file("/holdfast-agent", program)
        .file("/SHA256SUMS", sums)
        .file("/SHA256SUMS.minisig", signature);
    image.push(registry, version).await
}

/// A device whose agent is supervised, and takes releases.
#[derive(Debug)]
pub struct Updated {
    /// The device.
    pub device: Device,
    /// Its installed program.
    pub package: PathBuf,
    _folder: tempfile::TempDir,
}

/// The service that names a release.
pub fn agent_service(image: &Pushed) -> Value {
    let options = json!({ "x-holdfast": { "agent": true } });
    service("agent", &image.reference(), &options)
}

/// A target with a service that must not notice anything, and a release of the agent.
pub fn wanted(web: &Pushed, agent: Option<&Pushed>) -> Value {
    let mut services = vec![service("web", &web.reference(), &json!({}))];
    services.extend(agent.map(agent_service));
    target(&services)
}

impl Updated {
    /// Enrols a device whose agent starts again `pause` seconds after it ended.
    pub async fn start(
        site: &Site,
        signer: &Signer,
        pause: &str,
        adjust: impl FnOnce(agent::Options) -> agent::Options,
    ) -> anyhow::Result<Self> {
        let folder = place::temporary("package")?;
        let package = folder.path().join("holdfast-agent");
        fs::copy(stripped(&binaries::agent()?)?, &package)?;
        let keys = json!([signer.public_key()]);
        let adjust = |options: agent::Options| adjust(options.set("update", "keys", keys));
        let mut device = site.device_at(site.api.url(), adjust).await?;
        let words = [
            "bash",
            "-c",
            SUPERVISOR,
            &package.display().to_string(),
            pause,
        ];
        device.agent.run_under(&words.map(str::to_owned))?;
        Ok(Self {
            device,
            package,
            _folder: folder,
        })
    }

    /// Puts another program in the place of the installed one, as a package manager does.
    pub fn install(&self, mark: &str) -> anyhow::Result<()> {
        let mut program = fs::read(&self.package)?;
        program.extend(mark.as_bytes());
        let fresh = self.package.with_extension("new");
        fs::write(&fresh, program)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        Ok(fs::rename(fresh, &self.package)?)
    }

    /// The agent's own process, not the supervisor's.
    pub fn pid(&self) -> anyhow::Result<u32> {
        let file = self.device.agent.state().join("agent.lock");
        let text = fs::read_to_string(file)?;
        text.trim().parse().context("a process id")
    }

    /// What the device remembers of the agent's programs; null before the first release.
    pub fn slots(&self) -> Value {
        let file = self.device.agent.state().join("versions/state.json");
        let text = fs::read(file).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The report of the agent as a service.
    pub async fn reported(&self, site: &Site) -> anyhow::Result<Value> {
        let report = site.report(&self.device.uuid).await?;
        let state = if report["sequence"].is_null() {
            &report["state"]
        } else {
            &report
        };
        Ok(state["apps"]["1001"]["services"]["agent"].clone())
    }

    /// Waits until the agent that a release has runs and is reported as verified.
    ///
    /// # Panics
    /// When the deadline passes.
    pub async fn wait_confirmed(&self, site: &Site, release: &Pushed) -> Value {
        let content = &release.child("linux/amd64").config_digest;
        wait_for("the release to be confirmed", ENDS_WITHIN, async || {
            let report = self
                .reported(site)
                .await
                .map_err(|error| error.to_string())?;
            let runs = report["configDigest"] == *content && report["verified"] == true;
            if runs {
                Ok(report)
            } else {
                Err(format!("{report} {}", self.slots()))
            }
        })
        .await
    }

    /// Waits until a release is reported as rejected, and gives the report.
    ///
    /// # Panics
    /// When the deadline passes.
    pub async fn wait_rejected(&self, site: &Site, release: &Pushed) -> Value {
        let child = &release.child("linux/amd64").manifest_digest;
        wait_for("the release to be rejected", ENDS_WITHIN, async || {
            let report = self
                .reported(site)
                .await
                .map_err(|error| error.to_string())?;
            let image = report["rejected"]["image"].as_str().unwrap_or_default();
            if image.ends_with(child) || image.ends_with(&release.top_digest) {
                Ok(report)
            } else {
                Err(format!("{report} {}", self.slots()))
            }
        })
        .await
    }
}
