//! Owns the health gate: judges whether a fresh container may take over, must go, or needs time.

use std::fmt;

use crate::observed::{Container, ContainerState, Health};

/// How long the gate looks before it decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GateRules {
    /// Without a health check: how long a container must run without ending.
    pub stable_ms: u64,
    /// With one: how long it may take to become healthy.
    pub healthy_timeout_ms: u64,
    /// How often the agent may die over one spec before it gives that spec up.
    pub max_attempts: u32,
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
    /// The agent died again and again while it worked on it.
    AgentDied {
        /// How often.
        times: u32,
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
            Self::CrashLoop { .. } => "crash_loop",
            Self::StartFailed { .. } => "start_failed",
            Self::AgentDied { .. } => "agent_died",
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
            Self::CrashLoop { restarts } => write!(f, "it crashed and restarted {restarts} times"),
            Self::StartFailed { error } => write!(f, "it could not be started: {error}"),
            Self::AgentDied { times } => write!(f, "the agent died {times} times working on it"),
        }
    }
}

/// Judges a candidate that was started.
pub fn judge(candidate: &Container, rules: &GateRules) -> Verdict {
    if candidate.oom_killed {
        return Verdict::Fail(RejectReason::OutOfMemory);
    }
    if candidate.restart_count > 0 {
        return Verdict::Fail(RejectReason::CrashLoop {
            restarts: candidate.restart_count,
        });
    }
    match candidate.state {
        ContainerState::Exited { code } => Verdict::Fail(RejectReason::Exited { code }),
        ContainerState::Dead => Verdict::Fail(RejectReason::Exited { code: -1 }),
        ContainerState::Created
        | ContainerState::Removing
        | ContainerState::Restarting
        | ContainerState::Paused => Verdict::Wait {
            remaining_ms: rules.stable_ms,
        },
        ContainerState::Running => judge_running(candidate, rules),
    }
}

fn judge_running(candidate: &Container, rules: &GateRules) -> Verdict {
    let ran_ms = candidate.running_for_ms.unwrap_or(0);
    let within = |limit_ms: u64| limit_ms.checked_sub(ran_ms).filter(|left| *left > 0);
    match candidate.health {
        None => match within(rules.stable_ms) {
            Some(remaining_ms) => Verdict::Wait { remaining_ms },
            None => Verdict::Pass,
        },
        Some(Health::Healthy) => Verdict::Pass,
        Some(Health::Unhealthy) => Verdict::Fail(RejectReason::Unhealthy),
        Some(Health::Starting) => match within(rules.healthy_timeout_ms) {
            Some(remaining_ms) => Verdict::Wait { remaining_ms },
            None => Verdict::Fail(RejectReason::NeverHealthy {
                timeout_ms: rules.healthy_timeout_ms,
            }),
        },
    }
}
