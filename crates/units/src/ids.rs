//! Positions in lists, as types: an index of one list does not compile as an index of another.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Index, IndexMut};

use serde::{Deserialize, Serialize};

/// A position in a list of one kind of thing. Made by [`id!`](crate::id).
pub trait Id: Copy + Ord {
    /// The id of position `i`.
    ///
    /// # Panics
    /// When there are more than an id can count.
    #[must_use]
    fn new(i: usize) -> Self;

    /// The position of this id in a list that has one element for each.
    #[must_use]
    fn idx(self) -> usize;
}

/// Declares an [`Id`]: `id! { /// What it is. pub struct SlotId(u32); }`. It is written and read as its number.
#[macro_export]
macro_rules! id {
    ($(#[$about:meta])* pub struct $name:ident($of:ty);) => {
        $(#[$about])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $of);

        impl $crate::Id for $name {
            fn new(i: usize) -> Self {
                Self(<$of>::try_from(i).expect("as many as an id can count"))
            }

            fn idx(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

/// Things in order, each found by its id. Otherwise as a slice; written and read as a plain list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct List<I, T> {
    items: Vec<T>,
    #[serde(skip)]
    id: PhantomData<fn(I)>,
}

impl<I, T> Default for List<I, T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<I, T> From<Vec<T>> for List<I, T> {
    fn from(items: Vec<T>) -> Self {
        Self {
            items,
            id: PhantomData,
        }
    }
}

impl<I, T> FromIterator<T> for List<I, T> {
    fn from_iter<F: IntoIterator<Item = T>>(items: F) -> Self {
        items.into_iter().collect::<Vec<T>>().into()
    }
}

impl<I: Id, T> List<I, T> {
    /// Appends an item and returns its id.
    pub fn push(&mut self, item: T) -> I {
        self.items.push(item);
        I::new(self.items.len() - 1)
    }

    /// The id of the next that is appended.
    #[must_use]
    pub fn next_id(&self) -> I {
        I::new(self.items.len())
    }

    /// One of them, if there is one of this id.
    #[must_use]
    pub fn find(&self, id: I) -> Option<&T> {
        self.items.get(id.idx())
    }

    /// Those of a run of ids, if there are all of them.
    #[must_use]
    pub fn run(&self, run: &std::ops::Range<I>) -> Option<&[T]> {
        self.items.get(run.start.idx()..run.end.idx())
    }

    /// The first that is as asked.
    pub fn position(&self, is: impl FnMut(&T) -> bool) -> Option<I> {
        self.items.iter().position(is).map(I::new)
    }

    /// The last that is as asked.
    pub fn rposition(&self, is: impl FnMut(&T) -> bool) -> Option<I> {
        self.items.iter().rposition(is).map(I::new)
    }

    /// The ids of all items, in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = I> + ExactSizeIterator + use<I, T> {
        (0..self.items.len()).map(I::new)
    }

    /// Each with its id, in order.
    pub fn pairs(&self) -> impl DoubleEndedIterator<Item = (I, &T)> + ExactSizeIterator {
        self.items.iter().enumerate().map(|(i, t)| (I::new(i), t))
    }
}

impl<I: Id, T> Index<I> for List<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.items[id.idx()]
    }
}

impl<I: Id, T> IndexMut<I> for List<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.items[id.idx()]
    }
}

impl<I, T> Deref for List<I, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<I, T> DerefMut for List<I, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

impl<I, T> IntoIterator for List<I, T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, I, T> IntoIterator for &'a List<I, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<'a, I, T> IntoIterator for &'a mut List<I, T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter_mut()
    }
}

/// The ids of a run, in order.
pub fn ids<I: Id>(run: &std::ops::Range<I>) -> impl DoubleEndedIterator<Item = I> + use<I> {
    (run.start.idx()..run.end.idx()).map(I::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::id! {
        /// One of the words.
        pub struct WordId(u16);
    }

    #[test]
    fn things_are_found_by_the_id_that_they_got() {
        let mut words: List<WordId, &str> = List::default();
        assert_eq!(words.next_id(), WordId(0));
        let (a, b) = (words.push("a"), words.push("b"));
        words[a] = "c";
        assert_eq!((words[a], words[b]), ("c", "b"));
        assert_eq!(words.find(WordId(2)), None);
        assert!(words.ids().eq([a, b]));
        assert!(words.pairs().eq([(a, &"c"), (b, &"b")]));
        assert!(ids(&(a..WordId(2))).eq([a, b]));
        assert_eq!(words.run(&(b..WordId(2))), Some(&["b"][..]));
        assert_eq!(words.run(&(b..WordId(3))), None);
        let short = |word: &&str| word.len() == 1;
        assert_eq!(
            (words.position(short), words.rposition(short)),
            (Some(a), Some(b))
        );
        assert_eq!(words.position(|word| word.is_empty()), None);
        assert_eq!(words.iter().rev().copied().collect::<String>(), "bc");
    }

    #[test]
    #[should_panic(expected = "as many as an id can count")]
    fn an_id_counts_no_further_than_its_type() {
        let _ = WordId::new(1 << 16);
    }
}
