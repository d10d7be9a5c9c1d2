//! One arena cut into views, and the copies that lanes make between views.
//!
//! These functions are safe to call because of the contract that every [`View`] carries: whoever
//! holds one may use its bytes now. The plan says who holds what when, its checker has proved that
//! no two tasks that may run at once conflict, and only the executor makes views of an arena.

use lowtide_tiers::Arena;

use crate::cpu::{Plain, View};

/// Memory of one tier that views are made of.
#[derive(Clone, Debug)]
pub struct Memory {
    arena: Arena,
}

impl Memory {
    /// Takes an arena.
    #[must_use]
    pub fn new(arena: Arena) -> Self {
        Self { arena }
    }

    /// The arena, for I/O that goes straight to it.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// A view of `bytes` bytes from `offset`. Panics when they are not all inside.
    #[must_use]
    pub fn view(&self, offset: u64, bytes: u64) -> View<'_> {
        let have = self.arena.bytes().0;
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= have),
            "bytes {offset}+{bytes} of an arena of {have}"
        );
        // SAFETY: inside the mapping (asserted), which lives as long as `self`; uses are ordered
        // by the plan, as the module's head says.
        unsafe { View::new(self.arena.base().add(offset as usize), bytes as usize) }
    }
}

/// Copies all bytes of `from` to `to`; both are equally long. Done when it returns.
pub fn copy(to: &View<'_>, from: &View<'_>) {
    // SAFETY: the holder of both views may use them now, and different slots do not overlap.
    unsafe { to.copy_from(from) }
}

/// Copies numbers out of a view. Panics when the lengths differ.
pub fn load<T: Plain>(from: &View<'_>, to: &mut [T]) {
    // SAFETY: the holder of the view may read it now.
    to.copy_from_slice(unsafe { from.read() });
}

/// Copies numbers into a view. Panics when the lengths differ.
pub fn store<T: Plain>(to: &View<'_>, from: &[T]) {
    // SAFETY: the holder of the view may write it now.
    unsafe { to.write() }.copy_from_slice(from);
}

/// Fills a view with `0xff`, NaN in every float format.
pub fn poison(view: &View<'_>) {
    // SAFETY: the holder of the view may write it now.
    unsafe { view.write::<u8>() }.fill(0xff);
}
