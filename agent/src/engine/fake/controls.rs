//! Owns what tests do to the model from outside: faults, people, other programs.

use std::collections::HashMap;

use holdfast_plan::ContainerState;

use super::world::{BRIDGE, Container, Daemon, Image, Network, Remote};
use super::{FakeEngine, make};
use crate::clock::Clock;

impl<C: Clock> FakeEngine<C> {
    /// Puts an image into the registry, under its pinned name.
    pub fn publish(&self, pinned: &str, remote: Remote) {
        self.by_hand(|world, _| world.registry.insert(pinned.to_owned(), remote));
    }

    /// Takes everything out of the registry: it is gone.
    pub fn lose_registry(&self) {
        self.by_hand(|world, _| world.registry.clear());
    }

    /// The registry's side closes its connections, which frees a wedged engine.
    pub fn close_registry_connections(&self) {
        self.by_hand(|world, _| world.wedged.clear());
    }

    /// SIGKILL to the engine: containers go on. It comes back by itself after `back_after_ms`.
    pub fn kill_engine(&self, back_after_ms: Option<u64>) {
        self.by_hand(|world, now_ms| {
            world.daemon = Daemon::Gone(back_after_ms.map(|ms| now_ms + ms));
        });
    }

    /// The power goes: engine and processes end.
    pub fn power_cut(&self, back_after_ms: Option<u64>) {
        self.by_hand(|world, now_ms| {
            world.daemon = Daemon::Gone(back_after_ms.map(|ms| now_ms + ms));
            world.power_cut();
        });
    }

    /// Starts the engine again; whether it started: on a full disk it does not (measured: M10).
    pub fn restart(&self) -> bool {
        self.by_hand(|world, now_ms| {
            if !world.disk_is_full {
                world.return_of_the_engine(now_ms);
            }
            world.daemon == Daemon::Up
        })
    }

    /// SIGSTOP to the engine: it takes connections and never answers, for so long if a time is given.
    pub fn hang(&self, goes_on_after_ms: Option<u64>) {
        self.by_hand(|world, now_ms| {
            world.daemon = Daemon::Hung(goes_on_after_ms.map(|ms| now_ms + ms));
        });
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.by_hand(|world, _| world.daemon = Daemon::Up);
    }

    /// Fills the disk, or frees it.
    pub fn fill_disk(&self, is_full: bool) {
        self.by_hand(|world, _| world.disk_is_full = is_full);
    }

    /// Whether events still come (measured: M13, they may not).
    pub fn lose_events(&self, are_lost: bool) {
        self.events_are_lost.set(are_lost);
    }

    /// A stranger's program takes a port of the device, or gives it back.
    pub fn occupy(&self, port: u16, is_taken: bool) {
        self.by_hand(|world, _| {
            if is_taken {
                world.foreign_ports.insert(port);
            } else {
                world.foreign_ports.remove(&port);
            }
        });
    }

    /// `docker run` of a container that is not Holdfast's, of a stored image if one is given; gives its id.
    pub fn run_foreign(&self, name: &str, image: Option<&str>, labels: &[(&str, &str)]) -> String {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let mut container = Container::new(name, labels.iter().map(own).collect());
        container.attachments = make::alone(BRIDGE);
        self.by_hand(|world, now_ms| {
            if let Some((id, _)) = image.and_then(|image| world.stored(image)) {
                container.image = id;
            }
            let id = world.new_id();
            world.containers.insert(id.clone(), container);
            let _ = world.launch(&id, now_ms);
            id
        })
    }

    /// `docker stop`, without waiting.
    pub fn stop_by_hand(&self, id: &str) {
        self.by_hand(|world, now_ms| drop(world.stop(id, now_ms)));
    }

    /// `docker kill`: as a stop, the policy does not bring it back.
    pub fn kill_by_hand(&self, id: &str) {
        self.by_hand(|world, now_ms| {
            if let Ok((_, container)) = world.container(id) {
                container.stopped_by_hand = true;
                container.end(137, now_ms, true);
                world.events += 1;
            }
        });
    }

    /// The container's own process ends; its policy decides.
    pub fn crash(&self, id: &str, code: i64) {
        self.by_hand(|world, now_ms| {
            if let Ok((_, container)) = world.container(id)
                && container.state == ContainerState::Running
            {
                container.end(code, now_ms, true);
                world.events += 1;
            }
        });
    }

    /// `docker pause`.
    pub fn pause_by_hand(&self, id: &str) {
        self.by_hand(|world, _| {
            if let Ok((_, container)) = world.container(id)
                && container.state == ContainerState::Running
            {
                container.state = ContainerState::Paused;
                world.events += 1;
            }
        });
    }

    /// `docker rm -f`.
    pub fn remove_by_hand(&self, id: &str) {
        self.by_hand(|world, _| {
            if let Some(id) = world.find(id) {
                world.containers.remove(&id);
                world.events += 1;
            }
        });
    }

    /// Somebody else's removal has begun and ends after so long; without a time it never does.
    pub fn remove_slowly(&self, id: &str, ends_after_ms: Option<u64>) {
        self.by_hand(|world, now_ms| {
            if let Ok((_, container)) = world.container(id) {
                container.process = None;
                container.published.clear();
                container.state = ContainerState::Removing;
                container.gone_at_ms = ends_after_ms.map(|ms| now_ms + ms);
                world.events += 1;
            }
        });
    }

    /// `docker rename`.
    pub fn rename_by_hand(&self, id: &str, name: &str) {
        self.by_hand(|world, _| drop(world.rename(id, name)));
    }

    /// `docker network disconnect -f`.
    pub fn disconnect_by_hand(&self, network: &str, id: &str) {
        self.by_hand(|world, _| drop(world.disconnect(network, id)));
    }

    /// `docker network create` by somebody else.
    pub fn make_foreign_network(&self, name: &str) {
        let network = Network {
            name: name.to_owned(),
            labels: HashMap::new(),
        };
        self.by_hand(|world, _| drop(world.create_network(network)));
    }

    /// `docker network rm`: containers that are down do not hold it.
    pub fn remove_network_by_hand(&self, network: &str) {
        self.by_hand(|world, _| drop(world.remove_network(network)));
    }

    /// `docker image prune`, with `all` also what has a tag and no user.
    pub fn prune_by_hand(&self, all: bool) {
        self.by_hand(|world, _| world.prune(all));
    }

    /// `docker rmi -f`.
    pub fn remove_image_by_hand(&self, name: &str) {
        self.by_hand(|world, _| drop(world.remove_image(name, true)));
    }

    /// An image under another's pinned name: what a broken store or a liar gives.
    pub fn replace_image(&self, pinned: &str, id: &str) {
        self.by_hand(|world, _| {
            if let Some((old, image)) = world.stored(pinned).map(|(id, image)| (id, image.clone()))
            {
                world.images.remove(&old);
                world.images.insert(id.to_owned(), Image { ..image });
            }
        });
    }
}
