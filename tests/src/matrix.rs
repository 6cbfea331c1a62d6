//! The digest matrix: does `holdfast-agent scan` tell the truth about updates, whatever the image is made of?
//!
//! Images are made here, so what is true of them is known before anybody is asked. A real registry serves
//! them, a real engine pulls them, and the agent's program answers. Nothing here uses the agent's own code.

pub mod document;
pub mod list;
pub mod page;
pub mod recipe;
pub mod run;
pub mod shape;
pub mod stand_in;
