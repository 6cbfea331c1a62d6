//! `make order`: lets an agent come to rest under callgrind, and writes `cross/order.ld` from what it called.
//!
//! A kernel maps a program's pages where they are touched, and their neighbours with them. Where the functions of a
//! resting agent lie together, the rest of the program is not in memory.
#![allow(clippy::print_stdout, reason = "it reports its progress")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_tests::images::{Image, noise};
use holdfast_tests::site::{Site, service, target};
use holdfast_tests::tls_front::{Line, TlsFront};
use holdfast_tests::{apt, place};
use serde_json::{Value, json};

const USAGE: &str = "usage: order PROGRAM FILE
  PROGRAM   an agent with its symbols
  FILE      the linker script that is written";

/// As many as `make bench PARTS=footprint` has.
const CONTAINERS: usize = 20;
/// So many more are taken away again before it rests: a target follows another, and what went is forgotten.
const MORE: usize = 4;
/// Reports of an agent at rest, one in five seconds: looks at the engine, one in a minute, lie between them, and that at
/// idle connections, after 90 s.
const REPORTS: u64 = 24;
/// Comes in several parts.
const LAYER_BYTES: usize = 1 << 20;
/// Below callgrind everything takes fifty times as long.
const SETTLES_WITHIN: Duration = Duration::from_mins(20);
/// A pattern may bring so many bytes of functions that were not called, or this part of those that were: exact
/// patterns for each function are three times as many lines, and fit no other version.
const STRAY_BYTES: u64 = 32;
const STRAY_PART: u64 = 20;
/// Patterns have so many characters at least, and are tried in steps of so many more.
const SHORTEST: usize = 8;
const STEP: usize = 4;
/// What the code generator makes of instructions that stand in many places. They are small, called from everywhere, and
/// their names are numbers.
const OUTLINED: &str = "OUTLINED_FUNCTION_";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [program, out] = words.as_slice() else {
        bail!(USAGE);
    };
    let sizes = symbols(program)?;
    if sizes.len() < 1_000 {
        bail!("{} has no symbols", program.display());
    }
    let mut calls = watch(program, Line::Tls).await?;
    let plain = watch(program, Line::Plain).await?;
    calls.starting.extend(plain.starting);
    calls.resting.extend(plain.resting);
    let of_program = |called: &BTreeSet<String>| -> BTreeSet<String> {
        let called = called.iter().filter(|name| sizes.contains_key(*name));
        called.cloned().collect()
    };
    let resting = of_program(&calls.resting);
    let starting = of_program(&calls.starting);
    let text = script(&sizes, &resting, &starting);
    fs::write(out, &text)?;
    println!(
        "{} functions at rest, {} in all, of {}: {} lines in {}",
        resting.len(),
        resting.union(&starting).count(),
        sizes.len(),
        text.lines().count(),
        out.display()
    );
    Ok(())
}

/// Functions that were called, by their symbols.
struct Calls {
    /// From the start until twenty containers ran, and those that were too many were gone.
    starting: BTreeSet<String>,
    /// After that.
    resting: BTreeSet<String>,
}

async fn watch(program: &Path, line: Line) -> anyhow::Result<Calls> {
    apt::require(&["valgrind", "setpriv"])?;
    let site = Site::start().await?;
    let front = TlsFront::start(site.api.address()).await?;
    // A layer that no engine has yet: it is fetched.
    let image = Image::idle(format!("idle-{}", place::unique()), "1")
        .file("data", noise(LAYER_BYTES))
        .push(&site.registry, "1")
        .await?;
    let api = match line {
        Line::Plain => site.api.url(),
        Line::Tls => format!("https://{}", front.address()),
    };
    let mut device = site
        .device_at(api, |mut options| {
            options.program = Some(program.to_owned());
            front.trusted(options).set("log", "level", "info")
        })
        .await?;
    let folder = place::temporary("order")?;
    let file = folder.path().join("calls").display().to_string();
    device.agent.run_under(&[
        "valgrind".to_owned(),
        "--quiet".to_owned(),
        "--tool=callgrind".to_owned(),
        "--trace-children=yes".to_owned(),
        "--demangle=no".to_owned(),
        "--compress-strings=no".to_owned(),
        format!("--callgrind-out-file={file}"),
    ])?;
    let services: Vec<Value> = (0..CONTAINERS + MORE)
        .map(|number| service(&format!("idle{number}"), &image.reference(), &json!({})))
        .collect();
    let more = target(&services);
    site.settle(&device, &more, 1, SETTLES_WITHIN).await?;
    let wanted = target(&services[..CONTAINERS]);
    site.settle(&device, &wanted, 1, SETTLES_WITHIN).await?;
    let pid = device.agent.process()?.pid().to_string();
    // Each writes what was called since the one before.
    let dump = || apt::run(Command::new("callgrind_control").args(["--dump", &pid]));
    dump()?;
    site.settle(&device, &wanted, REPORTS, SETTLES_WITHIN)
        .await?;
    dump()?;
    Ok(Calls {
        starting: called(&fs::read_to_string(format!("{file}.1"))?),
        resting: called(&fs::read_to_string(format!("{file}.2"))?),
    })
}

/// The functions of a callgrind file: lines `fn=NAME`, with `'2` behind one that calls itself.
fn called(text: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("fn="));
    names
        .map(|name| name.split_once('\'').map_or(name, |(name, _)| name))
        .map(str::to_owned)
        .collect()
}

/// The program's functions and their bytes.
fn symbols(program: &Path) -> anyhow::Result<BTreeMap<String, u64>> {
    let listed = apt::run(Command::new("nm").arg("--print-size").arg(program))?;
    let mut sizes = BTreeMap::new();
    for line in listed.lines() {
        if let [_, size, "t" | "T", name] = *line.split(' ').collect::<Vec<_>>() {
            let size = u64::from_str_radix(size, 16).with_context(|| line.to_owned())?;
            sizes.insert(name.to_owned(), size);
        }
    }
    Ok(sizes)
}

/// A symbol without what changes with each compiler, target and version, as a pattern: `*` for the numbers of crates
/// (`Cs…_`, in Rust's mangling), and for those that tell copies of a function apart (`.123`, `.llvm.123`).
fn lasting(symbol: &str) -> String {
    let name = symbol.trim_end_matches(|c: char| c.is_ascii_digit());
    let name = name.strip_suffix('.').filter(|_| name != symbol);
    let copy = name.map(|name| name.strip_suffix(".llvm").unwrap_or(name));
    let (symbol, end) = copy.map_or((symbol, ""), |name| (name, "*"));
    let mut lasting = String::new();
    let mut rest = symbol;
    while let Some((before, after)) = rest.split_once("Cs") {
        lasting.push_str(before);
        lasting.push_str("Cs");
        let number = after.find(|c: char| !c.is_ascii_alphanumeric());
        rest = match number {
            Some(end) if end > 5 && after[end..].starts_with('_') => {
                lasting.push('*');
                &after[end..]
            }
            _ => after,
        };
    }
    lasting + rest + end
}

/// Whether a linker would say that the pattern matches: `*` stands for any characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        // The earliest place is as good as any.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Patterns that match these functions and few others; `placed` are in their place already, and do not count.
fn patterns(
    sizes: &BTreeMap<String, u64>,
    wanted: &BTreeSet<String>,
    placed: &BTreeSet<String>,
) -> Vec<String> {
    let mut left: BTreeMap<&str, u64> = sizes
        .iter()
        .filter(|(name, _)| !name.contains(OUTLINED) && !placed.contains(*name))
        .map(|(name, size)| (name.as_str(), *size))
        .collect();
    // By what lasts, to see quickly what a pattern cannot do; `*` may match more than a number, so it is looked at whole.
    let mut lasts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (name, size) in &left {
        let (called, stray) = lasts.entry(lasting(name)).or_default();
        if wanted.contains(*name) {
            *called += (*size).max(1);
        } else {
            *stray += size;
        }
    }
    let is_near = |(called, stray): (u64, u64)| stray <= STRAY_BYTES.max(called / STRAY_PART);
    let mut patterns = Vec::new();
    for name in wanted {
        if !left.contains_key(name.as_str()) {
            continue;
        }
        let whole = lasting(name);
        // All that any of the patterns can match begins so.
        let literal = whole.split('*').next().unwrap_or_default();
        let literal = literal.get(..SHORTEST).unwrap_or(literal).to_owned();
        let alike: Vec<(&str, u64)> = left
            .range(literal.as_str()..)
            .take_while(|(other, _)| other.starts_with(&literal))
            .map(|(name, size)| (*name, *size))
            .collect();
        let ends = (SHORTEST..whole.len()).step_by(STEP);
        let ends = ends.filter(|end| whole.is_char_boundary(*end) && !whole[..*end].ends_with('*'));
        let starts = ends.filter(|end| {
            let same = lasts.range(whole[..*end].to_owned()..);
            let same = same.take_while(|(other, _)| other.starts_with(&whole[..*end]));
            is_near(same.fold((0, 0), |sum, (_, one)| (sum.0 + one.0, sum.1 + one.1)))
        });
        let mut starts = starts.map(|end| format!("{}*", &whole[..end]));
        let fits = |pattern: &String| {
            let (mut called, mut stray) = (0, 0);
            for (other, size) in alike.iter().filter(|(other, _)| matches(pattern, other)) {
                if wanted.contains(*other) {
                    called += (*size).max(1);
                } else {
                    stray += size;
                }
            }
            is_near((called, stray))
        };
        // A whole name that matches others as well is no reason to leave it out.
        let pattern = starts.find(fits).unwrap_or_else(|| whole.clone());
        for (other, _) in alike {
            if matches(&pattern, other) {
                left.remove(other);
            }
        }
        patterns.push(pattern);
    }
    patterns
}

fn script(
    sizes: &BTreeMap<String, u64>,
    resting: &BTreeSet<String>,
    starting: &BTreeSet<String>,
) -> String {
    let mut text = String::from(
        "/* Written by `make order`: where the agent's functions lie, so that few pages of it are in memory at rest.\n   \
         What is not there, or has another name in another version, lies where it always did. */\n\
         SECTIONS {\n  \
         /* Slow paths of functions that are called: the compiler marked them. */\n  \
         .text.seldom : { *(.text.unlikely.*) }\n  .text.rest : {\n",
    );
    let mut group = |wanted: &BTreeSet<String>, placed: &BTreeSet<String>| {
        text.push_str("    *(\n");
        for pattern in patterns(sizes, wanted, placed) {
            // A String takes everything.
            let _ = writeln!(text, "      .text.{pattern}");
        }
        text.push_str("    )\n");
    };
    group(resting, &BTreeSet::new());
    group(&(starting - resting), resting);
    let _ = write!(
        text,
        "    *(.text.{OUTLINED}*)\n    \
         /* What is sealed and opened with is chosen by the processor; the one that was watched is not the newest. */\n    \
         *(.text.*4ring4aead*)\n    \
         /* Assembly, and the C library's own part of the program, have no sections for functions. */\n    \
         *libring*(.text)\n    *libc_nonshared*(.text .text.*)\n    *crt1.o(.text .text.*)\n  }}\n}}\n\
         /* Between the rest and what calls the C library (.plt). */\n\
         INSERT AFTER .text;\n\
         /* A table that only signatures are checked with is larger than all other constants. */\n\
         SECTIONS {{\n  .rodata.seldom : {{ *(.rodata.ecp_nistz256_precomputed) }}\n}}\nINSERT BEFORE .rodata;\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbols_are_the_same_in_every_build() {
        assert_eq!(
            lasting("_RNvNtCs7RbIgKKbopi_12tracing_core10dispatcher3get"),
            "_RNvNtCs*_12tracing_core10dispatcher3get"
        );
        assert_eq!(
            lasting("_RNvCs7RbIgKKbopi_1a3get.llvm.123"),
            "_RNvCs*_1a3get*"
        );
        assert_eq!(
            lasting("_RNvNt5alloc5boxed3new.5110"),
            "_RNvNt5alloc5boxed3new*"
        );
        for same in ["sqlite3VdbeExec", "CsvReader", "a_Cs_b", "main", "sha256"] {
            assert_eq!(lasting(same), same);
        }
    }

    #[test]
    fn patterns_match_as_a_linker_says() {
        let number = "_RNvNtCs7RbIgKKbopi_12tracing_core10dispatcher3get";
        for pattern in [
            "_RNvNtCs*_12tracing_core10dispatcher3get",
            "_RNvNtCs*_12*",
            number,
        ] {
            assert!(matches(pattern, number), "{pattern}");
        }
        for pattern in [
            "_RNvNtCs*_12tracing_core10dispatcher3ge",
            "RNv*",
            "_RNvNtCs*_13*",
            "",
        ] {
            assert!(!matches(pattern, number), "{pattern}");
        }
    }

    #[test]
    fn patterns_match_what_is_wanted_and_little_else() {
        let sizes: BTreeMap<String, u64> = [
            ("_RNvNt5tokio4park", 500),
            ("_RNvNt5tokio4poll", 700),
            ("_RNvNt5hyper4send", 900),
            ("_RNvNt5hyper4sent", 900),
            ("OUTLINED_FUNCTION_1", 9),
        ]
        .map(|(name, size)| (name.to_owned(), size))
        .into();
        let wanted = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let all_of_tokio = ["_RNvNt5tokio4park", "_RNvNt5tokio4poll"];
        assert_eq!(
            patterns(&sizes, &wanted(&all_of_tokio), &BTreeSet::new()),
            ["_RNvNt5t*"]
        );
        assert_eq!(
            patterns(
                &sizes,
                &wanted(&["_RNvNt5hyper4send", "_RNvNt5tokio4poll"]),
                &BTreeSet::new()
            ),
            ["_RNvNt5hyper4send", "_RNvNt5tokio4pol*"]
        );
        assert_eq!(
            patterns(
                &sizes,
                &wanted(&["_RNvNt5tokio4poll"]),
                &wanted(&["_RNvNt5tokio4park"])
            ),
            ["_RNvNt5t*"]
        );
        let text = script(&sizes, &wanted(&all_of_tokio), &BTreeSet::new());
        assert!(text.contains(".text._RNvNt5t*\n") && text.contains("INSERT AFTER .text;\n"));
    }

    #[test]
    fn a_function_that_calls_itself_is_one() {
        let text = "fl=(1)\nfn=one\n1 2\ncfn=three\nfn=two'2\nfn=two\n";
        let names: Vec<String> = called(text).into_iter().collect();
        assert_eq!(names, ["one", "two"]);
    }
}
