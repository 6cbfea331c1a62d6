//! Owns how image update policies stand in the columns of devices and fleets: one that says nothing is null.

use holdfast_proto::image_updates::ImageUpdatePolicy;

use super::db::{Row, StoreError, json};

const WHAT: &str = "image update policy";

/// A policy as it is stored.
///
/// # Errors
/// Never in practice: it is plain data.
pub fn text(policy: &ImageUpdatePolicy) -> Result<Option<String>, StoreError> {
    let says = *policy != ImageUpdatePolicy::default();
    says.then(|| json(WHAT, policy)).transpose()
}

/// The policy in a column.
///
/// # Errors
/// When something else is in it.
pub fn read(row: &Row, column: usize) -> Result<ImageUpdatePolicy, StoreError> {
    match row.opt_text(column)? {
        Some(_) => row.document(column, WHAT),
        None => Ok(ImageUpdatePolicy::default()),
    }
}
