//! One script of calls on the fake and on a real engine: every answer must be of the same kind.
//!
//! It keeps the fake true: what a fast test finds out on the fake holds on dockerd.

#[path = "fake/clock.rs"]
mod clock;
#[path = "conformance/fake_side.rs"]
mod fake_side;
#[path = "conformance/real_side.rs"]
mod real_side;
#[path = "conformance/script.rs"]
mod script;

use holdfast_tests::disk::SmallDisk;
use holdfast_tests::engine::{Engine, Private};
use real_side::Scene;
use script::{Cast, Row};

const SHARED: &str = include_str!("conformance/shared.txt");
const PRIVATE: &str = include_str!("conformance/private.txt");
/// What the issue asks for.
const AT_LEAST: usize = 150;
/// Room for the script's images and an engine; small, so that it is full soon.
const DISK_BYTES: u64 = 96 << 20;

/// The lines whose answers differ.
fn differences(fake: &[Row], real: &[Row]) -> Vec<String> {
    assert_eq!(fake.len(), real.len(), "both play the same script");
    let pairs = fake.iter().zip(real).filter(|(fake, real)| fake != real);
    let told = |(fake, real): (&Row, &Row)| {
        let (number, line) = (fake.number, &fake.line);
        format!(
            "line {number}: {line}\n   fake: {}\n   real: {}",
            fake.answer, real.answer
        )
    };
    pairs.map(told).collect()
}

/// The fake's answers to a script.
fn on_the_fake(cast: &Cast, script: &str, lie: Option<(&str, &str)>) -> anyhow::Result<Vec<Row>> {
    // It has a runtime of its own, whose time is virtual.
    std::thread::scope(|scope| {
        let play = scope.spawn(|| fake_side::play(cast, script, lie));
        play.join().expect("the fake side ends")
    })
}

#[expect(clippy::print_stdout, reason = "shown only with --no-capture")]
fn assert_same(fake: &[Row], real: &[Row]) {
    let found = differences(fake, real);
    println!("{} calls, {} answered otherwise", real.len(), found.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_answers_every_call_as_a_real_engine_does() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let engine = Engine::private().await?;
    let real = real_side::play(&engine, &scene.cast, SHARED).await?;
    assert_same(&on_the_fake(&scene.cast, SHARED, None)?, &real);
    assert!(real.len() >= AT_LEAST, "only {} calls", real.len());

    // The comparison can fail: a fake that forgets how SIGTERM is ignored is found out.
    let liar = on_the_fake(&scene.cast, SHARED, Some(("stubborn", "idle")))?;
    let lies = differences(&liar, &real);
    let [lie] = lies.as_slice() else {
        panic!("one answer is a lie, found {lies:#?}");
    };
    assert!(
        lie.contains("look mule") && lie.contains("exited 137"),
        "{lie}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_fails_and_returns_as_a_real_engine_does() -> anyhow::Result<()> {
    let scene = Scene::set().await?;
    let engine = Engine::private_with(Private {
        disk: Some(SmallDisk::of(DISK_BYTES)),
        ..Private::default()
    });
    let engine = engine.await?;
    let real = real_side::play(&engine, &scene.cast, PRIVATE).await?;
    assert_same(&on_the_fake(&scene.cast, PRIVATE, None)?, &real);
    Ok(())
}
