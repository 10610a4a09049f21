//! The arithmetic of a rollout: how many pods there may be, how many must be available, and what follows for each ReplicaSet.

use std::cmp::Ordering;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::super::replicaset::wanted;
use super::{DESIRED, MAX, View};
use crate::meta;

/// What a Deployment allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How many pods it wants.
    pub replicas: i32,
    /// How many more there may be during a rollout.
    pub surge: i32,
    /// How many fewer may be available.
    pub unavailable: i32,
}

impl Bounds {
    /// From the spec. A percentage of surge rounds up, one of unavailability down; if both come to nothing, one pod may be
    /// unavailable, or nothing could ever move.
    pub fn of(deployment: &Deployment) -> Bounds {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|s| s.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|s| s.strategy.as_ref());
        if strategy.is_some_and(|s| s.type_.as_deref() == Some("Recreate")) {
            return Bounds { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter);
        Self::resolve(replicas, surge, unavailable)
    }

    /// The same from the bare numbers.
    pub fn resolve(replicas: i32, surge: &IntOrString, unavailable: &IntOrString) -> Bounds {
        let surge = share(surge, replicas, true);
        let mut unavailable = share(unavailable, replicas, false);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Bounds { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    /// At most so many pods at once.
    pub fn max_pods(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// At least so many available pods.
    pub fn min_available(&self) -> i32 {
        (self.replicas - self.unavailable).max(0)
    }
}

/// A number, or a percentage of `whole`.
fn share(value: &IntOrString, whole: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0).max(0);
            let product = percent * i64::from(whole);
            let rounded = if up { (product + 99) / 100 } else { product / 100 };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// Available pods that stay: the status may be older than the last scaling down.
fn available(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0).min(wanted(rs))
}

/// Pods that there are or will be: those that a scaling down has not yet removed still take up room.
fn occupied(rs: &ReplicaSet) -> i32 {
    rs.status.as_ref().map_or(0, |s| s.replicas).max(wanted(rs))
}

fn total(view: &View<'_>) -> i32 {
    view.sets.iter().map(|rs| wanted(rs)).sum()
}

/// How many pods the ReplicaSet of a new template starts with.
pub(crate) fn first_size(view: &View<'_>) -> i32 {
    let occupied: i32 = view.sets.iter().map(|rs| occupied(rs)).sum();
    (view.bounds.max_pods() - occupied).clamp(0, view.bounds.replicas)
}

/// How many pods the ReplicaSet of the current template should have now.
pub(crate) fn new_size(view: &View<'_>) -> i32 {
    let Some(new) = view.new else { return 0 };
    let (size, replicas) = (wanted(new), view.bounds.replicas);
    if size >= replicas {
        return replicas;
    }
    let room = view.bounds.max_pods() - view.sets.iter().map(|rs| occupied(rs)).sum::<i32>();
    size + room.clamp(0, replicas - size)
}

/// Which old ReplicaSets shrink, and to what: first by pods that are not available anyway, then by as many as may be missing.
pub(crate) fn old_sizes<'a>(view: &View<'a>) -> Vec<(&'a Arc<ReplicaSet>, i32)> {
    let Some(new) = view.new else { return Vec::new() };
    let new_unavailable = (wanted(new) - available(new)).max(0);
    let mut may_go = total(view) - view.bounds.min_available() - new_unavailable;
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = view.old().filter(|rs| wanted(rs) > 0).map(|rs| (rs, wanted(rs))).collect();
    if may_go <= 0 || sizes.is_empty() {
        return Vec::new();
    }
    for (rs, size) in &mut sizes {
        let broken = (*size - available(rs)).clamp(0, may_go.max(0));
        *size -= broken;
        may_go -= broken;
    }
    let available_now: i32 = view.sets.iter().map(|rs| available(rs)).sum();
    let mut spare = (available_now - view.bounds.min_available()).max(0);
    for (_, size) in &mut sizes {
        let take = (*size).min(spare);
        *size -= take;
        spare -= take;
    }
    sizes.retain(|(rs, size)| *size != wanted(rs));
    sizes
}

/// The sizes of the ReplicaSets after the number of replicas has changed: in proportion to what they were, the remainder to the
/// largest. Only the sets whose size or annotations may be wrong are in the answer.
pub(crate) fn proportional<'a>(view: &View<'a>) -> Vec<(&'a Arc<ReplicaSet>, i32)> {
    let bounds = &view.bounds;
    let active: Vec<&Arc<ReplicaSet>> = view.sets.iter().copied().filter(|rs| wanted(rs) > 0).collect();
    if active.len() <= 1 {
        let only = active.first().copied().or(view.new).or_else(|| view.sets.last().copied());
        return only.map(|rs| (rs, bounds.replicas)).into_iter().collect();
    }
    if view.new.is_some_and(|new| is_saturated(new, bounds.replicas)) {
        return view.old().filter(|rs| wanted(rs) > 0).map(|rs| (rs, 0)).collect();
    }
    let rolling = view.deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).is_none_or(|s| s.type_.as_deref() != Some("Recreate"));
    if !rolling {
        return Vec::new();
    }
    let allowed = if bounds.replicas == 0 { 0 } else { bounds.max_pods() };
    let change = allowed - active.iter().map(|rs| wanted(rs)).sum::<i32>();
    spread(active, change, bounds)
}

fn is_saturated(rs: &ReplicaSet, replicas: i32) -> bool {
    let desired = meta::annotation(&rs.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok());
    wanted(rs) == replicas && desired == Some(replicas) && available(rs) == replicas
}

fn spread<'a>(mut active: Vec<&'a Arc<ReplicaSet>>, change: i32, bounds: &Bounds) -> Vec<(&'a Arc<ReplicaSet>, i32)> {
    let created = |rs: &Arc<ReplicaSet>| rs.metadata.creation_timestamp.as_ref().map(meta::millis);
    active.sort_by(|a, b| {
        let by_age = created(a).cmp(&created(b));
        let ties = if change > 0 { by_age.reverse() } else { by_age };
        wanted(b).cmp(&wanted(a)).then(ties)
    });
    let mut left = change;
    let mut sizes: Vec<(&Arc<ReplicaSet>, i32)> = Vec::with_capacity(active.len());
    for rs in active {
        let size = wanted(rs);
        let part = if left == 0 { 0 } else { fraction(rs, bounds, left) };
        sizes.push((rs, size + part));
        left -= part;
    }
    if let Some((_, first)) = sizes.first_mut() {
        *first = (*first + left).max(0);
    }
    sizes
}

/// A ReplicaSet's part of a change, never beyond what is left of it.
fn fraction(rs: &ReplicaSet, bounds: &Bounds, left: i32) -> i32 {
    let size = wanted(rs);
    if bounds.replicas == 0 {
        return -size;
    }
    let was_max = meta::annotation(&rs.metadata, MAX).and_then(|m| m.parse::<i64>().ok()).filter(|m| *m > 0);
    // Without the annotation the present size of all is the best guess.
    let was_max = was_max.unwrap_or_else(|| i64::from(bounds.max_pods()).max(1));
    let scaled = i64::from(size) * i64::from(bounds.max_pods());
    // Rounded half up; all operands are positive.
    let rounded = (2 * scaled + was_max) / (2 * was_max);
    let part = i32::try_from(rounded).unwrap_or(i32::MAX) - size;
    match left.cmp(&0) {
        Ordering::Greater => part.clamp(0, left),
        Ordering::Less => part.clamp(left, 0),
        Ordering::Equal => 0,
    }
}
