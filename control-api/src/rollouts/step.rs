//! Owns one step of the monitor: look, decide, carry out, in one transaction.

use holdfast_domain::rollout::state::Event;
use holdfast_domain::rollout::tick::{Decision, decide};
use holdfast_proto::id::DeviceId;
use holdfast_proto::time::Timestamp;

use super::effects::{self, Batch};
use super::facts::{self, Circumstances};
use crate::fleets;
use crate::store::db::{StoreError, Tx};
use crate::store::leases::{self, Lease};
use crate::store::rollouts::{self as stored, Content, members};

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Something changed: there may be more to do at once. These devices have another target now.
    Done(Vec<DeviceId>),
    /// Nothing before this moment.
    Rests(Option<Timestamp>),
    /// Somebody else holds the lease by now.
    Overtaken,
}

/// Takes one decision about a rollout and carries it out.
///
/// # Errors
/// When the store cannot be read or written; then nothing is stored.
pub fn step(
    tx: &mut Tx<'_>,
    lease: &Lease,
    id: i64,
    around: Circumstances<'_>,
) -> Result<Step, StoreError> {
    if !leases::holds(tx, lease)? {
        return Ok(Step::Overtaken);
    }
    let Some(found) = stored::find(tx, id)? else {
        return Ok(Step::Rests(None));
    };
    let now = around.now;
    let all = members::all(tx, id)?;
    let rollout = facts::gather(tx, &found, &all, around)?;
    let mut touched = Vec::new();
    match decide(&rollout, now) {
        Decision::Wait(until, _) => return Ok(Step::Rests(until)),
        Decision::Note(notes) => {
            for (device, standing, why) in notes {
                effects::note(tx, id, &all, (device, standing, &why), now)?;
            }
        }
        Decision::OpenBatch => effects::open(tx, &found, now)?,
        Decision::Update(chosen) => {
            let batch = Batch {
                rollout: &found,
                members: &all,
                now,
            };
            for device in &chosen {
                effects::update(tx, &batch, around.logins, *device)?;
            }
            touched = chosen;
        }
        Decision::Return(chosen) => {
            let batch = Batch {
                rollout: &found,
                members: &all,
                now,
            };
            for device in &chosen {
                effects::go_back(tx, &batch, *device, effects::Why::RollBack)?;
            }
            touched = chosen;
        }
        Decision::Turn(event, why) => {
            let turned = effects::turn(tx, &found, (event, &why), &super::monitor(), now)?;
            if let (Event::Complete, Content::Release(release), true) =
                (event, &found.content, turned)
            {
                fleets::completed(tx, around.logins, *release, now)?;
            }
        }
    }
    stored::progressed(tx, id, now)?;
    Ok(Step::Done(touched))
}
