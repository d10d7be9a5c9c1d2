//! Slots that somebody reads while steps go on: a task that writes one waits until it was read.
//!
//! A [`Hold`] is of groups of persistent slots as they are behind one update of all of them. A group is ready when the
//! tasks of that update which write its slots are complete; it is released when it was read. Between the two no task
//! writes it: those of every part that is submitted behind the update wait for the release. So readers wait for tasks
//! that are older than the hold, and only tasks that are younger wait for readers: no circle closes.

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lowtide_planner::{Lane, SlotId, Task, Use};
use lowtide_units::List;

/// From when on the slots of a hold are as they are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldFrom {
    /// From the start: everything that was submitted is complete.
    Now,
    /// Behind the next submission that writes any of them.
    NextUpdate,
}

/// Tasks that each lane must have completed.
type Needs = Vec<(Lane, u64)>;

/// How long somebody sleeps before it looks again whether a stream has run dry, and whether the run has failed.
const LOOK: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// Groups of slots that are being read.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The group of a slot.
    groups: List<SlotId, Option<u32>>,
    /// Of each group what must be complete before it is read. Not known before the update is submitted.
    needs: OnceLock<Vec<Needs>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    groups: Vec<Group>,
    /// Reads so far.
    reads: u64,
    /// Lanes that wait for a release with nothing else to do, and since when there is one.
    waiting: u32,
    since: Instant,
    /// How long there was one.
    waited: Duration,
}

#[derive(Clone, Debug, Default)]
struct Group {
    readers: u32,
    released: bool,
}

impl Hold {
    /// Of groups of slots of a plan that has `slots` of them.
    pub fn new(of: &[Vec<SlotId>], slots: usize, from: HeldFrom) -> Self {
        let mut groups: List<SlotId, Option<u32>> = vec![None; slots].into();
        for (i, group) in of.iter().enumerate() {
            for &slot in group {
                groups[slot] = Some(i as u32);
            }
        }
        let needs = OnceLock::new();
        if from == HeldFrom::Now {
            let _ = needs.set(vec![Needs::new(); of.len()]);
        }
        Self {
            groups,
            needs,
            state: Mutex::new(State {
                groups: vec![Group::default(); of.len()],
                reads: 0,
                waiting: 0,
                since: Instant::now(),
                waited: Duration::ZERO,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many groups there are.
    fn count(&self) -> usize {
        self.lock().groups.len()
    }

    /// The groups of which a task writes a slot.
    pub fn written(&self, task: &Task) -> impl Iterator<Item = usize> {
        let writes = task.args.iter().filter(|a| a.access != Use::Read);
        writes.filter_map(|a| Some(self.groups[a.slot]? as usize))
    }

    /// Adds to `needs` that a group waits for the task that its lane completes as its `count`th. Tasks come in the
    /// order of their lanes.
    pub fn need(&self, needs: &mut Vec<Needs>, task: &Task, count: u64) {
        needs.resize(self.count(), Needs::new());
        for group in self.written(task) {
            match needs[group].iter_mut().find(|n| n.0 == task.lane) {
                Some(need) => need.1 = count,
                None => needs[group].push((task.lane, count)),
            }
        }
    }

    /// The update is submitted, and this is what its groups wait for.
    pub fn submitted(&self, needs: Vec<Needs>) {
        let _ = self.needs.set(needs);
    }

    /// What must be complete before a group is read; `None`: the update is not submitted yet.
    pub fn needs(&self, group: usize) -> Option<&[(Lane, u64)]> {
        self.needs.get().map(|needs| &*needs[group])
    }

    /// Whether it is known what groups wait for.
    pub fn is_submitted(&self) -> bool {
        self.needs.get().is_some()
    }

    /// Whether a group is released.
    pub fn is_released(&self, group: usize) -> bool {
        self.lock().groups[group].released
    }

    /// Waits for the release of a group. False as soon as the run has `failed`. `dry`: whether the lane has nothing
    /// else to do by now; only from then on it counts as waiting.
    pub fn wait(&self, group: usize, failed: impl Fn() -> bool, dry: impl Fn() -> bool) -> bool {
        let mut state = self.lock();
        let mut counted = false;
        let released = loop {
            if state.groups[group].released {
                break true;
            }
            drop(state);
            let (over, dry) = (failed(), counted || dry());
            state = self.lock();
            if over {
                break false;
            }
            if dry && !std::mem::replace(&mut counted, true) {
                if state.waiting == 0 {
                    state.since = Instant::now();
                }
                state.waiting += 1;
            }
            if !state.groups[group].released {
                let limit = LOOK[usize::from(counted)];
                let woken = self.changed.wait_timeout(state, limit);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
            }
        };
        if counted {
            state.waiting -= 1;
            if state.waiting == 0 {
                let more = state.since.elapsed();
                state.waited += more;
            }
        }
        released
    }

    /// How long lanes waited for releases.
    pub fn waited(&self) -> Duration {
        let state = self.lock();
        let now = match state.waiting {
            0 => Duration::ZERO,
            _ => state.since.elapsed(),
        };
        state.waited + now
    }

    /// Reads so far: for who looks whether anything gets on.
    pub fn reads(&self) -> u64 {
        self.lock().reads
    }

    /// Does `read` with a slot's group, which is not released meanwhile.
    ///
    /// # Panics
    /// Where the slot is of no group, or of one that is released.
    pub fn reading<T>(&self, slot: SlotId, read: impl FnOnce(usize) -> T) -> T {
        struct Reader<'a>(&'a Hold, usize);
        impl Drop for Reader<'_> {
            fn drop(&mut self) {
                let mut state = self.0.lock();
                state.groups[self.1].readers -= 1;
                state.reads += 1;
                drop(state);
                self.0.changed.notify_all();
            }
        }
        let group = self.groups[slot].expect("a slot that is held") as usize;
        let mut state = self.lock();
        assert!(!state.groups[group].released, "read behind its release");
        state.groups[group].readers += 1;
        drop(state);
        let reader = Reader(self, group);
        read(reader.1)
    }

    /// Releases a group, once nobody is reading it.
    pub fn release(&self, group: usize) {
        let mut state = self.lock();
        while state.groups[group].readers > 0 {
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        state.groups[group].released = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Releases all groups.
    pub fn release_all(&self) {
        (0..self.count()).for_each(|group| self.release(group));
    }

    /// Whether all groups are released.
    pub fn is_over(&self) -> bool {
        self.lock().groups.iter().all(|g| g.released)
    }
}
