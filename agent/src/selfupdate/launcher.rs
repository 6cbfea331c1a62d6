//! Owns starting the chosen program of the agent: the first thing that `holdfast-agent run` does.
//!
//! Refuses to fail: whatever goes wrong here, the installed program runs itself. It is the same process from
//! the first instruction to the last program, so that a service manager sees one that runs on.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};

use super::launch::{Choice, Start, TRIAL_SECONDS, after_failure, choose, without_trial};
use super::slots::{Begun, FOLDER, Package, Place, Slots, Stamp};
use crate::clock::{Clock as _, SystemClock};
use crate::lock::FolderLock;
use crate::system;

/// Says to a program of a slot which one it is of, so that it launches no other.
const SLOT: &str = "HOLDFAST_SLOT";
/// Says to it where the installed program is.
const PACKAGE: &str = "HOLDFAST_PACKAGE";
/// This very program, also when its file was replaced since.
const SELF: &str = "/proc/self/exe";
/// The bit of SIGALRM (14) in the masks of `/proc/self/status`.
const ALARM_BIT: u64 = 1 << 13;

/// How this program came to run.
#[derive(Clone, Debug)]
pub struct Launched {
    /// Where it is.
    pub place: Place,
    /// Where the installed program is, which is also the launcher.
    pub package: PathBuf,
    /// What went wrong before it.
    pub note: Option<String>,
    /// Whether what becomes of a release could not be written down: none is tried for a while.
    pub unwritten: bool,
}

impl Launched {
    /// A program that nothing launched.
    pub fn directly() -> Self {
        Self {
            place: Place::Package,
            package: own_path(),
            note: None,
            unwritten: false,
        }
    }
}

/// Starts the program that is to run with this state folder, in the place of this one; returns if this one is.
pub fn launch(state_dir: &Path) -> Launched {
    let slot = std::env::var(SLOT).ok();
    if let Some(place) = slot.as_deref().and_then(Place::slot) {
        let package = std::env::var_os(PACKAGE).map_or_else(own_path, PathBuf::from);
        return Launched {
            place,
            package,
            note: None,
            unwritten: false,
        };
    }
    // One that ends in good order takes its deadline away itself; nothing inherited may end this one.
    nix::unistd::alarm::cancel();
    let folder = state_dir.join(FOLDER);
    if !folder.is_dir() {
        return Launched::directly();
    }
    // Another agent at work is about to be told so; its trial is not this one's to judge.
    let Ok(lock) = FolderLock::take(state_dir) else {
        return Launched::directly();
    };
    let mut launched = Launched::directly();
    if let Err(why) = go(&folder, &mut launched.unwritten) {
        launched.note = Some(why);
    }
    drop(lock);
    launched
}

/// Returns, with what went wrong, if the installed program is to run. What is only a release's fault is remembered
/// of it and no complaint.
fn go(folder: &Path, unwritten: &mut bool) -> Result<(), String> {
    let before = Slots::read(folder)?;
    let start = look(&before);
    let (mut slots, mut choice) = choose(&before, &start);
    let mut outcome = Ok(());
    if slots != before
        && let Err(error) = slots.write(folder)
    {
        (*unwritten, outcome) = (true, Err(not_written(&error)));
        if matches!(choice, Choice::Trial(_)) {
            choice = without_trial(&before);
            slots = before;
        }
    }
    // Each failure leads one step back: trial, confirmed release, installed program.
    loop {
        let place = match choice {
            Choice::Package => return outcome,
            Choice::Slot(place) | Choice::Trial(place) => place,
        };
        if matches!(choice, Choice::Trial(_)) {
            nix::unistd::alarm::set(TRIAL_SECONDS);
        }
        let Err(error) = execute(&place.program(folder), place);
        nix::unistd::alarm::cancel();
        (slots, choice) = after_failure(&slots, choice, &error.to_string(), start.now);
        if let Err(error) = slots.write(folder) {
            (*unwritten, outcome) = (true, Err(not_written(&error)));
        }
    }
}

fn not_written(error: &std::io::Error) -> String {
    format!("what becomes of the agent's releases cannot be written down: {error}")
}

fn look(before: &Slots) -> Start {
    Start {
        installed: before.package.as_ref().and_then(another),
        moment: moment(),
        now: SystemClock::start().now(),
        lacks_deadline: lacks_deadline(),
    }
}

/// This moment, as trials count.
pub(super) fn moment() -> Begun {
    Begun {
        boot: system::boot_id().unwrap_or_default(),
        uptime_ms: system::uptime_ms(),
    }
}

/// This program, if it is another one than the remembered one; a file that was only written again is not.
fn another(remembered: &Package) -> Option<Package> {
    let seen = std::fs::metadata(SELF)
        .ok()
        .map(|found| Stamp::of(&found))?;
    if seen == remembered.stamp {
        return None;
    }
    let sha256 = hash_of(Path::new(SELF)).ok()?;
    (sha256 != remembered.sha256).then_some(Package {
        stamp: seen,
        sha256,
    })
}

/// The installed program as it is now.
pub(super) fn package(launched: &Launched) -> std::io::Result<Package> {
    let path = match launched.place {
        Place::Package => Path::new(SELF),
        Place::A | Place::B => &launched.package,
    };
    Ok(Package {
        stamp: Stamp::of(&std::fs::metadata(path)?),
        sha256: hash_of(path)?,
    })
}

/// The hash of this very program.
pub(super) fn own_hash() -> std::io::Result<String> {
    hash_of(Path::new(SELF))
}

/// The first bytes of this very program: what machine it was made for.
pub(super) fn own_head() -> std::io::Result<[u8; super::release::HEAD_BYTES]> {
    let mut head = [0; super::release::HEAD_BYTES];
    std::fs::File::open(SELF)?.read_exact(&mut head)?;
    Ok(head)
}

fn hash_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut block = vec![0; 64 << 10];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(super::hex(context.finish().as_ref())),
            read => context.update(&block[..read]),
        }
    }
}

/// Where this program is, or was before it was replaced.
fn own_path() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(SELF));
    match path
        .to_str()
        .and_then(|text| text.strip_suffix(" (deleted)"))
    {
        Some(text) => PathBuf::from(text),
        None => path,
    }
}

/// Why a timer of this process could not end the next program: who started it may have switched that off.
fn lacks_deadline() -> Option<String> {
    // This thread's own: another may block everything for the moment in which it makes one more.
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let masks = [("SigBlk:", "blocked"), ("SigIgn:", "ignored")];
    let (_, word) = masks
        .into_iter()
        .find(|(name, _)| mask(name).is_some_and(|bits| bits & ALARM_BIT != 0))?;
    Some(format!(
        "SIGALRM is {word} where the agent was started: one that hangs could not be ended"
    ))
}

/// Starts a program in the place of this one, with the same arguments and these variables changed. By the kernel's
/// own call: what it does not know as a program must not be given to a shell.
fn replace(
    program: &Path,
    variables: &[(&str, Option<OsString>)],
) -> Result<Infallible, std::io::Error> {
    let text = |bytes: Vec<u8>| CString::new(bytes).map_err(std::io::Error::from);
    let words = std::env::args_os().map(|word| text(word.into_vec()));
    let words = words.collect::<Result<Vec<_>, _>>()?;
    let kept = std::env::vars_os()
        .filter(|(name, _)| variables.iter().all(|(changed, _)| name != changed));
    let set = variables
        .iter()
        .filter_map(|(name, value)| Some((OsString::from(name), value.clone()?)));
    let environment = kept.chain(set).map(|(mut pair, value)| {
        pair.push("=");
        pair.push(value);
        text(pair.into_vec())
    });
    let environment = environment.collect::<Result<Vec<_>, _>>()?;
    let program = text(program.as_os_str().as_bytes().to_vec())?;
    Ok(nix::unistd::execve(&program, &words, &environment)?)
}

fn execute(program: &Path, place: Place) -> Result<Infallible, std::io::Error> {
    let variables = [
        (SLOT, Some(place.word().into())),
        (PACKAGE, Some(own_path().into_os_string())),
    ];
    replace(program, &variables)
}

/// Starts the launcher in the place of this program, whose loops have ended. Returns, with the reason, if that
/// cannot be done.
pub fn again(launched: &Launched) -> std::io::Error {
    disarm();
    let Err(error) = replace(&launched.package, &[(SLOT, None), (PACKAGE, None)]);
    error
}

/// Takes the deadline of a trial away.
pub(super) fn disarm() {
    nix::unistd::alarm::cancel();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_only_written_again_is_the_same_program() {
        let own = package(&Launched::directly()).unwrap();
        assert_eq!(another(&own), None);
        let mut moved = own.clone();
        moved.stamp.inode += 1;
        assert_eq!(another(&moved), None, "its content is the same");
        moved.sha256 = "0".repeat(64);
        assert_eq!(another(&moved), Some(own));
    }

    #[test]
    fn tests_can_be_ended_by_a_timer() {
        assert_eq!(lacks_deadline(), None);
        assert_eq!(own_hash().unwrap().len(), 64);
        assert_eq!(&own_head().unwrap()[..4], b"\x7fELF");
    }
}
