//! Probes: when one is due, and what a row of results adds up to.

use k8s_openapi::api::core::v1::{Container, Probe};

/// The three sorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Holds back the other two until it has succeeded once.
    Startup,
    /// Failing it has the container restarted.
    Liveness,
    /// Decides whether the pod gets traffic.
    Readiness,
}

impl ProbeKind {
    /// All of them.
    pub const ALL: [ProbeKind; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// The container's probe of this sort.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }

    /// As events name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A probe's settings, defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Before the first, after the container's start.
    pub initial_ms: i64,
    /// Between two.
    pub period_ms: i64,
    /// One takes at most this long.
    pub timeout_ms: i64,
    /// So many in a row make a success.
    pub successes: i32,
    /// So many in a row make a failure.
    pub failures: i32,
}

impl Timing {
    /// Of a probe.
    pub fn of(probe: &Probe) -> Self {
        let ms = |seconds: Option<i32>, default: i32| i64::from(seconds.filter(|s| *s > 0).unwrap_or(default)) * 1_000;
        Self {
            initial_ms: i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)) * 1_000,
            period_ms: ms(probe.period_seconds, 10),
            timeout_ms: ms(probe.timeout_seconds, 1),
            successes: probe.success_threshold.filter(|n| *n > 0).unwrap_or(1),
            failures: probe.failure_threshold.filter(|n| *n > 0).unwrap_or(3),
        }
    }
}

/// The row of results of one probe of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// What the row adds up to; nothing yet at first.
    pub verdict: Option<bool>,
    /// The latest result, and how often in a row.
    pub latest: Option<(bool, i32)>,
    /// When the next one is due; 0: as soon as the initial delay allows.
    pub due_ms: i64,
    /// Whether one is under way.
    pub running: bool,
    /// What the latest failure said.
    pub said: String,
}

impl Row {
    /// Notes a result. True if the verdict changed.
    pub fn record(&mut self, timing: &Timing, ok: bool, said: String, now_ms: i64) -> bool {
        self.running = false;
        self.due_ms = now_ms.saturating_add(timing.period_ms);
        let count = match self.latest {
            Some((was, count)) if was == ok => count.saturating_add(1),
            _ => 1,
        };
        self.latest = Some((ok, count));
        if !ok {
            self.said = said;
        }
        let enough = count >= if ok { timing.successes } else { timing.failures };
        let before = self.verdict;
        if enough {
            self.verdict = Some(ok);
        }
        self.verdict != before
    }
}

/// The probes of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeMemory {
    startup: Row,
    liveness: Row,
    readiness: Row,
}

impl ProbeMemory {
    /// One row.
    pub fn row(&self, kind: ProbeKind) -> &Row {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Liveness => &self.liveness,
            ProbeKind::Readiness => &self.readiness,
        }
    }

    /// One row, to be changed.
    pub fn row_mut(&mut self, kind: ProbeKind) -> &mut Row {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Liveness => &mut self.liveness,
            ProbeKind::Readiness => &mut self.readiness,
        }
    }
}

/// Whether a running container has started, in the sense of its startup probe.
pub fn is_started(container: &Container, memory: Option<&ProbeMemory>) -> bool {
    container.startup_probe.is_none() || memory.and_then(|m| m.startup.verdict) == Some(true)
}

/// Whether a running container is ready: started, and its readiness probe, if any, has succeeded.
pub fn is_ready(container: &Container, memory: Option<&ProbeMemory>) -> bool {
    let readiness = container.readiness_probe.is_none() || memory.and_then(|m| m.readiness.verdict) == Some(true);
    is_started(container, memory) && readiness
}

/// The probe that demands that the container be killed, with what it said.
pub fn fatal(container: &Container, memory: Option<&ProbeMemory>) -> Option<(ProbeKind, String)> {
    let memory = memory?;
    let failed = |kind: ProbeKind| kind.of(container).is_some() && memory.row(kind).verdict == Some(false);
    let kind = [ProbeKind::Startup, ProbeKind::Liveness].into_iter().find(|kind| failed(*kind))?;
    Some((kind, memory.row(kind).said.clone()))
}

/// What is to be probed now, and when to look again. The container has been running since `started_ms`.
pub fn due(container: &Container, memory: Option<&ProbeMemory>, started_ms: i64, now_ms: i64) -> (Vec<ProbeKind>, Option<i64>) {
    let (mut now, mut next): (Vec<ProbeKind>, Option<i64>) = (Vec::new(), None);
    let started = is_started(container, memory);
    for kind in ProbeKind::ALL {
        let Some(probe) = kind.of(container) else { continue };
        let wanted = if kind == ProbeKind::Startup { !started } else { started };
        let row = memory.map(|m| m.row(kind));
        if !wanted || row.is_some_and(|r| r.running) {
            continue;
        }
        let at = (started_ms + Timing::of(probe).initial_ms).max(row.map_or(0, |r| r.due_ms));
        if at <= now_ms {
            now.push(kind);
        } else {
            next = Some(next.map_or(at, |n| n.min(at)));
        }
    }
    (now, next)
}
