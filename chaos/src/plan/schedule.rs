//! When faults come: the entries of a plan that go by the clock, resolved by its seed.

use std::time::Duration;

use super::{Dice, Plan};

/// A fault at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    /// Since the clients began.
    pub at: Duration,
    /// For so long.
    pub hold: Duration,
    /// Which entry of the schedule.
    pub entry: usize,
    /// The how-manieth of that entry, from 0 on. With the entry it names the stream of randomness that draws the target.
    pub number: u32,
}

impl Plan {
    /// All faults that go by the clock, in order of time. Entries that wait for an event are not among them.
    pub fn injections(&self) -> Vec<Injection> {
        let mut all = Vec::new();
        for (entry, line) in self.schedule.iter().enumerate() {
            let mut dice = Dice::new(self.seed, &format!("when/{entry}"));
            let mut hold = Dice::new(self.seed, &format!("for/{entry}"));
            let mut push = |at: Duration, number: u32| {
                let hold = line.hold.draw(&mut hold);
                if at < self.duration.0 {
                    all.push(Injection { at, hold, entry, number });
                }
            };
            if let Some(at) = line.when.at {
                push(at.draw(&mut dice), 0);
            }
            let Some(every) = line.when.every else { continue };
            let mut at = line.when.first.map_or_else(|| every.draw(&mut dice), |first| first.0);
            let mut number = 0;
            while at < self.duration.0 {
                push(at, number);
                number += 1;
                at += every.draw(&mut dice);
            }
        }
        all.sort_by_key(|i| (i.at, i.entry, i.number));
        all
    }

    /// The stream that draws what is left open of one injection, such as its target.
    pub fn dice(&self, injection: &Injection) -> Dice {
        Dice::new(self.seed, &format!("where/{}/{}", injection.entry, injection.number))
    }
}
