//! Owns by which name an engine knows an image that came from anywhere: the same content is the same image,
//! whoever named it.

use holdfast_plan::keep_tag;
use holdfast_proto::image::{Expected, ImageStore};

use super::{Engine, EngineError, EngineImage, NewContainer};

/// The image with this content or, if it is known by none of its ids, with this pinned name.
///
/// # Errors
/// When the engine does not answer.
pub async fn find<E: Engine>(
    engine: &E,
    store: ImageStore,
    pinned: &str,
    expected: Option<&Expected>,
) -> Result<Option<EngineImage>, EngineError> {
    if let Some(expected) = expected
        && let Some(image) = engine.image(&id(store, expected)).await?
    {
        return Ok(Some(image));
    }
    engine.image(pinned).await
}

/// The engine's id for this content, where it was pulled by its manifest's digest.
pub fn id(store: ImageStore, expected: &Expected) -> String {
    match store {
        ImageStore::Classic => expected.config_digest.0.to_string(),
        ImageStore::Containerd => expected.manifest_digest.0.to_string(),
    }
}

/// The name to make a container from: the pinned one, else the tag that keeps the image, which is shown to
/// people, else its id alone. A tag that somebody gave to another image is not it.
///
/// # Errors
/// When the engine does not answer.
pub async fn name_for<E: Engine>(
    engine: &E,
    new: &NewContainer<'_>,
) -> Result<String, EngineError> {
    let pinned = &new.service.image_name;
    let pin = new.service.pin.as_ref();
    let expected = pin.and_then(|pin| pin.expected.as_ref());
    let Some(expected) = expected.filter(|_| pinned.contains('@')) else {
        return Ok(pinned.clone());
    };
    if engine.image(pinned).await?.is_some() {
        return Ok(pinned.clone());
    }
    let keep = keep_tag(new.device, new.key, &expected.config_digest);
    let ids = [expected.config_digest.0, expected.manifest_digest.0];
    if let Some(image) = engine.image(&keep).await?
        && image.ids.iter().any(|id| ids.contains(id))
    {
        return Ok(keep);
    }
    for id in ids {
        let id = id.to_string();
        if engine.image(&id).await?.is_some() {
            return Ok(id);
        }
    }
    // The engine says better what it lacks.
    Ok(pinned.clone())
}
