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

use holdfast_tests::engine::Engine;
use script::Row;

const SHARED: &str = include_str!("conformance/shared.txt");
/// What the issue asks for.
const AT_LEAST: usize = 150;

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

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_answers_every_call_as_a_real_engine_does() -> anyhow::Result<()> {
    let scene = real_side::Scene::set().await?;
    let engine = Engine::private().await?;
    let real = real_side::play(&engine, &scene.cast, SHARED).await?;
    let cast = scene.cast;
    let fake = |lie| {
        std::thread::scope(|scope| {
            let play = scope.spawn(|| fake_side::play(&cast, SHARED, lie));
            play.join().expect("the fake side ends")
        })
    };
    let found = differences(&fake(None)?, &real);
    println!("{} calls, {} answered otherwise", real.len(), found.len());
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(real.len() >= AT_LEAST, "only {} calls", real.len());

    // The comparison can fail: a fake that forgets how SIGTERM is ignored is found out.
    let lies = differences(&fake(Some(("stubborn", "idle")))?, &real);
    let [lie] = lies.as_slice() else {
        panic!("one answer is a lie, found {lies:#?}");
    };
    assert!(
        lie.contains("look mule") && lie.contains("exited 137"),
        "{lie}"
    );
    Ok(())
}
