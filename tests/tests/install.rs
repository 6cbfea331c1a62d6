//! Installing the agent with the script that the real control API hands out, in copies of this machine that
//! are thrown away; and what systemd itself says about units and notifications.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use holdfast_tests::api::{Api, Options};
use holdfast_tests::{apt, place};
use serde_json::json;
use tempfile::TempDir;

const KEY: &str = "hfk_notasecretbutlookslikeone";
/// What the packages' own tools write down in any case.
const BOOKS: [&str; 7] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/cache",
    "var/log",
    "tmp",
    "dev",
    "root",
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// What somebody did to a release.
type Harm<'a> = Box<dyn Fn() -> anyhow::Result<()> + 'a>;

/// A copy of this machine: what is written in it is in memory, and gone with it.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> anyhow::Result<Self> {
        apt::require(&[
            "mount",
            "umount",
            "curl",
            "openssl",
            "minisign",
            "systemctl",
        ])?;
        let machine = Self {
            folder: place::temporary("machine")?,
        };
        let top = machine.top();
        mount(&["-t", "tmpfs", "tmpfs", &top])?;
        for name in ["upper", "work", "root"] {
            fs::create_dir(machine.folder.path().join(name))?;
        }
        let layers = format!("lowerdir=/,upperdir={top}/upper,workdir={top}/work");
        let root = machine.root().display().to_string();
        mount(&["-t", "overlay", "overlay", "-o", &layers, &root])?;
        for name in ["proc", "dev"] {
            mount(&["--bind", &format!("/{name}"), &format!("{root}/{name}")])?;
        }
        Ok(machine)
    }

    fn top(&self) -> String {
        self.folder.path().display().to_string()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    /// Runs a line of shell in it.
    fn run(&self, shell: &str, line: &str) -> Output {
        self.run_with(&[], shell, line)
    }

    fn run_with(&self, before: &[&str], shell: &str, line: &str) -> Output {
        let root = self.root().display().to_string();
        let words: Vec<&str> = before
            .iter()
            .copied()
            .chain(["chroot", &root])
            .chain(shell.split(' '))
            .chain(["-c", line])
            .collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.output().expect("a program of this machine starts")
    }

    /// Everything that was written in it, but for what always changes.
    fn written(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        list(&self.folder.path().join("upper"), "", &mut found);
        found
    }

    /// The same without folders and without the books of users and groups.
    fn left(&self) -> Vec<String> {
        let is_book = |path: &str| {
            path.starts_with("etc/") && path.matches('/').count() == 1 && !path.contains("holdfast")
        };
        let written = self.written().into_iter();
        written
            .filter(|(path, what)| !what.starts_with("folder") && !is_book(path))
            .map(|(path, _)| path)
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All at once; whatever still runs in it keeps its files until it ends.
        let _ = Command::new("umount")
            .args(["--recursive", "--lazy", &self.top()])
            .status();
    }
}

fn mount(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("mount");
    command.args(arguments);
    apt::run(&mut command).map(drop)
}

fn list(folder: &Path, below: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("a name in text");
        let path = if below.is_empty() {
            name
        } else {
            format!("{below}/{name}")
        };
        let meta = entry.metadata().expect("metadata");
        if BOOKS.contains(&path.as_str()) || meta.rdev() == 0 && meta.file_type().is_char_device() {
            continue;
        }
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            found.insert(path.clone(), format!("folder {mode:o} {}", meta.uid()));
            list(&entry.path(), &path, found);
        } else {
            let times = (meta.mtime(), meta.mtime_nsec(), meta.ino());
            let what = format!(
                "{mode:o} {} {} {} {times:?}",
                meta.uid(),
                meta.gid(),
                meta.len()
            );
            found.insert(path, what);
        }
    }
}

/// A release as the packaging makes one: a package, a tarball, their checksums, the signature.
struct Release {
    folder: TempDir,
    keys: TempDir,
    key: String,
}

impl Release {
    fn new() -> anyhow::Result<Self> {
        apt::require(&["minisign", "dpkg-deb"])?;
        let keys = place::temporary("keys")?;
        let (public, private) = (keys.path().join("pub"), keys.path().join("key"));
        let mut make = Command::new("minisign");
        make.args(["-G", "-W", "-p"]).arg(&public);
        apt::run(make.arg("-s").arg(private))?;
        let text = fs::read_to_string(public)?;
        let release = Self {
            folder: place::temporary("release")?,
            keys,
            key: text.lines().last().unwrap_or_default().to_owned(),
        };
        release.make("0.1.0", &["-l"])?;
        Ok(release)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a release of this version in the place of what was there. `form` says how it is signed.
    fn make(&self, version: &str, form: &[&str]) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.folder.path())? {
            fs::remove_file(entry?.path())?;
        }
        let tree = place::temporary("tree")?;
        let put = |path: &str, text: &str, mode: u32| -> anyhow::Result<()> {
            let path = tree.path().join(path);
            fs::create_dir_all(path.parent().expect("a file has a folder"))?;
            fs::write(&path, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            Ok(())
        };
        // The script is tried here, not the agent: the smallest program that knows its version.
        let program = format!("#!/bin/sh\necho 'holdfast-agent {version}'\n");
        put("usr/bin/holdfast-agent", &program, 0o755)?;
        put(&format!("usr/lib/holdfast/only-in-{version}"), "", 0o644)?;
        put("etc/holdfast/agent.yaml", "# settings\n", 0o644)?;
        let systemd = repository().join("systemd");
        for (from, to) in [
            ("holdfast-agent.service", "usr/lib/systemd/system"),
            ("holdfast-agent-enroll.service", "usr/lib/systemd/system"),
            ("sysusers.d/holdfast-agent.conf", "usr/lib/sysusers.d"),
            ("tmpfiles.d/holdfast-agent.conf", "usr/lib/tmpfiles.d"),
        ] {
            let text = fs::read_to_string(systemd.join(from))?;
            let name = Path::new(from).file_name().expect("a name");
            put(&format!("{to}/{}", name.display()), &text, 0o644)?;
        }
        let tarball = format!("holdfast-agent_{version}_x86_64-unknown-linux-musl.tar.gz");
        let mut tar = Command::new("tar");
        tar.args(["--owner=0", "--group=0", "-czf"])
            .arg(self.path(&tarball));
        apt::run(tar.arg("-C").arg(tree.path()).arg("."))?;

        let control = format!(
            "Package: holdfast-agent\nVersion: {version}\nArchitecture: amd64\n\
             Maintainer: tests <tests@holdfast.example>\nDescription: of a test\n"
        );
        put("DEBIAN/control", &control, 0o644)?;
        put("DEBIAN/conffiles", "/etc/holdfast/agent.yaml\n", 0o644)?;
        let after = "#!/bin/sh\nset -e\nsystemd-sysusers /usr/lib/sysusers.d/holdfast-agent.conf\n\
                     systemd-tmpfiles --create /usr/lib/tmpfiles.d/holdfast-agent.conf\n";
        put("DEBIAN/postinst", after, 0o755)?;
        let mut pack = Command::new("dpkg-deb");
        pack.args(["--root-owner-group", "-b"]).arg(tree.path());
        apt::run(pack.arg(self.path(&format!("holdfast-agent_{version}_amd64.deb"))))?;
        self.list_and_sign(form)
    }

    fn list_and_sign(&self, form: &[&str]) -> anyhow::Result<()> {
        let mut sums = Command::new("sh");
        sums.args(["-c", "sha256sum holdfast-* > SHA256SUMS"]);
        apt::run(sums.current_dir(self.folder.path()))?;
        let mut sign = Command::new("minisign");
        sign.arg("-S")
            .args(form)
            .arg("-s")
            .arg(self.keys.path().join("key"));
        apt::run(sign.arg("-m").arg(self.path("SHA256SUMS"))).map(drop)
    }
}

/// A control API that hands out a release.
async fn server(release: &Release) -> anyhow::Result<Api> {
    let releases = json!({ "dir": release.folder.path(), "key": release.key });
    Api::start(Options::default().set("releases", releases)).await
}

fn one_line(api: &Api, shell: &str, arguments: &str) -> String {
    format!(
        "curl -fsSL {}/install.sh | {shell} -s -- {arguments}",
        api.url()
    )
}

fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn good(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    said(output)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_installs_the_package_and_a_second_run_changes_nothing() -> anyhow::Result<()> {
    let release = Release::new()?;
    let api = server(&release).await?;
    let machine = Machine::new()?;
    let line = one_line(&api, "sh", &format!("--key {KEY}"));
    let first = good(&machine.run("sh", &line));
    assert!(first.contains("0.1.0 is installed"), "{first}");
    let settings = fs::read_to_string(machine.path("etc/holdfast/agent.yaml"))?;
    let address = format!("api: {{ url: \"{}\" }}\n", api.url());
    assert_eq!(settings, format!("# settings\n{address}"));
    let key = machine.path("etc/holdfast/enrolment-key");
    assert_eq!(fs::read_to_string(&key)?, format!("{KEY}\n"));
    assert_eq!(fs::metadata(&key)?.permissions().mode() & 0o777, 0o600);

    let before = machine.written();
    good(&machine.run("sh", &line));
    assert_eq!(machine.written(), before);

    release.make("0.2.0", &["-l"])?;
    good(&machine.run("sh", &line));
    assert!(machine.path("usr/lib/holdfast/only-in-0.2.0").exists());
    assert_eq!(
        fs::read_to_string(machine.path("etc/holdfast/agent.yaml"))?,
        settings
    );

    let out = good(&machine.run("sh", &one_line(&api, "sh", "--uninstall --purge")));
    assert!(out.contains("containers that it started go on"), "{out}");
    assert_eq!(machine.left(), Vec::<String>::new());
    assert!(!fs::read_to_string(machine.path("etc/passwd"))?.contains("holdfast"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tarball_is_installed_upgraded_and_removed_without_traces() -> anyhow::Result<()> {
    let release = Release::new()?;
    let api = server(&release).await?;
    let machine = Machine::new()?;
    let line = one_line(&api, "dash", "--tarball");
    good(&machine.run("dash", &line));
    assert_eq!(
        good(&machine.run("sh", "holdfast-agent")),
        "holdfast-agent 0.1.0\n"
    );
    let enabled = machine.run(
        "sh",
        "systemctl is-enabled holdfast-agent holdfast-agent-enroll",
    );
    assert_eq!(good(&enabled), "enabled\nenabled\n");
    let before = machine.written();
    good(&machine.run("dash", &line));
    assert_eq!(machine.written(), before);

    // The other form of signatures; a file that the new version lacks goes.
    release.make("0.2.0", &[])?;
    good(&machine.run("dash", &line));
    assert_eq!(
        good(&machine.run("sh", "holdfast-agent")),
        "holdfast-agent 0.2.0\n"
    );
    assert!(!machine.path("usr/lib/holdfast/only-in-0.1.0").exists());
    let mixed = machine.run("dash", &one_line(&api, "dash", ""));
    assert_eq!(mixed.status.code(), Some(1), "{}", said(&mixed));

    good(&machine.run("dash", &one_line(&api, "dash", "--uninstall")));
    assert_eq!(machine.left(), ["etc/holdfast/agent.yaml"]);
    good(&machine.run("dash", &one_line(&api, "dash", "--uninstall --purge")));
    assert_eq!(machine.left(), Vec::<String>::new());
    assert!(!fs::read_to_string(machine.path("etc/passwd"))?.contains("holdfast"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_signed_or_was_changed_is_refused_with_nothing_installed() -> anyhow::Result<()>
{
    let release = Release::new()?;
    let api = server(&release).await?;
    let machine = Machine::new()?;
    let untouched = machine.written();
    let sums = release.path("SHA256SUMS");
    let signature = release.path("SHA256SUMS.minisig");
    let deb = release.path("holdfast-agent_0.1.0_amd64.deb");
    let other = Release::new()?;
    let changed = |path: &Path, from: &str, to: &str| -> anyhow::Result<()> {
        let text = fs::read_to_string(path)?;
        assert!(text.contains(from), "{text}");
        Ok(fs::write(path, text.replacen(from, to, 1))?)
    };
    let harms: [(&str, &str, &str, Harm<'_>); 8] = [
        (
            "a changed package",
            "",
            "is not what SHA256SUMS says",
            Box::new(|| {
                let mut bytes = fs::read(&deb)?;
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                Ok(fs::write(&deb, bytes)?)
            }),
        ),
        (
            "a truncated package",
            "",
            "is not what SHA256SUMS says",
            Box::new(|| Ok(fs::write(&deb, &fs::read(&deb)?[..100])?)),
        ),
        (
            "a changed list",
            "",
            "is not signed",
            Box::new(|| changed(&sums, "0.1.0", "0.1.1")),
        ),
        (
            "a changed comment",
            "",
            "is not signed",
            Box::new(|| {
                changed(
                    &signature,
                    "trusted comment: timestamp:",
                    "trusted comment: timestamp:1",
                )
            }),
        ),
        (
            "another's signature",
            "",
            "is not signed",
            Box::new(|| Ok(fs::copy(other.path("SHA256SUMS.minisig"), &signature).map(drop)?)),
        ),
        (
            "no signature",
            "",
            "cannot be fetched",
            Box::new(|| Ok(fs::remove_file(&signature)?)),
        ),
        (
            "nonsense for one",
            "",
            "is not signed",
            Box::new(|| Ok(fs::write(&signature, "x\ny\n")?)),
        ),
        (
            "a wrong key",
            "--release-key RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3",
            "is not signed",
            Box::new(|| Ok(())),
        ),
    ];
    // Both ways to prove a release: openssl, and minisign where there is no openssl.
    for tool in ["openssl", "minisign"] {
        if tool == "minisign" {
            fs::remove_file(machine.path("usr/bin/openssl"))?;
        }
        let untouched = if tool == "openssl" {
            untouched.clone()
        } else {
            machine.written()
        };
        for (what, arguments, why, harm) in &harms {
            release.make("0.1.0", &["-l"])?;
            harm()?;
            let refused = machine.run("sh", &one_line(&api, "sh", arguments));
            let text = said(&refused);
            assert_eq!(refused.status.code(), Some(1), "{tool}, {what}: {text}");
            assert!(
                text.contains(why) && text.contains("nothing was changed"),
                "{tool}, {what}: {text}"
            );
            assert_eq!(machine.written(), untouched, "{tool}, {what}");
        }
    }
    // Without either it refuses, unless it is told to trust the server; checksums count even then.
    release.make("0.1.0", &["-l"])?;
    fs::remove_file(machine.path("usr/bin/minisign"))?;
    let untouched = machine.written();
    let refused = machine.run("sh", &one_line(&api, "sh", ""));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("install openssl"),
        "{}",
        said(&refused)
    );
    fs::write(&deb, "x")?;
    let refused = machine.run("sh", &one_line(&api, "sh", "--insecure-skip-signature"));
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert_eq!(machine.written(), untouched);
    release.make("0.1.0", &["-l"])?;
    let out = good(&machine.run("sh", &one_line(&api, "sh", "--insecure-skip-signature")));
    assert!(
        out.contains("warning: the signature is not looked at"),
        "{out}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_a_dry_run_and_half_a_script_change_nothing() -> anyhow::Result<()> {
    let release = Release::new()?;
    let mut api = server(&release).await?;
    let machine = Machine::new()?;
    let untouched = machine.written();
    let dry = good(&machine.run(
        "sh",
        &one_line(&api, "sh", &format!("--dry-run --key {KEY}")),
    ));
    for promise in [
        "would install",
        "would write",
        "would enrol",
        "nothing was changed",
    ] {
        assert!(dry.contains(promise), "{dry}");
    }
    assert!(!dry.contains(KEY), "{dry}");
    let script = api.call_as(None, reqwest::Method::GET, "//install.sh", &[], None);
    let script = script.await?.good()?.body;
    // Wherever the line breaks off.
    for end in (0..script.len() - 1)
        .step_by(997)
        .chain([script.len() - 10])
    {
        let half = machine.path("tmp/half.sh");
        fs::write(&half, &script[..end])?;
        machine.run("sh", "sh /tmp/half.sh --key hfk_x");
        assert_eq!(machine.written(), untouched, "the first {end} bytes");
    }
    fs::write(machine.path("tmp/whole.sh"), &script)?;
    api.process().stop();
    // curl, wget, and busybox in the place of both and of the shell.
    apt::require(&["wget", "busybox"])?;
    for (prepare, shell) in [
        ("true", "dash"),
        ("rm -f /usr/bin/curl", "bash"),
        ("ln -sf /bin/busybox /usr/bin/wget", "busybox sh"),
        ("rm -f /usr/bin/wget", "sh"),
    ] {
        good(&machine.run("sh", prepare));
        let untouched = machine.written();
        let line = format!("{shell} /tmp/whole.sh --key {KEY}");
        let refused = machine.run("sh", &line);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(1), "{shell}: {text}");
        assert_eq!(text.lines().count(), 1, "one sentence: {text}");
        assert_eq!(machine.written(), untouched, "{shell}");
    }
    // The same shells and tools do install when it is there.
    api.process().restart()?;
    api.ready().await?;
    good(&machine.run("sh", "ln -sf /bin/busybox /usr/bin/wget"));
    let out = good(&machine.run("sh", "busybox sh /tmp/whole.sh"));
    assert!(out.contains("0.1.0 is installed"), "{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_program_that_the_script_starts_sees_the_enrolment_key() -> anyhow::Result<()> {
    apt::require(&["strace"])?;
    let release = Release::new()?;
    let api = server(&release).await?;
    let machine = Machine::new()?;
    let trace = machine.path("tmp/trace").display().to_string();
    let line = format!(
        "HOLDFAST_ENROLMENT_KEY={KEY}; export HOLDFAST_ENROLMENT_KEY; {}",
        one_line(&api, "sh", "")
    );
    fs::write(machine.path("tmp/line.sh"), line)?;
    let strace = [
        "strace",
        "-f",
        "-v",
        "-s",
        "4096",
        "-e",
        "trace=execve",
        "-o",
        &trace,
    ];
    good(&machine.run_with(&strace, "sh", ". /tmp/line.sh"));
    let key = fs::read_to_string(machine.path("etc/holdfast/enrolment-key"))?;
    assert_eq!(key.trim(), KEY);
    let trace = fs::read_to_string(machine.path("tmp/trace"))?;
    let calls: Vec<&str> = trace
        .lines()
        .filter(|line| line.contains("execve("))
        .collect();
    assert!(calls.iter().any(|call| call.contains("openssl")), "{trace}");
    // The first shell gave it to curl and to the shell that reads the script; from there nobody has it.
    let seen = calls.iter().filter(|call| call.contains(KEY));
    let seen: Vec<&&str> = seen
        .filter(|call| !call.contains("[\"curl\", \"-fsSL\"") && !call.contains("[\"sh\", \"-s\""))
        .collect();
    assert!(seen.is_empty(), "{seen:?}");
    Ok(())
}

#[test]
fn units_drop_ins_and_scripts_pass_systemds_own_checks() -> anyhow::Result<()> {
    apt::require(&["systemd-analyze", "shellcheck"])?;
    let output = Command::new("sh")
        .arg(repository().join("systemd/check.sh"))
        .output()?;
    let out = good(&output);
    assert!(
        out.contains("units, drop-ins and scripts are good"),
        "{out}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_tells_systemd_that_it_listens_lives_and_ends() -> anyhow::Result<()> {
    let folder = place::temporary("notify")?;
    let path = folder.path().join("socket");
    let systemd = UnixDatagram::bind(&path)?;
    // Longer than any of it takes; a message that never comes ends the test.
    systemd.set_read_timeout(Some(Duration::from_mins(1)))?;
    let options = Options {
        env: vec![
            ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
            ("WATCHDOG_USEC".to_owned(), "400000".to_owned()),
        ],
        ..Options::default()
    };
    let mut api = Api::start(options).await?;
    let heard = || -> anyhow::Result<String> {
        let mut buffer = [0; 256];
        let len = systemd.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
    };
    let ready = format!("READY=1\nSTATUS=serves on {}", api.address());
    assert_eq!(heard()?, ready);
    for _ in 0..3 {
        assert_eq!(heard()?, "WATCHDOG=1");
    }
    // A program that is stopped feeds nobody.
    api.process().signal(holdfast_tests::process::Signal::STOP);
    systemd.set_nonblocking(true)?;
    while heard().is_ok() {}
    systemd.set_nonblocking(false)?;
    systemd.set_read_timeout(Some(Duration::from_millis(1_200)))?;
    assert!(heard().is_err(), "three intervals without a word");
    api.process().signal(holdfast_tests::process::Signal::CONT);
    systemd.set_read_timeout(Some(Duration::from_mins(1)))?;
    assert_eq!(heard()?, "WATCHDOG=1");
    api.process().signal(holdfast_tests::process::Signal::TERM);
    while heard()? != "STOPPING=1" {}
    Ok(())
}
