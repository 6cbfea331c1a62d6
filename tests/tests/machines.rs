//! A device with systemd, booted: the units of `systemd/` as they are, on the agent that was just built.
//!
//! What packages do to such a machine is `make test-machines`.

use std::time::Duration;

use holdfast_tests::engine::Engine;
use holdfast_tests::images::Image;
use holdfast_tests::machine::Machine;
use holdfast_tests::machine::owner::{self, AGENT, Resident, Rights, STARTS_WITHIN};
use holdfast_tests::machine::root::Architecture;
use holdfast_tests::serving::life;
use holdfast_tests::site::{Site, service, target, wait_for_page};
use holdfast_tests::{api, binaries, place, registry};
use serde_json::json;

/// The shipped watchdog of a minute is tried in `make test-machines`; here it is the same in less time.
const QUICK_WATCHDOG: &str = "[Service]\nWatchdogSec=5s\nTimeoutAbortSec=1s\nRestartSec=1s\n";
/// The watchdog's time, the abort's, the restart's, and the agent's own start.
const RECOVERS_WITHIN: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_starts_confines_and_watches_the_agent() -> anyhow::Result<()> {
    let engine = Engine::private().await?;
    let machine = Machine::boot(Architecture::Amd64, &engine).await?;
    let site = Site::on(engine, api::Options::default(), registry::Login::Open, None).await?;
    owner::install_by_hand(&machine, &binaries::agent()?).await?;
    owner::engine_group(&machine, &site.engine).await?;
    machine
        .write(
            "/etc/systemd/system/holdfast-agent.service.d/quick.conf",
            "0644",
            QUICK_WATCHDOG,
        )
        .await?;
    machine.run("systemctl daemon-reload").await?;
    owner::enrol_with_key(&machine, &site).await?;

    // READY=1 came, or the start would not have ended; so did a STATUS= line.
    machine
        .wait_for(AGENT, "ActiveState", "active", STARTS_WITHIN)
        .await?;
    let pid = machine.property(AGENT, "MainPID").await?;
    let rights = Rights::of(&machine, &pid).await?;
    assert_eq!(
        (&*rights.user, &*rights.groups),
        ("holdfast-agent", "docker holdfast")
    );
    assert_eq!(rights.capabilities, ["0000000000000000"; 5]);
    assert!(rights.no_new_privileges && rights.filtered, "{rights:?}");
    let confined = format!(
        "nsenter --target {pid} --mount sh -c 'for at in / /usr /etc /home /root /sys; do \
         test -w $at && touch $at/x 2>/dev/null && echo $at is writable; done; \
         ls /dev | grep -x -e sda -e kmsg -e mem; touch /var/lib/holdfast/x && rm /var/lib/holdfast/x'"
    );
    assert_eq!(machine.ask(&confined).await?.said, "");

    let device = Resident::of(&machine, site.engine.docker()).await?;
    let port = place::Port::take()?;
    let image = Image::healthy_web(format!("web-{}", place::unique()), "one")
        .push(&site.registry, "one")
        .await?;
    let ports = json!({ "ports": [format!("{}:8080", port.address())] });
    device
        .converges(
            &site,
            &target(&[service("web", &image.reference(), &ports)]),
        )
        .await?;
    wait_for_page(port.number(), "one").await;
    let before = device.wait_running("web").await?;
    assert_ne!(machine.property(AGENT, "StatusText").await?, "");

    // A process that stands still: the loop does not feed the watchdog, systemd ends and restarts it.
    machine.run(&format!("kill -STOP {pid}")).await?;
    machine
        .wait_for(AGENT, "NRestarts", "1", RECOVERS_WITHIN)
        .await?;
    machine
        .wait_for(AGENT, "ActiveState", "active", STARTS_WITHIN)
        .await?;
    assert_ne!(machine.property(AGENT, "MainPID").await?, pid);
    let journal = machine
        .run(&format!("journalctl --no-pager --unit {AGENT}"))
        .await?;
    assert!(journal.contains("Watchdog timeout"), "{journal}");
    assert_eq!(life(&before), life(&device.wait_running("web").await?));
    Ok(())
}
