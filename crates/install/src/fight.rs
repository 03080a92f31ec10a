// SPDX-License-Identifier: Apache-2.0
//! Somebody who takes our entry out again and again. Owns when that is a fight, and when to hold back; without a clock.
//!
//! Somebody who writes a file anew now and then, even every second, is answered at once each time: pods must not start
//! without us. Only somebody who answers *us*, at once and several times in a row, is met with growing pauses, since both
//! would else write as fast as they can.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// So many restorations within [`SPAN`] are a fight.
const COUNT: usize = 5;
const SPAN: Duration = Duration::from_secs(60);
/// What is undone this soon is undone because of us.
const ANSWER: Duration = Duration::from_millis(100);
/// So many answers in a row before the first pause.
const ANSWERS: u32 = 5;
/// The first pause; it doubles.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What a fight looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fight {
    /// Restorations since it began.
    pub restored: u64,
    /// How long the next one is held back; zero while none is.
    pub pause: Duration,
}

/// What happened so far.
#[derive(Debug, Default)]
pub(crate) struct Fights {
    restored: VecDeque<Instant>,
    total: u64,
    answers: u32,
    pause_from: Option<Instant>,
    /// The last restoration, if nobody has undone it.
    last: Option<Instant>,
}

impl Fights {
    /// Our entry turned out to be gone; when may it be restored?
    pub(crate) fn lost(&mut self, now: Instant) -> Instant {
        if let Some(until) = self.pause_from.map(|from| from + self.pause()) {
            return until;
        }
        // Once for each restoration, also when the next one does not succeed.
        if let Some(last) = self.last.take() {
            self.answers = if now.duration_since(last) < ANSWER { self.answers + 1 } else { 0 };
        }
        if self.answers < ANSWERS {
            return now;
        }
        self.pause_from = Some(now);
        now + self.pause()
    }

    /// It was restored.
    pub(crate) fn restored(&mut self, now: Instant) {
        self.pause_from = None;
        self.forget(now);
        self.restored.push_back(now);
        self.last = Some(now);
        self.total += 1;
    }

    /// The fight that is on.
    pub(crate) fn state(&mut self, now: Instant) -> Option<Fight> {
        self.forget(now);
        let pause = self.pause_from.map_or(Duration::ZERO, |_| self.pause());
        let on = self.restored.len() >= COUNT || !pause.is_zero() || self.answers >= ANSWERS;
        if !on && self.restored.is_empty() {
            self.total = 0;
        }
        on.then_some(Fight { restored: self.total, pause })
    }

    /// When to look at [`Self::state`] again, as long as a fight is on.
    pub(crate) fn ends(&self) -> Option<Instant> {
        self.restored.back().map(|last| *last + SPAN)
    }

    fn pause(&self) -> Duration {
        let doublings = self.answers.saturating_sub(ANSWERS).min(16);
        (PAUSE * 2u32.pow(doublings)).min(PAUSE_MAX)
    }

    fn forget(&mut self, now: Instant) {
        while self.restored.front().is_some_and(|at| now.duration_since(*at) >= SPAN) {
            self.restored.pop_front();
        }
        if self.restored.is_empty() && self.pause_from.is_none() {
            self.answers = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_vendor_that_writes_every_second_is_answered_at_once_and_named() {
        let (mut fights, start) = (Fights::default(), Instant::now());
        for second in 0..200 {
            let now = start + ms(1000 * second);
            assert_eq!(fights.lost(now), now);
            fights.restored(now);
            assert_eq!(fights.state(now).is_some(), second >= 4, "{second}");
        }
        assert_eq!(fights.state(start + ms(199_000)), Some(Fight { restored: 200, pause: ms(0) }));
        assert_eq!(fights.state(start + ms(199_000 + 60_001)), None);
    }

    #[test]
    fn who_answers_us_is_met_with_pauses_that_double_up_to_half_a_minute() {
        let (mut fights, mut now) = (Fights::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..16 {
            now += ms(1);
            let due = fights.lost(now);
            // More events in the pause do not make it longer.
            assert_eq!(fights.lost(now + (due - now) / 2), due);
            pauses.push((due - now).as_millis());
            now = due;
            fights.restored(now);
        }
        assert_eq!(
            pauses,
            [0, 0, 0, 0, 0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000]
        );
        // It stays for once.
        now += ms(1000);
        assert_eq!(fights.lost(now), now);
    }
}
