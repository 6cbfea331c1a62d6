//! One run of a scenario: undisturbed, to learn its points, or with a death at one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::check::{Bounds, Violation, always, between, intent_first, quiet, same_end};
use super::journal::open_intents;
use super::lane::{Going, Lane, RECOVERS_WITHIN};
use super::point::{Kind, Outcome, Place, Point, shape};
use super::scenario::Scenario;
use crate::apt;
use crate::clock::Stopwatch;
use crate::process::kill9;
use crate::tap::Action;

/// Syscalls that write to the journal or speak to engine and server.
const SYSCALLS: &[&str] = &[
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "sendto",
    "writev",
];
/// A process that was killed is gone at once, on a busy machine too.
const DIES_WITHIN: Duration = Duration::from_secs(20);

/// What an undisturbed run of a scenario showed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recording {
    /// How the device looks at the end.
    pub signature: Vec<String>,
    /// The shapes of the calls that may change something, in order.
    pub calls: Vec<String>,
    /// How often each syscall was made, from the agent's start to the end.
    pub syscalls: BTreeMap<String, usize>,
}

impl Lane {
    /// Runs a scenario twice without disturbing it, and writes down what it does.
    pub async fn record(&mut self, scenario: Scenario) -> anyhow::Result<Recording> {
        self.prepare(scenario).await?;
        let going = self.go(scenario).await?;
        let signature = self.undisturbed(&going).await?;
        let calls = self.device.tap.mutations();
        self.arrived(&going);

        self.prepare(scenario).await?;
        self.device.agent.kill9();
        let going = self.go(scenario).await?;
        let log = crate::place::temporary("strace")?;
        let file = log.path().join("calls").display().to_string();
        self.trace(&format!("trace={}", SYSCALLS.join(",")), &file)?;
        let again = self.undisturbed(&going).await?;
        let text = std::fs::read_to_string(&file)?;
        self.end_traced().await?;
        self.start_agent()?;
        self.arrived(&going);
        ensure!(
            signature == again,
            "two undisturbed runs end differently: {signature:?} and {again:?}"
        );
        Ok(Recording {
            signature,
            calls: calls.iter().map(shape).collect(),
            syscalls: count_syscalls(&text),
        })
    }

    /// Lets a scenario come to its end; how the device looks then.
    async fn undisturbed(&mut self, going: &Going) -> anyhow::Result<Vec<String>> {
        let (status, holds) = going.scenario.ends_as();
        self.wait_for_status(status, holds).await?;
        self.two_polls().await?;
        let snapshot = self.snapshot().await?;
        let broken = always(&snapshot, &going.bounds);
        ensure!(broken.is_empty(), "without any crash: {broken:?}");
        Ok(snapshot.signature(&going.cast))
    }

    /// Comes to a point, lets something die there, and checks everything that must hold.
    pub async fn run(&mut self, point: &Point, recording: &Recording) -> Outcome {
        let outcome = match self.die_at(point, recording).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Violated(vec![Violation::new("lab", format!("{error:#}"))]),
        };
        if let Outcome::Violated(_) = outcome {
            self.last_words = self.agent_log();
            if let Err(error) = self.renew().await {
                let evidence = format!("the lane could not be renewed: {error:#}");
                return Outcome::Violated(vec![Violation::new("lab", evidence)]);
            }
        }
        outcome
    }

    async fn die_at(&mut self, point: &Point, recording: &Recording) -> anyhow::Result<Outcome> {
        self.prepare(point.scenario).await?;
        self.watch.connected().await?;
        let (going, died) = match &point.place {
            Place::Call { .. } => self.die_at_call(point, recording).await?,
            Place::Syscall { name, nth } => {
                self.die_at_syscall(point, name, *nth, recording).await?
            }
        };
        let Some(mut found) = died else {
            self.device.tap.disarm();
            self.two_polls().await?;
            self.arrived(&going);
            return Ok(Outcome::NotReached);
        };
        let clock = Stopwatch::start();
        found.extend(self.restart(point.kind, &going).await?);
        if let Err(error) = self.arrival(&recording.signature, &going).await {
            found.push(Violation::new("I7", format!("{error:#}")));
            return Ok(Outcome::Violated(found));
        }
        let recovery_ms = u64::try_from(clock.elapsed().as_millis())?;
        let calls = self.device.tap.mutations().len();
        self.two_polls().await?;
        found.extend(quiet(&self.device.tap.mutations()[calls..]));
        let snapshot = self.snapshot().await?;
        found.extend(always(&snapshot, &going.bounds));
        let open = open_intents(&self.device.agent.state()).await?;
        let end = snapshot.signature(&going.cast);
        found.extend(same_end(&recording.signature, &end, open));
        found.extend(between(&self.watch.seen(), &going.bounds));
        let docker = self.site.engine.docker().clone();
        found.extend(self.witness.check(&docker).await?);
        self.arrived(&going);
        Ok(if found.is_empty() {
            Outcome::Held { recovery_ms }
        } else {
            Outcome::Violated(found)
        })
    }

    /// The running agent comes to a call at which something dies; `None` when it never does.
    async fn die_at_call(
        &mut self,
        point: &Point,
        recording: &Recording,
    ) -> anyhow::Result<(Going, Option<Vec<Violation>>)> {
        let agent = self.device.agent.process()?.pid();
        let engine = self.pid;
        let rule = point.place.rule().context("a call")?;
        let strikes = point.kind;
        let strike = move || match strikes {
            Kind::Agent | Kind::Syscall => kill9(agent),
            Kind::Engine => kill9(engine),
            Kind::Power => {
                kill9(agent);
                kill9(engine);
            }
        };
        let tap = &self.device.tap;
        let kill = Action::Run(Arc::new(move |_| strike()));
        let fired = tap.arm(rule.clone().then(kill));
        let _ended = tap.arm(rule.then(Action::Reset));
        let going = self.go(point.scenario).await?;
        let died = tokio::select! {
            call = fired.wait(RECOVERS_WITHIN) => Some(call?),
            end = self.passed_by(&recording.signature, &going) => match end {
                Ok(()) => None,
                // An agent that died there is also one that came to no end.
                Err(error) => match fired.wait(DIES_WITHIN).await {
                    Ok(call) => Some(call),
                    Err(_) => return Err(error),
                },
            },
        };
        let Some(call) = died else {
            return Ok((going, None));
        };
        let mut found = Vec::new();
        if point.kind != Kind::Engine {
            self.agent_died().await?;
            let open = open_intents(&self.device.agent.state()).await?;
            let call = format!("{} {}", call.method, call.path);
            found.extend(intent_first(open, &call));
        }
        if point.kind == Kind::Agent {
            found.extend(always(&self.snapshot().await?, &going.bounds));
        }
        Ok((going, Some(found)))
    }

    /// The agent starts, does the scenario, and dies at a syscall; `None` when it never does.
    async fn die_at_syscall(
        &mut self,
        point: &Point,
        name: &str,
        nth: usize,
        recording: &Recording,
    ) -> anyhow::Result<(Going, Option<Vec<Violation>>)> {
        self.device.agent.kill9();
        let going = self.go(point.scenario).await?;
        self.trace(
            &format!("inject={name}:signal=KILL:when={nth}"),
            "/dev/null",
        )?;
        let died = tokio::select! {
            end = self.agent_died() => { end?; true }
            end = self.passed_by(&recording.signature, &going) => match end {
                Ok(()) => false,
                // An agent that died there is also one that came to no end.
                Err(error) => match self.agent_died().await {
                    Ok(()) => true,
                    Err(_) => return Err(error),
                },
            },
        };
        if !died {
            self.end_traced().await?;
            self.start_agent()?;
            return Ok((going, None));
        }
        let found = always(&self.snapshot().await?, &going.bounds);
        Ok((going, Some(found)))
    }

    /// Ends when the scenario has come to its end and nothing has died.
    async fn passed_by(&self, signature: &[String], going: &Going) -> anyhow::Result<()> {
        self.arrival(signature, going).await?;
        // The last calls and syscalls come after the report.
        self.two_polls().await?;
        self.two_polls().await
    }

    /// Waits until the device is where it must be and says so.
    async fn arrival(&self, signature: &[String], going: &Going) -> anyhow::Result<()> {
        let (status, holds) = going.scenario.ends_as();
        self.wait_for_status(status, holds).await?;
        self.wait_for_signature(signature, going).await
    }

    async fn agent_died(&self) -> anyhow::Result<()> {
        let agent = self.device.agent.process()?;
        agent.wait_for_end(RECOVERS_WITHIN).await.map(drop)
    }

    /// Starts again what died, and looks at the device before the agent can act where it is dead.
    async fn restart(&mut self, kind: Kind, going: &Going) -> anyhow::Result<Vec<Violation>> {
        let mut found = Vec::new();
        if kind.takes_the_engine() {
            let engine = &self.site.engine;
            engine.gone(self.pid).await?;
            if kind == Kind::Power {
                engine.power_cut().await?;
            }
            engine.start().await?;
            self.pid = engine.pid()?;
        }
        if kind == Kind::Power {
            let bounds = Bounds {
                engine_restarted: true,
                ..going.bounds.clone()
            };
            found.extend(always(&self.snapshot().await?, &bounds));
        }
        if kind != Kind::Engine {
            self.start_agent()?;
        }
        Ok(found)
    }

    /// Starts the agent under strace.
    fn trace(&mut self, expression: &str, output: &str) -> anyhow::Result<()> {
        let strace = apt::require(&["strace"])?.remove(0).display().to_string();
        let mut words = vec![&strace, "-f", "-qq", "-o", output];
        let traced = expression.strip_prefix("inject=").map(|rest| {
            let name = rest.split(':').next().unwrap_or(rest);
            format!("trace={name}")
        });
        for expression in traced.iter().map(String::as_str).chain([expression]) {
            words.extend(["-e", expression]);
        }
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        self.device.agent.run_under(&words)
    }

    /// Starts the agent as it is.
    fn start_agent(&mut self) -> anyhow::Result<()> {
        self.device.agent.run_under(&[])
    }

    /// Kills a traced agent, after which its tracer ends by itself.
    async fn end_traced(&mut self) -> anyhow::Result<()> {
        let tracer = self.device.agent.process()?.pid();
        let children = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children"))?;
        for child in children.split_whitespace() {
            kill9(child.parse()?);
        }
        let agent = self.device.agent.process()?;
        agent.wait_for_end(DIES_WITHIN).await.map(drop)
    }
}

/// The most that one thread made of each: strace counts each thread's calls apart.
fn count_syscalls(log: &str) -> BTreeMap<String, usize> {
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        if let Some((name, _)) = call.trim_start().split_once('(')
            && SYSCALLS.contains(&name)
        {
            *by_thread.entry((thread, name)).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for ((_, name), count) in by_thread {
        let most: &mut usize = counts.entry(name.to_owned()).or_default();
        *most = count.max(*most);
    }
    counts
}
