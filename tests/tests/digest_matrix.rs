//! A sample of `make digest-matrix`: some of its images, each with all that may happen to it.

use holdfast_tests::matrix::list::cases;
use holdfast_tests::matrix::page::{About, write};
use holdfast_tests::matrix::run::Matrix;
use holdfast_tests::matrix::shape::Structure;

/// Every so many images: a few of each structure, in seconds.
const EVERY: usize = 41;

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_the_digest_matrix_has_no_wrong_answer() -> anyhow::Result<()> {
    let sample: Vec<_> = cases().into_iter().skip(2).step_by(EVERY).collect();
    for structure in [Structure::Single, Structure::Index, Structure::Nested] {
        let has = sample
            .iter()
            .any(|(base, _)| base.image.structure == structure);
        assert!(has, "{structure:?}");
    }
    let answers = Matrix::start().await?.run(sample, |_| {}).await?;
    let page = write(&About::default(), &answers);
    assert!(answers.len() >= 30, "{page}");
    assert!(page.ends_with(", 0 wrong\n"), "{page}");
    Ok(())
}
