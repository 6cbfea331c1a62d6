//! The invariants of rollouts, recounted from the rows of the control API's database.
//!
//! Each is a function of rows at one moment, or of two moments one after the other, and says what is wrong. None
//! of them uses the control API's own code: what it decides by is not what it is judged by. The numbers are those
//! of the fault tables: I15 to I20 and I25.

pub mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use holdfast_proto::image::ConfigDigest;
use rows::{Line, Member, Rollout, Rows, Told, when};

/// What is wrong; the first word is the invariant.
pub type Wrong = Result<(), String>;

/// A healthy device must be heard of once more within this after its soak.
const SILENCE_MS: i64 = 10 * 60_000;
/// The monitor looks every 30 s at least; programs that were killed need their time.
const SLACK_MS: i64 = 5 * 60_000;

macro_rules! demand {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}

/// All of them.
///
/// # Errors
/// What is wrong, with the name of the invariant in front.
pub fn judge(before: Option<&Rows>, now: &Rows) -> Wrong {
    i15(now)?;
    i16(now)?;
    i18(now)?;
    i19(now)?;
    i20(now)?;
    i25(now)?;
    match before {
        None => i17(&Rows::default(), now),
        Some(before) => {
            i17(before, now)?;
            i20_stays(before, now)
        }
    }
}

fn is_active(state: &str) -> bool {
    ["pending", "running", "paused", "rolling_back"].contains(&state)
}

/// I15: devices that were told the new version are of open batches; of the last one, while they are on their way;
/// and no more of a group at a time than the budget lets.
pub fn i15(rows: &Rows) -> Wrong {
    for (id, rollout) in &rows.rollouts {
        let members: BTreeMap<&str, &Member> =
            rows.of(*id).map(|one| (one.device.as_str(), one)).collect();
        for (device, generation, _) in rows.told_by(*id) {
            let member = members.get(device);
            let batch = member.map(|member| member.batch);
            let opened = rollout.opened;
            demand!(
                batch.is_some_and(|batch| batch < opened),
                "I15: rollout {id} gave {device} (batch {batch:?}) generation {generation} with {opened} batches open"
            );
            let standing = member.map_or("", |member| member.standing.as_str());
            let untouched = ["waiting", "unchanged", "skipped"].contains(&standing);
            demand!(
                !untouched || rows.retried.contains(id),
                "I15: rollout {id} gave {device} generation {generation} and has it as {standing}"
            );
        }
        let mut groups: BTreeMap<Option<&str>, i64> = BTreeMap::new();
        for member in members.values() {
            // Whoever was away at its turn catches up after the end.
            if member.standing == "updating" && rollout.state != "succeeded" {
                demand!(
                    member.batch + 1 == rollout.opened,
                    "I15: {} of batch {} is on its way in rollout {id} with {} batches open",
                    member.device,
                    member.batch,
                    rollout.opened
                );
            }
            let is_exposed = ["updating", "lost"].contains(&member.standing.as_str());
            *groups.entry(member.group.as_deref()).or_default() += i64::from(is_exposed);
        }
        let mut sizes: BTreeMap<i64, usize> = BTreeMap::new();
        for member in members.values() {
            *sizes.entry(member.batch).or_default() += 1;
        }
        let largest = sizes.into_values().max().unwrap_or(0);
        let updating = members.values().filter(|one| one.standing == "updating");
        let updating = updating.count();
        demand!(
            updating <= largest,
            "I15: {updating} devices are on their way in rollout {id}, whose largest batch has {largest}"
        );
        for (group, exposed) in groups {
            let most = rollout.rules.budget.unwrap_or(i64::MAX);
            demand!(
                exposed <= most,
                "I15: {exposed} devices of group {group:?} are unavailable in rollout {id}: at most {most} may be"
            );
        }
    }
    Ok(())
}

/// I16: when a batch was opened, the one before it had nobody on their way, enough verified devices, and each of
/// those had served its soak. Replayed from the log, so that nothing between two looks is missed.
pub fn i16(rows: &Rows) -> Wrong {
    for (id, rollout) in &rows.rollouts {
        let lines: Vec<&Line> = rows.log.iter().filter(|line| line.rollout == *id).collect();
        let opened = lines.iter().filter(|line| line.what == "batch_opened");
        let opened = i64::try_from(opened.count()).unwrap_or(i64::MAX);
        demand!(
            opened == rollout.opened,
            "I16: rollout {id} has {} batches open, and its log opened {opened}",
            rollout.opened
        );
        // Devices that are tried again move to another batch: what its batch was is not in the rows any more.
        if !rows.retried.contains(id) {
            replay(*id, rollout, rows, &lines)?;
        }
    }
    Ok(())
}

/// How a device stood at some point of the log, and since when it was told.
#[derive(Default)]
struct Stood {
    word: String,
    told_at: Option<i64>,
}

fn replay(id: i64, rollout: &Rollout, rows: &Rows, lines: &[&Line]) -> Wrong {
    let rules = rollout.rules;
    let mut stood: BTreeMap<&str, Stood> = BTreeMap::new();
    let mut opened = 0;
    for line in lines {
        if line.what == "batch_opened" {
            if opened > 0 {
                let batch = rows.of(id).filter(|member| member.batch + 1 == opened);
                let batch: Vec<&Member> = batch.collect();
                let word = |member: &&Member| {
                    let stood = stood.get(member.device.as_str());
                    stood.map_or("waiting", |stood| stood.word.as_str())
                };
                let many = |words: &[&str]| {
                    let fits = batch.iter().filter(|member| words.contains(&word(member)));
                    i64::try_from(fits.count()).unwrap_or(i64::MAX)
                };
                let open = many(&["waiting", "updating"]);
                let at = when(line.at);
                demand!(
                    open == 0,
                    "I16: rollout {id} opened batch {} at {at} while {open} devices of batch {opened} were on their way",
                    opened + 1
                );
                let takes_part = many(&["verified", "failed", "lost"]);
                let verified = many(&["verified"]);
                let wanted = (takes_part * rules.min_success_percent + 99) / 100;
                let is_untouched = takes_part == 0 && many(&["skipped"]) == 0;
                demand!(
                    is_untouched || verified >= wanted.max(1),
                    "I16: rollout {id} opened batch {} at {at} with {verified} of {takes_part} devices of batch \
                     {opened} verified: {wanted} are needed",
                    opened + 1
                );
            }
            opened += 1;
            continue;
        }
        let Some(device) = line.device.as_deref() else {
            continue;
        };
        let now = stood.entry(device).or_default();
        if line.what == "told" {
            let is_first = now.told_at.is_none();
            let word = if is_first { "updating" } else { "returning" };
            word.clone_into(&mut now.word);
            now.told_at = now.told_at.or(Some(line.at));
            continue;
        }
        if line.what == "verified" && now.word != "lost" {
            let soaked_ms = line.at - now.told_at.unwrap_or(line.at);
            demand!(
                soaked_ms + rows.skew_ms >= rules.soak_ms,
                "I16: rollout {id} has {device} as verified {soaked_ms} ms after it was told: its soak is {} ms",
                rules.soak_ms
            );
        }
        now.word.clone_from(&line.what);
    }
    Ok(())
}

/// I17: a device enters a rollout once, and stays in its batch once that is open; nobody joins later.
pub fn i17(before: &Rows, now: &Rows) -> Wrong {
    for (id, rollout) in &now.rollouts {
        let mut times: BTreeMap<&str, i64> = BTreeMap::new();
        for (device, ..) in now.told_by(*id) {
            *times.entry(device).or_default() += 1;
        }
        if now.retried.contains(id) {
            continue;
        }
        let twice = times.into_iter().find(|(_, times)| *times > 1);
        if let Some((device, times)) = twice {
            return Err(format!(
                "I17: rollout {id} was given to {device} {times} times"
            ));
        }
        let Some(known) = before.rollouts.get(id) else {
            continue;
        };
        let batches = |rows: &Rows| -> BTreeMap<String, i64> {
            rows.of(*id)
                .map(|one| (one.device.clone(), one.batch))
                .collect()
        };
        let (was, is) = (batches(before), batches(now));
        for (device, batch) in &was {
            let moved = is.get(device);
            demand!(
                moved == Some(batch) || (*batch >= known.opened && moved.is_some()),
                "I17: {device} of batch {batch} of rollout {id} is in {moved:?} now"
            );
        }
        let joined = is.keys().find(|device| !was.contains_key(*device));
        demand!(
            joined.is_none() || known.opened == 0,
            "I17: {joined:?} joined rollout {id} after {} of its batches were open",
            known.opened
        );
        demand!(
            rollout.opened >= known.opened,
            "I17: rollout {id} had {} batches open and has {}",
            known.opened,
            rollout.opened
        );
    }
    Ok(())
}

/// I18: one active rollout of an image in a scope; and none that nobody has to decide about goes on for ever.
pub fn i18(rows: &Rows) -> Wrong {
    let mut active = BTreeSet::new();
    for (id, rollout) in &rows.rollouts {
        let is_active = is_active(&rollout.state);
        demand!(
            is_active == rollout.ended_at.is_none(),
            "I18: rollout {id} is {} and its end is {:?}",
            rollout.state,
            rollout.ended_at
        );
        demand!(
            !is_active || active.insert((&rollout.scope, &rollout.image)),
            "I18: two rollouts of {:?} in {:?} are active, one of them {id}",
            rollout.image,
            rollout.scope
        );
        let moves = ["running", "rolling_back"].contains(&rollout.state.as_str());
        if moves && !rollout.rules.waits_for_people {
            let most_ms = bound_ms(rollout, rows.of(*id)) + rows.skew_ms;
            let taken_ms = rows.now - rollout.since;
            demand!(
                taken_ms <= most_ms,
                "I18: rollout {id} is {} since {taken_ms} ms: it may be for {most_ms} ms",
                rollout.state
            );
        }
    }
    Ok(())
}

/// The longest time that a rollout can be on its way without anybody's help.
fn bound_ms<'a>(rollout: &Rollout, members: impl Iterator<Item = &'a Member>) -> i64 {
    let (mut batches, mut devices) = (0, 0);
    for member in members {
        batches = batches.max(member.batch + 1);
        devices += 1;
    }
    // With a budget a batch may go one device after the other.
    let turns = if rollout.rules.budget.is_some() {
        devices
    } else {
        batches
    };
    let turn_ms = rollout.rules.health_timeout_ms + rollout.rules.soak_ms + SILENCE_MS;
    turns * turn_ms + SLACK_MS
}

/// I19: a device that goes back goes to the last generation that was verified on it before the rollout.
pub fn i19(rows: &Rows) -> Wrong {
    for member in &rows.members {
        let goes_back = ["returning", "returned"].contains(&member.standing.as_str());
        let (Some(generation), Some(back_to)) = (member.generation, member.back_to) else {
            demand!(
                !goes_back,
                "I19: {} goes back in rollout {} to nothing",
                member.device,
                member.rollout
            );
            continue;
        };
        if !goes_back {
            continue;
        }
        let device = &member.device;
        let told = |generation| rows.told.get(&(device.clone(), generation));
        let Some((_, given, gave)) = rows.told_by(member.rollout).find(|(one, ..)| one == device)
        else {
            return Err(format!(
                "I19: {device} goes back in rollout {}, which never gave it anything",
                member.rollout
            ));
        };
        let (new, old) = (told(generation), told(back_to));
        demand!(
            back_to < given && old.is_some_and(|old| old.verified_at.is_some()),
            "I19: {device} goes back to generation {back_to} in rollout {}, which was never verified there",
            member.rollout
        );
        // A report of an earlier generation may come in after the rollout gave its own: that was too late to know.
        let known_by = gave.at - rows.skew_ms;
        let between = (device.clone(), back_to + 1)..(device.clone(), given);
        let mut newer = rows.told.range(between).filter(|(_, told)| {
            told.verified_at
                .is_some_and(|verified_at| verified_at < known_by)
        });
        let newer = newer.next().map(|((_, generation), _)| *generation);
        demand!(
            newer.is_none(),
            "I19: {device} goes back to generation {back_to} in rollout {}, and {newer:?} was verified later",
            member.rollout
        );
        let rollout = rows.rollouts.get(&member.rollout);
        // All of what a device runs is a release's, and the image's services are an image's.
        let of_image = |told: &Told| -> Vec<ConfigDigest> {
            let all = told.contents.iter();
            let meant = all.filter(|(registry, repository, _)| {
                rollout.is_some_and(|Rollout { image, digest, .. }| {
                    digest.is_none() || (registry, repository) == (&image.0, &image.1)
                })
            });
            meant.map(|(_, _, content)| *content).collect()
        };
        let same = new
            .zip(old)
            .is_some_and(|(new, old)| of_image(new) == of_image(old));
        demand!(
            same && new.is_some_and(|new| new.cause == format!("back:{back_to}")),
            "I19: generation {generation} of {device} is not what generation {back_to} was"
        );
    }
    Ok(())
}

/// I20: what a rollout gave is what it carries.
pub fn i20(rows: &Rows) -> Wrong {
    for (id, rollout) in &rows.rollouts {
        if rollout.digest.is_none() {
            continue;
        }
        for (device, generation, told) in rows.told_by(*id) {
            let of_image = told.contents.iter().filter(|(registry, repository, _)| {
                (registry, repository) == (&rollout.image.0, &rollout.image.1)
            });
            let mut carried = of_image.map(|(_, _, content)| rollout.contents.contains(content));
            demand!(
                carried.next().is_some_and(|first| first) && carried.all(|other| other),
                "I20: generation {generation} of {device} is of rollout {id} and has other content"
            );
        }
    }
    Ok(())
}

/// I20, over time: what a rollout carries is what it carried, and no batch is opened of what people do not approve.
pub fn i20_stays(before: &Rows, now: &Rows) -> Wrong {
    for (id, was) in &before.rollouts {
        let Some(is) = now.rollouts.get(id) else {
            continue;
        };
        demand!(
            was.digest == is.digest && was.contents == is.contents,
            "I20: rollout {id} carried {:?} and carries {:?}",
            was.digest,
            is.digest
        );
        let may = |rows: &Rows| {
            let place = (is.image.0.clone(), is.image.1.clone());
            let known = rows.images.get(&place).zip(is.digest.as_ref());
            known.is_none_or(|((decision, contents), digest)| {
                decision == "approved" && contents.contains(digest)
            })
        };
        demand!(
            is.opened == was.opened || may(before) || may(now),
            "I20: rollout {id} opened batch {} of {:?}, which people do not approve",
            is.opened,
            is.digest
        );
    }
    Ok(())
}

/// I25: a device counts by its report of what it was told, and by no other.
pub fn i25(rows: &Rows) -> Wrong {
    for member in &rows.members {
        let counts = ["verified", "returned"].contains(&member.standing.as_str());
        let Some(generation) = member.generation.filter(|_| counts) else {
            demand!(
                !counts,
                "I25: {} is {} in rollout {} and was never told anything",
                member.device,
                member.standing,
                member.rollout
            );
            continue;
        };
        // A device that was deleted since has no report any more.
        let reported = rows
            .reports
            .get(&member.device)
            .map(|(generation, _)| *generation);
        let is_known = rows.targets.contains_key(&member.device);
        demand!(
            !is_known || reported.is_some_and(|reported| reported >= generation),
            "I25: {} is {} with generation {generation} in rollout {}, and reported {reported:?}",
            member.device,
            member.standing,
            member.rollout
        );
    }
    Ok(())
}

/// I25: the counters that the API shows are a recount of its rows.
///
/// # Errors
/// With both, when they differ.
pub fn i25_counts(rows: &Rows, id: i64, shown: &Value) -> Wrong {
    let mut all: BTreeMap<&str, i64> = BTreeMap::new();
    let mut batches: BTreeMap<(i64, &str), i64> = BTreeMap::new();
    for member in rows.of(id) {
        *all.entry(&member.standing).or_default() += 1;
        *batches.entry((member.batch, &member.standing)).or_default() += 1;
    }
    let differs =
        |shown: &Value, word: &str, recount: i64| shown[word].as_i64().unwrap_or(0) != recount;
    let sum = |counts: &Value| -> i64 {
        let counts = counts.as_object().into_iter().flatten();
        counts.filter_map(|(_, count)| count.as_i64()).sum()
    };
    for (word, recount) in &all {
        demand!(
            !differs(&shown["counts"], word, *recount),
            "I25: rollout {id} shows {}, and {recount} are {word}",
            shown["counts"]
        );
    }
    let members: i64 = all.values().sum();
    demand!(
        sum(&shown["counts"]) == members,
        "I25: rollout {id} shows {}, and has {members} devices",
        shown["counts"]
    );
    for ((batch, word), recount) in &batches {
        let position = usize::try_from(*batch).unwrap_or(usize::MAX);
        let counts = &shown["batches"][position]["counts"];
        demand!(
            !differs(counts, word, *recount),
            "I25: batch {batch} of rollout {id} shows {counts}, and {recount} are {word}"
        );
    }
    Ok(())
}
