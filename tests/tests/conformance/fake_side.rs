//! The script's disturbances on the fake engine, through its controls.

use std::cell::RefCell;

use holdfast_agent::engine::fake::{Behaviour, Check, FakeEngine, PullFault, Remote};
use holdfast_proto::image::Platform;

use crate::clock::VirtualClock;
use crate::script::{Cast, Outside, Play, Row, named};

struct FakeSide<'a> {
    engine: &'a FakeEngine<VirtualClock>,
    cast: &'a Cast,
    foreign: RefCell<Vec<(String, String)>>,
}

/// What each image of the script does.
fn behaviour(image: &str) -> Behaviour {
    let nothing = Behaviour::default();
    match image {
        "broken" => Behaviour {
            broken_entrypoint: true,
            ..nothing
        },
        "crash" => Behaviour {
            exits: Some((5, 3)),
            ..nothing
        },
        "ender" => Behaviour {
            exits: Some((5, 0)),
            ..nothing
        },
        "stubborn" => Behaviour {
            ignores_sigterm: true,
            ..nothing
        },
        "healthy" => Behaviour {
            check: Some(Check::HealthyAfter(200)),
            ..nothing
        },
        "sick" => Behaviour {
            check: Some(Check::UnhealthyAfter(400)),
            ..nothing
        },
        "no-probe" => Behaviour {
            check: Some(Check::CannotRun(400)),
            ..nothing
        },
        _ => nothing,
    }
}

/// Plays the script on a fake engine. With `lie`, that image behaves as another one does.
pub(crate) fn play(
    cast: &Cast,
    script: &str,
    lie: Option<(&str, &str)>,
) -> anyhow::Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        let engine = FakeEngine::new(VirtualClock::start(), 1);
        for (image, service) in &cast.images {
            let acts_as = lie
                .filter(|(liar, _)| liar == image)
                .map_or(*image, |(_, other)| other);
            let fault = match *image {
                "down" => PullFault::Unreachable,
                "nothing" => continue,
                _ => PullFault::None,
            };
            let remote = Remote {
                id: cast.config_of(image),
                platform: Platform::new("linux", "amd64", None),
                behaviour: behaviour(acts_as),
                layer: (*image).to_owned(),
                pull_ms: 100,
                fault,
            };
            engine.publish(&service.image_name, remote);
        }
        let outside = FakeSide {
            engine: &engine,
            cast,
            foreign: RefCell::default(),
        };
        let play = Play {
            engine: &engine,
            outside: &outside,
            cast,
            ids: RefCell::default(),
        };
        play.play(script).await
    })
}

impl Outside for FakeSide<'_> {
    async fn act(&self, words: &[&str], id: &dyn Fn(&str) -> String) -> anyhow::Result<()> {
        let engine = self.engine;
        match words {
            ["prune"] => engine.prune_by_hand(false),
            ["prune-all"] => engine.prune_by_hand(true),
            ["rmi-f", image] => engine.remove_image_by_hand(&self.cast.image(image)),
            ["pause", name] => engine.pause_by_hand(&id(name)),
            ["kill", name] => engine.kill_by_hand(&id(name)),
            ["rm", name] => engine.remove_by_hand(&id(name)),
            ["rename", name, new] => engine.rename_by_hand(&id(name), &named(new)),
            ["foreign", name] => {
                let id = engine.run_foreign(&named(name), Some(&self.cast.image("idle")), &[]);
                self.foreign.borrow_mut().push(((*name).to_owned(), id));
            }
            ["rm-foreign", name] => {
                let foreign = self.foreign.borrow();
                let found = foreign.iter().find(|(known, _)| known == name);
                engine.remove_by_hand(&found.expect("a foreign container").1);
            }
            ["occupy", port] => engine.occupy(self.cast.ports[*port], true),
            ["release", port] => engine.occupy(self.cast.ports[*port], false),
            ["foreign-network", name] => engine.make_foreign_network(&named(name)),
            ["rm-network", name] => engine.remove_network_by_hand(&named(name)),
            ["net-disconnect", name, container] => {
                engine.disconnect_by_hand(&named(name), &id(container));
            }
            ["kill-engine"] => engine.kill_engine(None),
            ["power-cut"] => engine.power_cut(None),
            ["start-engine"] => anyhow::ensure!(engine.restart(), "it did not start"),
            ["hang"] => engine.hang(None),
            ["go-on"] => engine.go_on(),
            ["fill-disk"] => engine.fill_disk(true),
            ["free-disk"] => engine.fill_disk(false),
            other => anyhow::bail!("the fake side cannot {other:?}"),
        }
        Ok(())
    }

    async fn ready_to_stop(&self, _id: &str) {}
}
