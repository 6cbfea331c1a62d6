//! Owns what the facts stand on: databases, a registry that obeys, a client that checks every answer.

pub mod api;
pub mod logs;
pub mod postgres;
pub mod pushes;
pub mod receiver;
pub mod registry;
pub mod schema;

use std::path::PathBuf;

use holdfast_api::store::Location;

/// A place for a store that nobody else uses, removed at the end.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub location: Location,
}

impl Place {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file: PathBuf = dir.path().join("holdfast.db");
        Self {
            dir,
            location: Location::Sqlite(file),
        }
    }

    pub fn postgres() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            location: Location::Postgres(postgres::fresh_database()),
        }
    }
}

/// Makes two tests of each fact: one on SQLite, one on a real PostgreSQL.
#[macro_export]
macro_rules! on_both_databases {
    ($($fact:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $fact() {
                super::$fact($crate::support::Place::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test]
            async fn $fact() {
                let place = tokio::task::spawn_blocking($crate::support::Place::postgres);
                super::$fact(place.await.unwrap()).await;
            })*
        }
    };
}
