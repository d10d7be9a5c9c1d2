//! Rule 3: who held which bytes, and that every two conflicting uses are ordered; and that no task
//! uses bytes in two ways.

use super::walk::{Clock, Held, Holder, Users, Walk, join};
use super::{Fault, content::Spans};
use crate::plan::{Arg, Lane, SlotId, Use};

impl Walk<'_> {
    /// No two arguments of a task share bytes of which one is written, and none lies in a slot that
    /// shares bytes with another one's: an operation in place has one argument for both.
    pub(super) fn apart(&self, args: &[Arg]) -> Result<(), Fault> {
        for (i, a) in args.iter().enumerate() {
            if a.access == Use::Read {
                continue;
            }
            let s = &self.plan.slots[a.slot];
            for (k, b) in args.iter().enumerate() {
                let o = &self.plan.slots[b.slot];
                if i == k || s.tier != o.tier {
                    continue;
                }
                let over = |(x, n): (u64, u64), (y, m): (u64, u64)| x < y + m && y < x + n;
                let used = over(
                    (s.offset + a.offset, a.bytes),
                    (o.offset + b.offset, b.bytes),
                );
                let live = a.slot != b.slot && over((s.offset, s.bytes), (o.offset, o.bytes));
                if used || live {
                    return self.fault(format!(
                        "writes {} over its own argument {}",
                        s.tensor.name(self.plan),
                        o.tensor.name(self.plan)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Makes `slot` the holder of its bytes; whoever held any of them loses its content. Returns
    /// the clock of everybody who used those bytes before.
    pub(super) fn hold(&mut self, slot: SlotId) -> Result<Clock, Fault> {
        let s = &self.plan.slots[slot];
        let holders = &mut self.holders[s.tier];
        let (from, to) = (s.offset, s.offset + s.bytes);
        if holders.get(&from) == Some(&(to, Holder::Slot(slot))) {
            return Ok(Clock::default());
        }
        let start = holders
            .range(..=from)
            .next_back()
            .filter(|&(_, &(end, _))| end > from)
            .map_or(from, |(&k, _)| k);
        let losers: Vec<(u64, u64, Holder)> = holders
            .range(start..to)
            .map(|(&k, &(end, holder))| (k, end, holder))
            .collect();
        let mut clock = Clock::default();
        for (k, end, holder) in losers {
            let past = match holder {
                Holder::Past(past) => past,
                Holder::Slot(other) => {
                    let loser = &self.plan.slots[other];
                    if loser.persistent {
                        return self.fault(format!(
                            "{} shares bytes with {}, which stays",
                            s.tensor.name(self.plan),
                            loser.tensor.name(self.plan)
                        ));
                    }
                    let mut past = Clock::default();
                    for (_, _, u) in self.held.remove(&other).iter().flat_map(|h| &h.users) {
                        join(&mut past, &u.writer);
                        join(&mut past, &u.readers);
                    }
                    past
                }
            };
            join(&mut clock, &past);
            let holders = &mut self.holders[s.tier];
            holders.remove(&k);
            if k < from {
                holders.insert(k, (from, Holder::Past(past)));
            }
            if end > to {
                holders.insert(to, (end, Holder::Past(past)));
            }
        }
        self.holders[s.tier].insert(from, (to, Holder::Slot(slot)));
        self.held.insert(
            slot,
            Held {
                content: Spans::default(),
                users: Vec::new(),
            },
        );
        Ok(clock)
    }

    /// Rule 3.
    pub(super) fn ordered(&mut self, a: &Arg, lane: Lane, clock: &Clock) -> Result<(), Fault> {
        let before = self.hold(a.slot)?;
        let mark = self.count[lane] + 1;
        let mut needs = before;
        let held = self.held.get_mut(&a.slot).expect("just held");
        let s = &self.plan.slots[a.slot];
        let whole = !s.persistent;
        let (from, to) = if whole {
            (0, s.bytes)
        } else {
            (a.offset, a.offset + a.bytes)
        };
        let mut exact = false;
        for (f, t, u) in &mut held.users {
            if *f < to && from < *t {
                join(&mut needs, &u.writer);
                if a.access != Use::Read {
                    join(&mut needs, &u.readers);
                }
            }
            if (*f, *t) == (from, to) {
                exact = true;
                if a.access == Use::Read {
                    u.readers[lane] = mark;
                } else {
                    u.writer[lane] = mark;
                }
            }
        }
        if !exact {
            let mut u = Users::default();
            if a.access == Use::Read {
                u.readers[lane] = mark;
            } else {
                u.writer[lane] = mark;
            }
            held.users.push((from, to, u));
        }
        for other in Lane::ALL {
            if other != lane && needs[other] > clock[other] {
                let s = &self.plan.slots[a.slot];
                return self.fault(format!(
                    "does not wait for lane {other}, which still uses the bytes of {} on the {}",
                    s.tensor.name(self.plan),
                    s.tier
                ));
            }
        }
        Ok(())
    }
}
