//! What was measured, for people and for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::cells::{Cell, Workload};
use super::run::Sample;
use super::stats::{Spread, ratio};

/// A column: its name, its unit, and how a sample tells it.
struct Figure {
    name: &'static str,
    head: &'static str,
    /// Columns that it takes on a terminal.
    width: usize,
    decimals: usize,
    of: fn(&Sample) -> Option<f64>,
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
const fn float(n: u64) -> f64 {
    n as f64
}

fn per_op(n: u64, sample: &Sample) -> Option<f64> {
    (sample.done > 0).then(|| float(n) / float(sample.done))
}

fn ms(nanos: u64) -> Option<f64> {
    (nanos > 0).then(|| float(nanos) / 1e6)
}

const FIGURES: &[Figure] = &[
    Figure { name: "per_second", head: "per s", width: 26, decimals: 0, of: |s| Some(float(s.done) / s.seconds) },
    Figure { name: "p50_ms", head: "p50 ms", width: 10, decimals: 3, of: |s| ms(s.p50) },
    Figure { name: "p99_ms", head: "p99 ms", width: 10, decimals: 3, of: |s| ms(s.p99) },
    Figure { name: "p999_ms", head: "p99.9 ms", width: 10, decimals: 3, of: |s| ms(s.p999) },
    Figure { name: "cpu_s_per_million", head: "CPU s/M", width: 10, decimals: 1, of: |s| per_op(s.servers?.cpu_us, s) },
    Figure { name: "written_bytes_per_op", head: "B written", width: 11, decimals: 0, of: |s| per_op(s.servers?.written, s) },
    Figure { name: "resident_mb", head: "MB resident", width: 12, decimals: 0, of: |s| Some(float(s.servers?.resident) / 1e6) },
];

/// The figure that is printed with its range.
const RANGED: &str = "per_second";

/// Figures of the surroundings: load generator, rest of the machine.
const CONTEXT: &[Figure] = &[
    Figure { name: "refused", head: "refused", width: 0, decimals: 0, of: |s| Some(float(s.refused)) },
    Figure { name: "loader_cpu_us_per_op", head: "loader", width: 0, decimals: 1, of: |s| per_op(s.loader_us, s) },
    Figure { name: "other_cpus_busy", head: "others", width: 0, decimals: 2, of: |s| Some(float(s.others_us) / 1e6 / s.seconds) },
    Figure { name: "disk_bytes_per_op", head: "disk", width: 0, decimals: 0, of: |s| per_op(s.disk_written, s) },
];

/// A cell with what its runs have shown: ours, then what we compare with.
pub(super) struct Measured {
    pub(super) cell: Cell,
    pub(super) runs: Vec<(String, Vec<Sample>)>,
}

impl Measured {
    fn spread(&self, store: usize, figure: &Figure) -> Option<Spread> {
        let (_, samples) = self.runs.get(store)?;
        Spread::of(samples.iter().filter_map(figure.of).collect())
    }

    fn ratio(&self, figure: &Figure) -> Option<f64> {
        ratio(self.spread(0, figure), self.spread(1, figure))
    }

    fn title(&self) -> String {
        let Cell { workload, callers, value } = self.cell;
        let who = if workload == Workload::Watch { "watchers" } else { "callers" };
        format!("{workload}, {} {who}, {value} B", grouped(f64::from(callers), 0))
    }

    /// For a terminal: a line for each store, one for the ratios, and how noisy the machine was.
    pub(super) fn text(&self) -> String {
        let mut out = format!("{}\n{:<10}", self.title(), "");
        let cell = |spread: Option<Spread>, figure: &Figure| match spread {
            None => "-".to_owned(),
            Some(s) if s.low < s.high && figure.name == RANGED => {
                format!("{} [{}-{}]", grouped(s.median, 0), grouped(s.low, 0), grouped(s.high, 0))
            }
            Some(s) => grouped(s.median, figure.decimals),
        };
        for figure in FIGURES {
            write!(out, " {:>width$}", figure.head, width = figure.width).expect("a string grows");
        }
        for (store, (name, _)) in self.runs.iter().enumerate() {
            write!(out, "\n  {name:<8}").expect("a string grows");
            for figure in FIGURES {
                let text = cell(self.spread(store, figure), figure);
                write!(out, " {text:>width$}", width = figure.width).expect("a string grows");
            }
        }
        if self.runs.len() > 1 {
            write!(out, "\n  {:<8}", "ratio").expect("a string grows");
            for figure in FIGURES {
                let text = self.ratio(figure).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}x"));
                write!(out, " {text:>width$}", width = figure.width).expect("a string grows");
            }
        }
        out.push_str("\n  meanwhile");
        for (store, (name, samples)) in self.runs.iter().enumerate() {
            let of = |figure: &Figure| self.spread(store, figure).map_or(0.0, |s| s.median);
            let [_, loader, others, disk] = CONTEXT else { continue };
            let refused: u64 = samples.iter().map(|s| s.refused).sum();
            let (loader, others, disk) = (of(loader), of(others), of(disk));
            write!(out, " {name}: load {loader:.1} µs/op, others {others:.2} CPUs, {disk:.0} B/op to the disk").expect("a string grows");
            if refused > 0 {
                write!(out, ", {refused} REFUSED").expect("a string grows");
            }
            out.push(';');
        }
        out.push('\n');
        out
    }

    /// All runs, and their medians.
    fn json(&self) -> Value {
        let Cell { workload, callers, value } = self.cell;
        let all = || FIGURES.iter().chain(CONTEXT);
        let stores = self.runs.iter().enumerate().map(|(store, (name, samples))| {
            let runs: Vec<Value> = samples.iter().map(|s| all().map(|f| (f.name.to_owned(), json!((f.of)(s)))).collect()).collect();
            let medians: Value = all().map(|f| (f.name.to_owned(), json!(self.spread(store, f).map(|s| s.median)))).collect();
            json!({ "store": name, "runs": runs, "medians": medians })
        });
        let ratios: Value = FIGURES.iter().map(|f| (f.name.to_owned(), json!(self.ratio(f)))).collect();
        json!({ "workload": workload.to_string(), "callers": callers, "value_bytes": value, "stores": stores.collect::<Vec<_>>(), "ratios": ratios })
    }

    fn markdown_row(&self) -> String {
        let mut row = format!("| {} |", self.title());
        for figure in FIGURES {
            let number = |store| self.spread(store, figure).map_or_else(|| "-".into(), |s| grouped(s.median, figure.decimals));
            match self.ratio(figure) {
                Some(ratio) => write!(row, " {} / {} = **{ratio:.2}** |", number(0), number(1)),
                None => write!(row, " {} |", number(0)),
            }
            .expect("a string grows");
        }
        row
    }
}

/// A number with its thousands apart.
fn grouped(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, rest) = text.split_once('.').map_or((text.as_str(), ""), |(whole, rest)| (whole, rest));
    let mut out = String::new();
    for (place, digit) in whole.chars().enumerate() {
        let left = whole.len() - place;
        if place > 0 && left.is_multiple_of(3) && digit.is_ascii_digit() && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if rest.is_empty() { out } else { format!("{out}.{rest}") }
}

/// Everything as one JSON document.
pub(super) fn json(about: &Value, cells: &[Measured]) -> Value {
    json!({ "about": about, "cells": cells.iter().map(Measured::json).collect::<Vec<_>>() })
}

/// Everything as one Markdown table: ours / theirs = ratio, medians.
pub(super) fn markdown(cells: &[Measured]) -> String {
    let heads: Vec<&str> = FIGURES.iter().map(|f| f.head).collect();
    let mut out = format!("| what | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for cell in cells {
        out.push_str(&cell.markdown_row());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::procs::Usage;
    use super::*;

    fn measured() -> Measured {
        let sample = |done, cpu_us| Sample {
            seconds: 2.0,
            done,
            p50: 1_500_000,
            p99: 3_000_000,
            p999: 4_000_000,
            servers: Some(Usage { cpu_us, written: done * 300, resident: 50_000_000 }),
            ..Sample::default()
        };
        let runs = vec![("ours".into(), vec![sample(4_000, 8_000), sample(6_000, 12_000)]), ("theirs".into(), vec![sample(2_000, 16_000)])];
        Measured { cell: "put:1000".parse().unwrap(), runs }
    }

    #[test]
    fn a_table_says_medians_ranges_and_ratios() {
        let text = measured().text();
        for part in ["put, 1,000 callers, 256 B", "2,500 [2,000-3,000]", "1,000", "2.50x", "0.25x", "others 0.00 CPUs"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("REFUSED"));
    }

    #[test]
    fn programs_get_every_run() {
        let all = json(&json!({ "members": 3 }), &[measured()]);
        let cell = &all["cells"][0];
        assert_eq!(cell["stores"][0]["runs"].as_array().unwrap().len(), 2);
        assert_eq!(
            (cell["stores"][0]["medians"]["per_second"].as_f64(), cell["ratios"]["per_second"].as_f64()),
            (Some(2_500.0), Some(2.5))
        );
        assert!(markdown(&[measured()]).contains("2,500 / 1,000 = **2.50** |"));
    }

    #[test]
    fn numbers_have_their_thousands_apart() {
        for (number, decimals, text) in [(0.0, 0, "0"), (999.0, 0, "999"), (1_000.0, 0, "1,000"), (-1_234_567.8, 1, "-1,234,567.8")] {
            assert_eq!(grouped(number, decimals), text);
        }
    }
}
