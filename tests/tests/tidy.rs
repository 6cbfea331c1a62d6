//! What a machine can check of our own rules: the shape of the tree, and that its map is true.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn run(program: &str, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .current_dir(root())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Every file that belongs to the project, as git sees it.
fn files() -> Vec<String> {
    run(
        "git",
        &["ls-files", "--cached", "--others", "--exclude-standard"],
    )
    .lines()
    .filter(|path| root().join(path).is_file())
    .map(str::to_owned)
    .collect()
}

fn sources() -> Vec<(String, String)> {
    files()
        .into_iter()
        .filter(|path| {
            Path::new(path)
                .extension()
                .is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests/tests/tidy.rs")
        })
        .map(|path| {
            let text = fs::read_to_string(root().join(&path)).expect("a source file");
            (path, text)
        })
        .collect()
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_source_file_says_what_it_owns() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert_none("files that do not open with `//!`", &silent);
}

#[test]
fn nothing_is_left_to_do_and_no_test_is_skipped() {
    let debts = [
        "TODO",
        "FIXME",
        "XXX",
        "todo!(",
        "unimplemented!(",
        "#[ignore",
    ];
    let found: Vec<String> = sources()
        .iter()
        .flat_map(|(path, text)| {
            text.lines().enumerate().filter_map(move |(number, line)| {
                let debt = debts.iter().find(|debt| line.contains(**debt))?;
                Some(format!("{path}:{}: {debt}", number + 1))
            })
        })
        .collect();
    assert_none("debts", &found);
}

#[test]
fn pure_crates_have_nothing_to_do_io_with() {
    for package in ["holdfast-proto", "holdfast-plan", "holdfast-domain"] {
        let tree = run(
            "cargo",
            &[
                "tree",
                "--offline",
                "--package",
                package,
                "--edges",
                "normal",
                "--prefix",
                "none",
                "--all-features",
            ],
        );
        let found: Vec<String> = tree
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| {
                [
                    "tokio", "bollard", "reqwest", "rusqlite", "postgres", "hyper", "axum", "libc",
                ]
                .contains(name)
            })
            .map(str::to_owned)
            .collect();
        // ring itself asks libc about the processor; no crate of ours is given it.
        let found: Vec<String> = found.into_iter().filter(|name| name != "libc").collect();
        assert_none(&format!("{package} depends on what can do I/O"), &found);
    }
}

#[test]
fn each_outside_library_is_named_where_it_can_be_swapped() {
    let homes: [(&str, &[&str]); 6] = [
        ("bollard::", &["agent/src/engine/"]),
        (
            "serde_yaml::",
            &["config", "agent/plan/tests/", "proto/src/"],
        ),
        ("backoff::", &["retry.rs"]),
        ("sysinfo::", &["agent/src/system.rs"]),
        ("lettre::", &["control-api/src/notify/mail.rs"]),
        (
            "rusqlite::",
            &["agent/src/journal", "control-api/src/store/"],
        ),
    ];
    let mut strays = Vec::new();
    for (path, text) in sources() {
        for (library, allowed) in homes {
            let named = text
                .lines()
                .any(|line| line.contains(library) && !line.trim_start().starts_with("//"));
            if named && !allowed.iter().any(|home| path.contains(home)) {
                strays.push(format!("{path}: {library}"));
            }
        }
    }
    assert_none("libraries named outside their place", &strays);
}

#[test]
fn the_map_names_files_that_exist() {
    let mut missing = Vec::new();
    for page in ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(page)).expect("a page");
        for part in text.split('`').skip(1).step_by(2) {
            let is_path = part.contains('/')
                && !part.contains([' ', '{', '*', '$', ':', '<', '…'])
                && !part.starts_with(['/', '-', '~']);
            let place = part.trim_end_matches('/');
            let known_top = [
                "agent",
                "control-api",
                "proto",
                "systemd",
                "cross",
                "tests",
                "docs",
                ".ci",
            ];
            let ours = known_top
                .iter()
                .any(|top| place.starts_with(&format!("{top}/")));
            if is_path && ours && !root().join(place).exists() {
                missing.push(format!("{page}: {part}"));
            }
        }
    }
    assert_none("paths that do not exist", &missing);
}

#[test]
fn no_tracked_file_names_a_folder_of_one_machine() {
    let me = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .expect("the project's folder");
    let me = me.display().to_string();
    let found: Vec<String> = files()
        .into_iter()
        .filter(|path| fs::read_to_string(root().join(path)).is_ok_and(|text| text.contains(&me)))
        .collect();
    // A checkout directly under the root has a name too short to mean anything.
    if me.matches('/').count() > 1 {
        assert_none("files that name this checkout's folder", &found);
    }
}

/// Rows of the fault lists: of the agent, and of the control API.
const FAULTS: [(char, std::ops::RangeInclusive<u8>); 2] = [('A', 1..=60), ('C', 1..=48)];

/// Whether a source has a test of a row. Its name begins with the row's id; a test of several rows begins with all.
fn has_test(text: &str, id: &str) -> bool {
    let id = id.to_lowercase();
    let names = text.split("fn ").skip(1);
    names.into_iter().any(|name| {
        let ids = name.split('_').take_while(|word| {
            let (letter, number) = word.split_at_checked(1).unwrap_or_default();
            ["a", "c"].contains(&letter) && number.len() == 2 && number.parse::<u8>().is_ok()
        });
        ids.into_iter().any(|word| word == id)
    })
}

#[test]
fn every_fault_has_a_test_or_a_reason() {
    let page = fs::read_to_string(root().join("docs/faults.md")).expect("the page of faults");
    let sources = sources();
    let mut wrong = Vec::new();
    let ids = FAULTS
        .into_iter()
        .flat_map(|(list, numbers)| numbers.map(move |number| format!("{list}{number:02}")));
    for id in ids {
        let begins = format!("| {id} |");
        let Some(row) = page.lines().find(|line| line.starts_with(&begins)) else {
            wrong.push(format!("{id} has no row"));
            continue;
        };
        let last = row
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .unwrap_or_default();
        let tested = sources.iter().filter(|(_, text)| has_test(text, &id));
        let mut tested: Vec<&str> = tested.map(|(path, _)| path.as_str()).collect();
        let mut named: Vec<&str> = last
            .split('`')
            .filter(|part| {
                Path::new(part)
                    .extension()
                    .is_some_and(|extension| extension == "rs")
            })
            .collect();
        tested.sort_unstable();
        named.sort_unstable();
        if named != tested {
            wrong.push(format!(
                "{id}: the page names {named:?}, tests are in {tested:?}"
            ));
        }
        let reason = last
            .strip_prefix("not here: ")
            .is_some_and(|why| !why.is_empty());
        if tested.is_empty() && !reason {
            wrong.push(format!("{id} has neither test nor reason"));
        }
    }
    assert_none("docs/faults.md", &wrong);
}
