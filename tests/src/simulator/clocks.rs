//! Clocks that leap by more than an hour, and operators who set them right again.
//!
//! Owns when clocks leap in a run, and for how long they are wrong. Never looks at what a host does
//! about it. Called by the world.

use dagger_ledger_core::interface::Input;

use super::faults::FaultKind;
use super::world::{Happening, Step, World};

/// How far a clock leaps ahead, from and to, in milliseconds.
const LEAP_MS: (u64, u64) = (3_700_000, 360_000_000);
/// How long it stays there, from and to, in microseconds.
const WRONG_US: (u64, u64) = (50_000, 6_000_000);
/// How long after the faults every operator looks a second time, in microseconds: by then what a
/// host with a wrong clock said has arrived.
const SECOND_LOOK_US: u64 = 10_000_000;
/// A host that stands still is looked after again after so many microseconds.
const AGAIN_US: u64 = 100_000;

/// What happens to a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockChange {
    /// It leaps.
    Leap,
    /// The operator sets it right, and says so.
    SetRight,
}

impl World {
    /// Draws when clocks leap.
    pub(super) fn plan_leaps(&mut self) {
        for _ in 0..self.settings.clock_leaps {
            let at_us = self.clocks.within((500_000, self.settings.faults_us));
            let host = self.clocks.choose(&self.honest_hosts());
            self.schedule.after_us(at_us, Happening::Clock(host, ClockChange::Leap));
        }
    }

    /// In the end every operator looks at his clock, twice, where any leapt.
    pub(super) fn look_at_clocks(&mut self) {
        let leapt = self.settings.clock_leaps > 0;
        for host in self.honest_hosts().into_iter().filter(|_| leapt) {
            for after_us in [0, SECOND_LOOK_US] {
                let set_right = Happening::Clock(host, ClockChange::SetRight);
                self.schedule.after_us(after_us, set_right);
            }
        }
    }

    pub(super) fn change_clock(&mut self, host: usize, change: ClockChange) -> Step {
        match change {
            ClockChange::Leap if !self.injecting || !self.bears_faults() => Ok(()),
            ClockChange::Leap => {
                self.hit(FaultKind::ClockLeap);
                self.hosts[host].clock_leapt_ms = self.clocks.within(LEAP_MS);
                let wrong_us = self.clocks.within(WRONG_US);
                let set_right = Happening::Clock(host, ClockChange::SetRight);
                self.schedule.after_us(wrong_us, set_right);
                Ok(())
            }
            ClockChange::SetRight if self.hosts[host].paused => {
                let again = Happening::Clock(host, ClockChange::SetRight);
                self.schedule.after_us(AGAIN_US, again);
                Ok(())
            }
            ClockChange::SetRight => {
                self.hosts[host].clock_leapt_ms = 0;
                self.feed(host, Input::ClockConfirmed)
            }
        }
    }
}
