//! Which of the possible nodes is the best, with kube-scheduler's formulas and weights. All arithmetic that decides is in integers,
//! as it is there.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::affinity::{self, NamespaceLabels};
use super::filter::unpreferred;
use super::resources::{Resources, requests_for_scoring};
use super::snapshot::{NodeInfo, Snapshot};
use crate::name;
use crate::selector;

/// The best score of one plugin.
const MAX: i64 = 100;

/// `(allocatable - requested) * 100 / allocatable`, 0 if that is exceeded.
pub fn least_allocated(allocatable: i64, requested: i64) -> i64 {
    if allocatable <= 0 || requested > allocatable { 0 } else { (allocatable - requested) * MAX / allocatable }
}

/// `requested * 100 / allocatable`, 0 if that is exceeded.
pub fn most_allocated(allocatable: i64, requested: i64) -> i64 {
    if allocatable <= 0 || requested > allocatable { 0 } else { requested * MAX / allocatable }
}

/// How even cpu and memory are taken: 100 minus the spread of their fractions in percent.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "fractions between 0 and 1, as kube-scheduler computes them"
)]
pub fn balanced(fractions: &[(i64, i64)]) -> i64 {
    let f: Vec<f64> = fractions.iter().filter(|(all, _)| *all > 0).map(|(all, taken)| (*taken as f64 / *all as f64).min(1.0)).collect();
    let std = match f.as_slice() {
        [] | [_] => 0.0,
        [a, b] => (a - b).abs() / 2.0,
        more => {
            let mean = more.iter().sum::<f64>() / more.len() as f64;
            (more.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / more.len() as f64).sqrt()
        }
    };
    ((1.0 - std) * MAX as f64) as i64
}

/// `100 * score / max`, or the other way round; all 100 in the reversed form if nobody has anything.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for s in scores {
        *s = match (max, reverse) {
            (0, true) => MAX,
            (0, false) => 0,
            (_, false) => MAX * *s / max,
            (_, true) => MAX - MAX * *s / max,
        };
    }
}

fn resource_scores(pod: &Resources, info: &NodeInfo) -> i64 {
    let total = |name: &str| info.scoring.get(name) + pod.get(name);
    let names = ["cpu", "memory"].map(|name| (info.allocatable.get(name), total(name)));
    let known: Vec<(i64, i64)> = names.into_iter().filter(|(all, _)| *all > 0).collect();
    let least = known.iter().map(|(all, taken)| least_allocated(*all, *taken)).sum::<i64>();
    let least = if known.is_empty() { 0 } else { least / i64::try_from(known.len()).unwrap_or(1) };
    least + balanced(&known)
}

fn node_affinity(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let terms = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default();
    terms.iter().filter(|t| selector::node_term(&t.preference, node)).map(|t| i64::from(t.weight)).sum()
}

/// Final scores of the feasible nodes, in their order: the sum of all plugins, weighted.
pub fn scores(pod: &Pod, feasible: &[(&str, &NodeInfo, &Node)], snapshot: &Snapshot, namespaces: &NamespaceLabels) -> Vec<i64> {
    let request = requests_for_scoring(pod);
    let mut total: Vec<i64> = feasible.iter().map(|(_, info, _)| resource_scores(&request, info)).collect();
    let mut add = |weight: i64, part: Vec<i64>| total.iter_mut().zip(part).for_each(|(t, p)| *t += weight * p);

    let mut taints: Vec<i64> = feasible.iter().map(|(_, _, node)| unpreferred(pod, node)).collect();
    normalize(&mut taints, true);
    add(3, taints);

    let mut affinity: Vec<i64> = feasible.iter().map(|(_, _, node)| node_affinity(pod, node)).collect();
    normalize(&mut affinity, false);
    add(2, affinity);

    let weights = affinity::preferences(pod, snapshot, namespaces);
    if !weights.is_empty() {
        add(2, between(&feasible.iter().map(|(_, _, node)| affinity::preference(&weights, node)).collect::<Vec<_>>()));
    }
    let mut soft = affinity::spreads(pod, snapshot, false);
    soft.extend(affinity::default_spreads(pod, snapshot));
    if !soft.is_empty() {
        add(2, spread(&soft, feasible));
    }
    total
}

/// From the least to the most as 0 to 100.
fn between(scores: &[i64]) -> Vec<i64> {
    let (min, max) = (scores.iter().copied().min().unwrap_or(0), scores.iter().copied().max().unwrap_or(0));
    scores.iter().map(|s| if max == min { 0 } else { MAX * (s - min) / (max - min) }).collect()
}

fn spread(constraints: &[affinity::Spread], feasible: &[(&str, &NodeInfo, &Node)]) -> Vec<i64> {
    let raw = |node: &Node| {
        let known: Vec<f64> = constraints.iter().filter_map(|c| c.fullness(node)).collect();
        #[allow(clippy::cast_possible_truncation, reason = "a sum of pod counts")]
        (!known.is_empty()).then(|| known.iter().sum::<f64>().round() as i64)
    };
    let raws: Vec<Option<i64>> = feasible.iter().map(|(_, _, node)| raw(node)).collect();
    let (min, max) = (raws.iter().flatten().copied().min().unwrap_or(0), raws.iter().flatten().copied().max().unwrap_or(0));
    raws.iter().map(|r| r.map_or(0, |r| if max == 0 { MAX } else { MAX * (max + min - r) / max })).collect()
}

/// The best node; among equals, the one that a hash of pod and node names chooses: the same every time, and not always the first.
pub fn best<'a>(pod_uid: &str, feasible: &[(&'a str, &NodeInfo, &Node)], scores: &[i64]) -> Option<(&'a str, i64)> {
    let hash = |node: &str| name::fnv64(format!("{pod_uid}/{node}").as_bytes());
    let ranked = feasible.iter().zip(scores).map(|((name, _, _), score)| (*score, hash(name), *name));
    ranked.max().map(|(score, _, name)| (name, score))
}

/// How many nodes score per name, for an explanation.
pub fn by_name(feasible: &[(&str, &NodeInfo, &Node)], scores: &[i64]) -> BTreeMap<String, i64> {
    feasible.iter().zip(scores).map(|((name, _, _), score)| ((*name).to_owned(), *score)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: i64 = 1 << 30;

    #[test]
    fn allocation_vectors() {
        assert_eq!(least_allocated(4000, 1500), 62);
        assert_eq!(least_allocated(8 * GIB, 3 * GIB), 62);
        assert_eq!(most_allocated(4000, 1500), 37);
        assert_eq!(least_allocated(4000, 6000), 0);
        assert_eq!(balanced(&[(4000, 1500), (8 * GIB, 3 * GIB)]), 100);
        assert_eq!(balanced(&[(1000, 1000), (1000, 0)]), 50);
        assert_eq!(balanced(&[(1000, 3000), (1000, 1000)]), 100, "a fraction is at most 1");
    }

    #[test]
    fn normalization_vectors() {
        let run = |mut s: Vec<i64>, reverse| {
            normalize(&mut s, reverse);
            s
        };
        assert_eq!(run(vec![2, 4], true), [50, 0]);
        assert_eq!(run(vec![0, 0], true), [100, 100]);
        assert_eq!(run(vec![5, 10, 0], false), [50, 100, 0]);
        assert_eq!(run(vec![0, 0], false), [0, 0]);
        assert_eq!(between(&[-3, 0, 3]), [0, 50, 100]);
    }
}
