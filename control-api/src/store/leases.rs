//! Owns the table of leases: who of several programs does what must be done once.
//!
//! Refuses the writes of whoever was overtaken: each write of a holder is made under its epoch, in the same
//! transaction.

use holdfast_proto::time::Timestamp;

use super::db::{StoreError, Tx};
use crate::params;

/// A lease that this program holds, as long as nobody took it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What it is for.
    pub name: &'static str,
    /// Raised by whoever takes it over.
    pub epoch: i64,
}

/// Who holds leases where no other program can be: a successor goes on at once where a killed one left off.
const ALONE: &str = "alone";

/// Takes a lease that is free or over for so long, or keeps it; none while somebody else holds it.
///
/// Measured by the database's clock: those of the programs may differ by minutes.
pub fn take(
    tx: &mut Tx<'_>,
    name: &'static str,
    holder: &str,
    length_ms: i64,
) -> Result<Option<Lease>, StoreError> {
    let holder = if tx.is_shared() { holder } else { ALONE };
    let now = tx.clock()?;
    take_at(tx, name, holder, now, now.plus_ms(length_ms))
}

/// As [`take`], at a moment, until another one.
pub fn take_at(
    tx: &mut Tx<'_>,
    name: &'static str,
    holder: &str,
    now: Timestamp,
    until: Timestamp,
) -> Result<Option<Lease>, StoreError> {
    tx.execute(
        "insert into leases (name, holder, epoch, until) values ($1, '', 0, 0)
         on conflict (name) do nothing",
        params![name],
    )?;
    let taken = tx.query_opt(
        "update leases set epoch = case when holder = $2 then epoch else epoch + 1 end,
                holder = $2, until = $4
         where name = $1 and (holder = $2 or until <= $3) returning epoch",
        params![name, holder, now, until],
    )?;
    taken
        .map(|row| {
            let epoch = row.int(0)?;
            Ok(Lease { name, epoch })
        })
        .transpose()
}

/// Whether nobody took the lease over; asked in the transaction that writes.
pub fn holds(tx: &mut Tx<'_>, lease: &Lease) -> Result<bool, StoreError> {
    // Written, not only read: two transactions that ask this of one lease cannot both be the last.
    let found = tx.execute(
        "update leases set epoch = epoch where name = $1 and epoch = $2",
        params![lease.name, lease.epoch],
    )?;
    Ok(found > 0)
}

/// Gives a lease back, for another program to take at once.
pub fn release(tx: &mut Tx<'_>, lease: &Lease) -> Result<(), StoreError> {
    tx.execute(
        "update leases set until = 0 where name = $1 and epoch = $2",
        params![lease.name, lease.epoch],
    )?;
    Ok(())
}
