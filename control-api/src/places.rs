//! Owns how many may be there at once: so many in all, and so many of one holder.
//!
//! Refuses whoever comes after that, at once; a place is free again when it is dropped.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places, counted by who holds them.
#[derive(Debug, Clone)]
pub struct Places<K: Eq + Hash> {
    most: usize,
    most_of_one: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// A place, for as long as it is kept.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    who: K,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Copy> Places<K> {
    /// At most `most` places, of which one holder has at most `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        Self {
            most,
            most_of_one,
            taken: Arc::default(),
        }
    }

    /// Takes a place, if there is one for this holder.
    pub fn take(&self, who: K) -> Option<Place<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= self.most {
            return None;
        }
        let own = taken.entry(who).or_default();
        if *own >= self.most_of_one {
            return None;
        }
        *own += 1;
        Some(Place {
            who,
            taken: Arc::clone(&self.taken),
        })
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .sum()
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_does_not_take_the_places_of_all() {
        let places = Places::new(3, 2);
        let held = [places.take("a"), places.take("a")];
        assert!(held.iter().all(Option::is_some));
        assert!(places.take("a").is_none());
        let other = places.take("b");
        assert!(other.is_some());
        assert!(places.take("c").is_none());
        drop(held);
        assert_eq!(places.taken(), 1);
        assert!(places.take("c").is_some());
    }
}
