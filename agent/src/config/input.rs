//! Owns the keys as people write them, and the rules that make settings of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_proto::image::Reference;
use holdfast_proto::window::{MAX_WINDOWS, UpdateWindow, ZoneName};
use holdfast_registry::Mirror;
use serde::Deserialize;

use super::{
    AgentUpdateSettings, ApiSettings, DEFAULT_STATE_DIR, DeviceSettings, DiskSettings,
    DockerSettings, FetchBy, GateSettings, LocalApiSettings, LogFormat, LogSettings, PeerSettings,
    PolicySettings, PollSettings, PullSettings, RegistryEntry, ReportSettings, Settings,
    UpdateSettings,
};
use crate::control::client::Origin;
use crate::selfupdate::minisign::PublicKey;
use crate::telemetry::LEVELS;
use crate::zones::zone;

/// The top-level keys.
pub(super) const SECTIONS: [&str; 17] = [
    "api",
    "state_dir",
    "runtime_dir",
    "secrets_on_disk",
    "docker",
    "poll",
    "report",
    "gate",
    "pull",
    "peers",
    "disk",
    "updates",
    "update",
    "local_api",
    "log",
    "policy",
    "device",
];

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Input {
    api: Api,
    state_dir: Option<PathBuf>,
    runtime_dir: Option<PathBuf>,
    secrets_on_disk: bool,
    docker: Docker,
    poll: Poll,
    report: Report,
    gate: Gate,
    pull: Pull,
    peers: Peers,
    disk: Disk,
    updates: Updates,
    update: AgentUpdate,
    local_api: LocalApi,
    log: Log,
    policy: PolicyFile,
    device: Device,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Api {
    url: Option<String>,
    ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Docker {
    socket: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Poll {
    interval_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Report {
    heartbeat_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "the file's own names, with their unit"
)]
struct Gate {
    stable_seconds: Option<u64>,
    healthy_timeout_seconds: Option<u64>,
    soak_seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Registry {
    plain_http: bool,
    ca_file: Option<PathBuf>,
    mirrors: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Peers {
    key_file: Option<PathBuf>,
    listen: Option<String>,
    ask: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pull {
    fetch: Option<String>,
    no_progress_seconds: Option<u64>,
    spool_mb: Option<u64>,
    most_bytes_per_second: Option<u64>,
    most_mb_per_day: Option<u64>,
    timezone: Option<ZoneName>,
    free_windows: Vec<UpdateWindow>,
    credentials_file: Option<PathBuf>,
    registries: BTreeMap<String, Registry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Disk {
    reserve_mb: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Updates {
    windows: Vec<UpdateWindow>,
    lock_dir: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AgentUpdate {
    keys: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LocalApi {
    socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Log {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PolicyFile {
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Device {
    name: Option<String>,
    labels: BTreeMap<String, String>,
}

const DAY_SECONDS: u64 = 24 * 3_600;

/// Collects what is wrong while settings are made.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, key: &str, detail: &str) {
        self.0.push(format!("{key}: {detail}"));
    }

    fn seconds(&mut self, key: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> u64 {
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            self.add(
                key,
                &format!("{value} is out of range, write {least} to {most} seconds"),
            );
        }
        value
    }

    fn word<T: Copy>(&mut self, key: &str, written: Option<&str>, words: &[(&str, T)], or: T) -> T {
        let Some(written) = written else {
            return or;
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == written) {
            return *value;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.add(
            key,
            &format!("`{written}` is unknown, write {}", known.join(", ")),
        );
        or
    }
}

impl Input {
    pub(super) fn validate(self) -> Result<Settings, Vec<String>> {
        let mut faults = Faults::default();
        let runtime_dir = path(
            "runtime_dir",
            self.runtime_dir,
            Path::new("/run/holdfast"),
            &mut faults,
        );
        let settings = Settings {
            api: api(self.api, &mut faults),
            state_dir: path(
                "state_dir",
                self.state_dir,
                Path::new(DEFAULT_STATE_DIR),
                &mut faults,
            ),
            secrets_on_disk: self.secrets_on_disk,
            docker: DockerSettings {
                socket: socket(self.docker.socket.as_deref(), &mut faults),
            },
            poll: PollSettings {
                interval_seconds: self
                    .poll
                    .interval_seconds
                    .map(|value| faults.seconds("poll.interval_seconds", value, 1..=DAY_SECONDS)),
            },
            report: ReportSettings {
                heartbeat_seconds: faults.seconds(
                    "report.heartbeat_seconds",
                    self.report.heartbeat_seconds.unwrap_or(60),
                    1..=DAY_SECONDS,
                ),
            },
            gate: GateSettings {
                stable_seconds: faults.seconds(
                    "gate.stable_seconds",
                    self.gate.stable_seconds.unwrap_or(10),
                    1..=3_600,
                ),
                healthy_timeout_seconds: faults.seconds(
                    "gate.healthy_timeout_seconds",
                    self.gate.healthy_timeout_seconds.unwrap_or(120),
                    1..=DAY_SECONDS,
                ),
                soak_seconds: faults.seconds(
                    "gate.soak_seconds",
                    self.gate.soak_seconds.unwrap_or(10),
                    0..=DAY_SECONDS,
                ),
            },
            pull: pull(self.pull, &mut faults),
            peers: peers(self.peers, &mut faults),
            disk: disk(&self.disk, &mut faults),
            updates: updates(self.updates, &runtime_dir, &mut faults),
            update: agent_update(self.update, &mut faults),
            local_api: LocalApiSettings {
                socket: path(
                    "local_api.socket",
                    self.local_api.socket,
                    &runtime_dir.join("agent.sock"),
                    &mut faults,
                ),
            },
            runtime_dir,
            log: LogSettings {
                format: faults.word(
                    "log.format",
                    self.log.format.as_deref(),
                    &[("text", LogFormat::Text), ("json", LogFormat::Json)],
                    LogFormat::Text,
                ),
                level: faults.word(
                    "log.level",
                    self.log.level.as_deref(),
                    &LEVELS,
                    tracing::Level::INFO,
                ),
            },
            policy: policy(self.policy, &mut faults),
            device: device(self.device, &mut faults),
        };
        if faults.0.is_empty() {
            Ok(settings)
        } else {
            Err(faults.0)
        }
    }
}

/// Keys are for a release and the ones before and after it; more are a mistake.
const MAX_KEYS: usize = 8;

fn agent_update(input: AgentUpdate, faults: &mut Faults) -> AgentUpdateSettings {
    if input.keys.len() > MAX_KEYS {
        faults.add("update.keys", &format!("more than {MAX_KEYS} keys"));
    }
    for (position, key) in input.keys.iter().enumerate() {
        if let Err(detail) = PublicKey::parse(key) {
            let detail = format!("{detail}: write the line of its `.pub` file that begins with RW");
            faults.add(&format!("update.keys[{position}]"), &detail);
        }
    }
    AgentUpdateSettings { keys: input.keys }
}

fn api(input: Api, faults: &mut Faults) -> ApiSettings {
    let url = input.url.and_then(|text| {
        Origin::parse(&text)
            .map_err(|detail| faults.add("api.url", &detail))
            .ok()
    });
    if let Some(file) = input.ca_file.as_ref().filter(|file| !file.is_file()) {
        let detail = format!(
            "there is no file {}, write the path of a PEM file",
            file.display()
        );
        faults.add("api.ca_file", &detail);
    }
    ApiSettings {
        url,
        ca_file: input.ca_file,
    }
}

/// 64 MB: the journal, an engine's records and logs of a swap and of the way back take a few of them.
/// As large as the largest layers that small devices run.
const SPOOL_MB: u64 = 4_000;
const MAX_SPOOL_MB: u64 = 1_000_000;
/// Slower than this the pull itself would be taken for one that stands still.
const MIN_BYTES_PER_SECOND: u64 = 2_000;

fn pull(input: Pull, faults: &mut Faults) -> PullSettings {
    let spool_mb = input.spool_mb.unwrap_or(SPOOL_MB);
    if !(1..=MAX_SPOOL_MB).contains(&spool_mb) {
        let detail = format!("{spool_mb} is out of range, write 1 to {MAX_SPOOL_MB} megabytes");
        faults.add("pull.spool_mb", &detail);
    }
    if let Some(rate) = input.most_bytes_per_second
        && rate < MIN_BYTES_PER_SECOND
    {
        let detail = format!("{rate} is too little, write at least {MIN_BYTES_PER_SECOND}");
        faults.add("pull.most_bytes_per_second", &detail);
    }
    windows("pull.free_windows", &input.free_windows, faults);
    if let Some(name) = input.timezone.as_ref().filter(|name| zone(name).is_none()) {
        faults.add("pull.timezone", &format!("there is no time zone {name}"));
    }
    PullSettings {
        fetch: faults.word(
            "pull.fetch",
            input.fetch.as_deref(),
            &[("agent", FetchBy::Agent), ("engine", FetchBy::Engine)],
            FetchBy::default(),
        ),
        no_progress_seconds: faults.seconds(
            "pull.no_progress_seconds",
            input.no_progress_seconds.unwrap_or(60),
            1..=3_600,
        ),
        spool_mb,
        most_bytes_per_second: input.most_bytes_per_second,
        most_mb_per_day: input.most_mb_per_day,
        timezone: input.timezone,
        free_windows: input.free_windows,
        credentials_file: absolute("pull.credentials_file", input.credentials_file, faults),
        registries: input
            .registries
            .into_iter()
            .map(|(name, entry)| {
                let entry = registry(&name, entry, faults);
                (name, entry)
            })
            .collect(),
    }
}

fn registry(name: &str, input: Registry, faults: &mut Faults) -> RegistryEntry {
    let key = format!("pull.registries.{name}");
    // As references write it: what has no dot, no port and is not localhost is a path on Docker Hub.
    let reference = format!("{name}/x").parse::<Reference>();
    if reference.is_ok_and(|reference| reference.repository().registry() != name)
        || name.contains('/')
    {
        faults.add(
            &key,
            "write the registry as references name it, such as registry.example:5000",
        );
    }
    for (index, mirror) in input.mirrors.iter().enumerate() {
        if let Err(error) = mirror.parse::<Mirror>() {
            faults.add(&format!("{key}.mirrors[{index}]"), &error.to_string());
        }
    }
    RegistryEntry {
        plain_http: input.plain_http,
        ca_file: absolute(&format!("{key}.ca_file"), input.ca_file, faults),
        mirrors: input.mirrors,
    }
}

fn absolute(key: &str, file: Option<PathBuf>, faults: &mut Faults) -> Option<PathBuf> {
    if file.as_ref().is_some_and(|file| !file.is_absolute()) {
        faults.add(key, "write an absolute path");
    }
    file
}

/// Each is asked in turn, and a silent one costs seconds.
const MAX_PEERS: usize = 8;

fn peers(input: Peers, faults: &mut Faults) -> PeerSettings {
    let Peers {
        key_file,
        listen,
        ask,
    } = input;
    if key_file.is_none() && (listen.is_some() || !ask.is_empty()) {
        faults.add(
            "peers.key_file",
            "name the file with the key that neighbours share",
        );
    }
    let key_file = absolute("peers.key_file", key_file, faults);
    if ask.len() > MAX_PEERS {
        let detail = format!("{} are too many, write at most {MAX_PEERS}", ask.len());
        faults.add("peers.ask", &detail);
    }
    for (index, address) in ask.iter().enumerate() {
        let parts = address.rsplit_once(':');
        let named = parts.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if named.is_none_or(|(host, _)| host.contains(['/', '@', '?', '#', ' '])) {
            let detail = format!("`{address}` is no host with a port, write host:port");
            faults.add(&format!("peers.ask[{index}]"), &detail);
        }
    }
    let listen = listen.and_then(|text| {
        let address = text.parse();
        if address.is_err() {
            let detail = format!("`{text}` is no address with a port, write 192.0.2.7:7411");
            faults.add("peers.listen", &detail);
        }
        address.ok()
    });
    PeerSettings {
        key_file,
        listen,
        ask,
    }
}

const RESERVE_MB: u64 = 64;
/// More would only take room from images.
const MAX_RESERVE_MB: u64 = 4_096;

fn disk(input: &Disk, faults: &mut Faults) -> DiskSettings {
    let reserve_mb = input.reserve_mb.unwrap_or(RESERVE_MB);
    if reserve_mb > MAX_RESERVE_MB {
        let detail = format!("{reserve_mb} is too much, write 0 to {MAX_RESERVE_MB} megabytes");
        faults.add("disk.reserve_mb", &detail);
    }
    DiskSettings { reserve_mb }
}

fn updates(input: Updates, runtime_dir: &Path, faults: &mut Faults) -> UpdateSettings {
    windows("updates.windows", &input.windows, faults);
    UpdateSettings {
        windows: input.windows,
        lock_dir: path(
            "updates.lock_dir",
            input.lock_dir,
            &runtime_dir.join("locks"),
            faults,
        ),
    }
}

fn windows(key: &str, windows: &[UpdateWindow], faults: &mut Faults) {
    if windows.len() > MAX_WINDOWS {
        faults.add(key, &format!("write at most {MAX_WINDOWS} windows"));
    }
    for (position, window) in windows.iter().enumerate() {
        if zone(&window.timezone).is_none() {
            let detail = format!("there is no time zone {}", window.timezone);
            faults.add(&format!("{key}[{position}].timezone"), &detail);
        }
    }
}

fn path(key: &str, input: Option<PathBuf>, or: &Path, faults: &mut Faults) -> PathBuf {
    let path = input.unwrap_or_else(|| or.to_owned());
    if !path.is_absolute() {
        faults.add(key, "write an absolute path");
    }
    path
}

fn policy(input: PolicyFile, faults: &mut Faults) -> PolicySettings {
    if input.file.as_ref().is_some_and(|file| !file.is_absolute()) {
        faults.add("policy.file", "write an absolute path");
    }
    PolicySettings { file: input.file }
}

fn socket(input: Option<&str>, faults: &mut Faults) -> PathBuf {
    let text = input.unwrap_or("/var/run/docker.sock");
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if !path.starts_with('/') {
        faults.add(
            "docker.socket",
            &format!("`{text}` is no unix socket, write unix:///var/run/docker.sock"),
        );
    }
    PathBuf::from(path)
}

/// As the API bounds them.
const MAX_NAME_CHARS: usize = 128;

fn device(input: Device, faults: &mut Faults) -> DeviceSettings {
    let name = input.name.filter(|name| !name.is_empty());
    if name
        .as_ref()
        .is_some_and(|name| name.chars().count() > MAX_NAME_CHARS)
    {
        faults.add(
            "device.name",
            &format!("write at most {MAX_NAME_CHARS} characters"),
        );
    }
    if input.labels.keys().any(String::is_empty) {
        faults.add("device.labels", "a label's name is not empty");
    }
    DeviceSettings {
        name,
        labels: input.labels,
    }
}
