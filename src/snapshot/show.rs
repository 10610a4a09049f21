//! What the snapshot commands show: a bar while they work, and what is in a file.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use kontiki_store::snapshot::Progress;
use kontiki_store::snapshot::file::Status;

use super::cli::Form;

/// A progress bar on a terminal; nothing elsewhere. Removed when it is dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
    what: Mutex<&'static str>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar, what: Mutex::new("") }
    }

    pub(crate) fn show(&self, progress: Progress) {
        let mut what = self.what.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *what != progress.what {
            *what = progress.what;
            let template = if progress.total == 0 {
                "{msg:9} {spinner} {elapsed}"
            } else {
                "{msg:9} {bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left"
            };
            self.bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
            self.bar.set_message(progress.what);
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// What a snapshot holds, as text.
pub(super) fn status(status: &Status, form: Form) -> String {
    let Status { hash, revision, compact, total_keys, total_size, version } = status;
    let size = indicatif::HumanBytes(*total_size).to_string();
    match form {
        Form::Simple => format!("{hash:x}, {revision}, {total_keys}, {size}, {version}"),
        Form::Json => serde_json::json!({
            "hash": hash,
            "revision": revision.get(),
            "compactRevision": compact.get(),
            "totalKey": total_keys,
            "totalSize": total_size,
            "version": version,
        })
        .to_string(),
        Form::Table => {
            let head = ["HASH", "REVISION", "COMPACTED TO", "TOTAL KEYS", "TOTAL SIZE", "STORAGE VERSION"].map(str::to_owned);
            table(&head, &[format!("{hash:x}"), revision.to_string(), compact.to_string(), total_keys.to_string(), size, version.clone()])
        }
    }
}

/// A table of one row, as etcdctl draws it.
fn table(head: &[String], row: &[String]) -> String {
    let widths: Vec<usize> = head.iter().zip(row).map(|(a, b)| a.chars().count().max(b.chars().count()) + 2).collect();
    let rule: String = widths.iter().map(|width| format!("+{}", "-".repeat(*width))).collect::<String>() + "+";
    let line = |cells: &[String]| cells.iter().zip(&widths).map(|(cell, width)| format!("|{cell:^width$}")).collect::<String>() + "|";
    [rule.clone(), line(head), rule.clone(), line(row), rule].join("\n")
}

#[cfg(test)]
mod tests {
    use kontiki_base::ids::Revision;

    use super::*;

    #[test]
    fn a_status_has_three_forms() {
        let it = Status {
            hash: 0xfe01_cf57,
            revision: Revision::new(10),
            compact: Revision::new(3),
            total_keys: 7,
            total_size: 2_141_184,
            version: "3.5.0".into(),
        };
        assert_eq!(status(&it, Form::Simple), "fe01cf57, 10, 7, 2.04 MiB, 3.5.0");
        let json = status(&it, Form::Json);
        for part in ["\"hash\":4261531479", "\"revision\":10", "\"totalKey\":7", "\"totalSize\":2141184"] {
            assert!(json.contains(part), "{json}");
        }
        let table = status(&it, Form::Table);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{table}");
        assert!(lines[3].contains("| fe01cf57 |"), "{table}");
    }
}
