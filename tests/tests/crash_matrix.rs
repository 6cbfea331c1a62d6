//! A cross-section of the crash matrix: `make crash-matrix` runs all of it.

use holdfast_tests::crash::list;
use holdfast_tests::crash::matrix::Matrix;
use holdfast_tests::crash::point::Outcome;
use holdfast_tests::crash::scenario::Scenario;

/// As many points as fit two minutes on two cores.
const POINTS: usize = 40;
/// Side by side, each with an engine of its own.
const LANES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_at_a_sample_of_points_the_end_is_as_without() -> anyhow::Result<()> {
    let mut matrix = Matrix::start(LANES, &Scenario::ALL).await?;
    let points = list::sample(&matrix.points(), POINTS);
    let results = matrix.run(points, |_| {}).await;
    let broken: Vec<String> = results
        .iter()
        .filter_map(|(point, outcome)| match outcome {
            Outcome::Violated(found) => Some(format!("{point}: {found:?}")),
            Outcome::Held { .. } | Outcome::NotReached => None,
        })
        .collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    let held = |outcome: &&Outcome| matches!(outcome, Outcome::Held { .. });
    let reached = results.values().filter(held).count();
    assert!(
        reached >= POINTS * 9 / 10,
        "only {reached} of {POINTS} points were reached"
    );
    Ok(())
}
