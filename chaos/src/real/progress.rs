//! What a person sees while a run goes on: a line for each event, and one live line at a terminal.

use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

static BAR: OnceLock<ProgressBar> = OnceLock::new();

fn bar() -> &'static ProgressBar {
    BAR.get_or_init(|| {
        // Hidden by itself where standard error is not a terminal.
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar
    })
}

/// A line that stays.
pub(crate) fn say(line: &str) {
    if bar().is_hidden() {
        eprintln!("{line}");
    } else {
        bar().println(line);
    }
}

/// The live line.
pub(crate) fn live(text: String) {
    bar().enable_steady_tick(Duration::from_millis(200));
    bar().set_message(text);
}

/// No live line any more.
pub(crate) fn quiet() {
    bar().finish_and_clear();
}
