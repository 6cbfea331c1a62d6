//! Owns the health gate: judges whether a fresh container may take over, must go, or needs time.

use std::fmt;

use holdfast_proto::spec::{Period, RestartPolicy, ServiceSpec};

use crate::observed::{Container, ContainerState, Health};

/// How long the gate looks before it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateRules {
    /// Without a health check: how long a container must run without ending.
    pub stable_ms: u64,
    /// With one: how long it may take to become healthy, its start period not counted.
    pub healthy_timeout_ms: u64,
    /// With one: how long it must then stay healthy.
    pub soak_ms: u64,
    /// How often the agent may die over one spec before it gives that spec up.
    pub max_attempts: u32,
    /// How often the engine may end a trial of one spec before it is given up.
    pub max_interruptions: u32,
}

/// What the agent's own probe of a container on trial has shown so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeState {
    /// Whether the last question was answered well.
    pub passed: bool,
    /// How often in a row it was not; failures within the start period are not counted.
    pub failures_in_a_row: u32,
    /// What the last failure was, whether it counted or not.
    pub last_error: Option<String>,
    /// Why the probe can never be answered, such as a program that the image does not have.
    pub cannot_run: Option<String>,
}

/// What the gate says of a started candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may serve for good.
    Pass,
    /// It has this much time left to prove itself.
    Wait {
        /// Milliseconds until the gate decides at the latest.
        remaining_ms: u64,
    },
    /// It must go.
    Fail(RejectReason),
}

/// Why a spec was rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Its process ended during the gate.
    Exited {
        /// The process's exit code.
        code: i64,
    },
    /// The kernel killed it for memory.
    OutOfMemory,
    /// Its health check failed.
    Unhealthy,
    /// Its health check did not pass in time.
    NeverHealthy {
        /// How long it had.
        timeout_ms: u64,
    },
    /// The check that should tell its health cannot be run.
    ProbeCannotRun {
        /// Why not.
        error: String,
    },
    /// The agent's own probe failed too often in a row.
    ProbeFailed {
        /// How it failed last.
        error: String,
    },
    /// The engine runs it without a port that it should publish.
    PortNotPublished {
        /// The port.
        port: String,
    },
    /// It ended and was started again during the gate.
    CrashLoop {
        /// How often.
        restarts: u64,
    },
    /// The engine could not start it.
    StartFailed {
        /// The engine's words.
        error: String,
    },
    /// The engine ended its trial again and again.
    Interrupted {
        /// How often.
        times: u32,
    },
    /// The agent died again and again while it worked on it.
    AgentDied {
        /// How often.
        times: u32,
    },
    /// It was tried as the agent itself, and the one before it is back.
    AgentFailed {
        /// How it failed.
        error: String,
    },
}

impl RejectReason {
    /// Stable name for reports.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exited { .. } => "exited",
            Self::OutOfMemory => "out_of_memory",
            Self::Unhealthy => "unhealthy",
            Self::NeverHealthy { .. } => "never_healthy",
            Self::ProbeCannotRun { .. } => "probe_cannot_run",
            Self::ProbeFailed { .. } => "probe_failed",
            Self::PortNotPublished { .. } => "port_not_published",
            Self::Interrupted { .. } => "interrupted",
            Self::CrashLoop { .. } => "crash_loop",
            Self::StartFailed { .. } => "start_failed",
            Self::AgentDied { .. } => "agent_died",
            Self::AgentFailed { .. } => "agent_failed",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "its process ended with code {code}"),
            Self::OutOfMemory => f.write_str("it ran out of memory"),
            Self::Unhealthy => f.write_str("its health check failed"),
            Self::NeverHealthy { timeout_ms } => {
                write!(
                    f,
                    "it did not become healthy within {} s",
                    timeout_ms / 1000
                )
            }
            Self::ProbeCannotRun { error } => write!(f, "its health check cannot run: {error}"),
            Self::ProbeFailed { error } => write!(f, "its probe failed: {error}"),
            Self::PortNotPublished { port } => {
                write!(f, "the engine does not publish its port {port}")
            }
            Self::Interrupted { times } => {
                write!(f, "the engine ended its trial {times} times")
            }
            Self::CrashLoop { restarts } => write!(f, "it crashed and restarted {restarts} times"),
            Self::StartFailed { error } => write!(f, "it could not be started: {error}"),
            Self::AgentDied { times } => write!(f, "the agent died {times} times working on it"),
            Self::AgentFailed { error } => f.write_str(error),
        }
    }
}

/// Judges a container of `spec` that was started on trial.
pub fn judge(candidate: &Container, spec: &ServiceSpec, rules: &GateRules) -> Verdict {
    if candidate.oom_killed {
        return Verdict::Fail(RejectReason::OutOfMemory);
    }
    if candidate.restart_count > 0 {
        return Verdict::Fail(RejectReason::CrashLoop {
            restarts: candidate.restart_count,
        });
    }
    match candidate.state {
        ContainerState::Exited { code: 0 } if ends_by_itself(candidate.wanted_restart) => {
            Verdict::Pass
        }
        ContainerState::Exited { code } => Verdict::Fail(RejectReason::Exited { code }),
        ContainerState::Dead => Verdict::Fail(RejectReason::Exited { code: -1 }),
        ContainerState::Created
        | ContainerState::Removing
        | ContainerState::Restarting
        | ContainerState::Paused => Verdict::Wait {
            remaining_ms: rules.stable_ms,
        },
        ContainerState::Running => judge_running(candidate, spec, rules),
    }
}

/// Whether ending without an error is what a container with this policy is for.
pub(crate) fn ends_by_itself(restart: RestartPolicy) -> bool {
    match restart {
        RestartPolicy::No | RestartPolicy::OnFailure(_) => true,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => false,
    }
}

fn judge_running(candidate: &Container, spec: &ServiceSpec, rules: &GateRules) -> Verdict {
    if let Some(reason) = unhealthy(candidate, spec) {
        return Verdict::Fail(reason);
    }
    let options = spec.holdfast.as_ref();
    let soak_ms = options
        .and_then(|options| options.soak)
        .map(Period::as_millis);
    let probe = options.and_then(|options| options.probe.as_ref());
    let checked = candidate.health.is_some() || probe.is_some();
    let ran_ms = candidate.running_for_ms.unwrap_or(0);
    let (good_for_ms, needed_ms) = if checked {
        (candidate.healthy_for_ms, soak_ms.unwrap_or(rules.soak_ms))
    } else {
        (
            Some(ran_ms),
            rules.stable_ms.max(soak_ms.unwrap_or_default()),
        )
    };
    if let Some(good_for_ms) = good_for_ms {
        return match needed_ms.checked_sub(good_for_ms).filter(|left| *left > 0) {
            Some(remaining_ms) => Verdict::Wait { remaining_ms },
            None => Verdict::Pass,
        };
    }
    let check = spec.healthcheck.as_ref();
    let start_periods = [
        check.and_then(|check| check.start_period),
        probe.map(|probe| probe.start_period),
    ];
    let start_periods = start_periods.into_iter().flatten();
    let start_period_ms = start_periods.map(Period::as_millis).max().unwrap_or(0);
    let timeout_ms = options
        .and_then(|options| options.handover_timeout)
        .map_or(rules.healthy_timeout_ms, Period::as_millis)
        .saturating_add(start_period_ms);
    match timeout_ms.checked_sub(ran_ms).filter(|left| *left > 0) {
        Some(remaining_ms) => Verdict::Wait { remaining_ms },
        None => Verdict::Fail(RejectReason::NeverHealthy { timeout_ms }),
    }
}

fn unhealthy(candidate: &Container, spec: &ServiceSpec) -> Option<RejectReason> {
    if candidate.health == Some(Health::Unhealthy) {
        return Some(match &candidate.probe_error {
            Some(error) => RejectReason::ProbeCannotRun {
                error: error.clone(),
            },
            None => RejectReason::Unhealthy,
        });
    }
    let options = spec.holdfast.as_ref();
    let wanted = options.and_then(|options| options.probe.as_ref())?;
    let found = candidate.probe.as_ref()?;
    if let Some(error) = &found.cannot_run {
        return Some(RejectReason::ProbeCannotRun {
            error: error.clone(),
        });
    }
    (found.failures_in_a_row >= wanted.retries).then(|| RejectReason::ProbeFailed {
        error: found.last_error.clone().unwrap_or_default(),
    })
}
