//! The safety rules of the fault tables, checked after every call that the agent makes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use holdfast_agent::engine::fake::{Call, Observer, changes};
use holdfast_agent::engine::{EngineContainer, Operation, labels};
use holdfast_plan::ContainerState;
use holdfast_proto::id::DeviceId;
use holdfast_proto::spec::RestartPolicy;

use crate::device::short;

/// The label that a test puts on services that hand over: two of them may run.
pub(crate) const HANDS_OVER: &str = "test.hands-over";
/// The label of services whose strategy gives the way back up, on purpose.
pub(crate) const DELETES_FIRST: &str = "test.deletes-first";

/// The services that the target names now.
pub(crate) type Wanted = Rc<RefCell<BTreeSet<String>>>;

/// Watches one device; violations are added to the list.
pub(crate) fn checks(
    device: DeviceId,
    wanted: Wanted,
    violations: Rc<RefCell<Vec<String>>>,
) -> Observer {
    let last_good: RefCell<BTreeMap<String, Spec>> = RefCell::default();
    let number = std::cell::Cell::new(0_usize);
    Box::new(move |call, before, after| {
        number.set(number.get() + 1);
        let mut found = Vec::new();
        one_runs(&device, after, &mut found);
        one_returns(&device, after, &mut found);
        strangers_are_left_alone(&device, call, before, after, &mut found);
        let mut last_good = last_good.borrow_mut();
        the_way_back_is_kept(
            &device,
            &wanted.borrow(),
            call,
            before,
            after,
            &last_good,
            &mut found,
        );
        // Whatever gets its restart policy has passed its gate.
        let armed = |container: &&EngineContainer| {
            let was = before.iter().find(|was| was.id == container.id);
            container.restart != RestartPolicy::No
                && was.is_none_or(|was| was.restart != container.restart)
        };
        for ((service, is_sandbox), containers) in services(&device, after) {
            for container in containers.into_iter().filter(armed).filter(|_| !is_sandbox) {
                last_good.insert(service.to_owned(), spec(container));
            }
        }
        let mut violations = violations.borrow_mut();
        violations.extend(found.into_iter().map(|text| {
            let subject = short(&call.subject);
            format!(
                "{text}, at change {}: {:?} {subject}",
                number.get(),
                call.operation
            )
        }));
    })
}

fn is_ours(device: &DeviceId, container: &EngineContainer) -> bool {
    container.labels.get(labels::DEVICE) == Some(&device.to_string())
}

/// This device's containers by service, sandboxes apart.
fn services<'a>(
    device: &DeviceId,
    all: &'a [EngineContainer],
) -> BTreeMap<(&'a str, bool), Vec<&'a EngineContainer>> {
    let mut services: BTreeMap<(&str, bool), Vec<&EngineContainer>> = BTreeMap::new();
    for container in all.iter().filter(|container| is_ours(device, container)) {
        let service = container
            .labels
            .get(labels::SERVICE)
            .map_or("", String::as_str);
        let is_sandbox = container.labels.contains_key(labels::ROLE);
        services
            .entry((service, is_sandbox))
            .or_default()
            .push(container);
    }
    services
}

/// I1: at most one container of a service runs, two while it hands over.
fn one_runs(device: &DeviceId, after: &[EngineContainer], found: &mut Vec<String>) {
    for ((service, is_sandbox), containers) in services(device, after) {
        let up: Vec<_> = containers
            .iter()
            .filter(|container| container.state.is_up())
            .collect();
        let hands_over = up
            .iter()
            .any(|container| container.labels.contains_key(HANDS_OVER));
        if !is_sandbox && up.len() > 1 + usize::from(hands_over) {
            found.push(format!("I1: {} containers of {service} run", up.len()));
        }
    }
}

/// I2: at most one container of a service comes back with the engine.
fn one_returns(device: &DeviceId, after: &[EngineContainer], found: &mut Vec<String>) {
    for ((service, is_sandbox), containers) in services(device, after) {
        let armed = containers.iter().filter(|container| {
            container.restart != RestartPolicy::No && container.state != ContainerState::Removing
        });
        let armed = armed.count();
        if !is_sandbox && armed > 1 {
            found.push(format!(
                "I2: {armed} containers of {service} have a restart policy"
            ));
        }
    }
}

/// I9: what is not ours is as it was.
fn strangers_are_left_alone(
    device: &DeviceId,
    call: &Call,
    before: &[EngineContainer],
    after: &[EngineContainer],
    found: &mut Vec<String>,
) {
    if !changes(call.operation) {
        return;
    }
    for stranger in before
        .iter()
        .filter(|container| !is_ours(device, container))
    {
        if !after.contains(stranger) {
            found.push(format!("I9: {} was changed", stranger.name));
        }
    }
}

/// I4: a container of the last good spec is removed only while another one of that spec is there.
fn the_way_back_is_kept(
    device: &DeviceId,
    wanted: &BTreeSet<String>,
    call: &Call,
    before: &[EngineContainer],
    after: &[EngineContainer],
    last_good: &BTreeMap<String, Spec>,
    found: &mut Vec<String>,
) {
    if call.operation != Operation::Remove {
        return;
    }
    for ((service, is_sandbox), containers) in services(device, before) {
        for gone in containers
            .iter()
            .filter(|was| !after.iter().any(|is| is.id == was.id))
        {
            let was_good = last_good.get(service) == Some(&spec(gone));
            let excused = is_sandbox
                || !wanted.contains(service)
                || gone.labels.contains_key(DELETES_FIRST)
                || gone.state == ContainerState::Dead;
            let another = containers
                .iter()
                .any(|other| other.id != gone.id && spec(other) == spec(gone));
            if was_good && !excused && !another {
                let short = short(&gone.id);
                found.push(format!(
                    "I4: {short} was the last good container of {service}"
                ));
            }
        }
    }
}

/// What a container was made from, as its labels say.
type Spec = (Option<String>, Option<String>);

fn spec(container: &EngineContainer) -> Spec {
    let label = |name: &str| container.labels.get(name).cloned();
    (label(labels::SPEC_HASH), label(labels::CONFIG_DIGEST))
}
