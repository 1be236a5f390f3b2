//! Places of which there is a limited number. An owner takes one only while it has fewer than are free, so that it cannot
//! keep out all others. The first gets half of them, and one that comes later half of what is left. Owners that take
//! places in turn all get the same number, and leave as many for another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All places are taken.
    #[error("there are {0} on this node already, and no more are allowed")]
    Node(usize),
    /// The owner has so many, and no more than these are free.
    #[error("this pod has {0}, and no more than that are free on the node: it may take no further one")]
    Owner(usize),
}

/// Places.
#[derive(Debug)]
pub(super) struct Places {
    limit: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only owners that have a place.
    owners: HashMap<Arc<str>, usize>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    owner: Arc<str>,
}

impl Places {
    /// `limit` free places.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// Takes a place.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn take(self: &Arc<Self>, owner: &Arc<str>) -> Result<Place, Full> {
        let mut taken = self.lock();
        self.room(&taken, owner)?;
        taken.all += 1;
        *taken.owners.entry(Arc::clone(owner)).or_default() += 1;
        Ok(Place { places: Arc::clone(self), owner: Arc::clone(owner) })
    }

    /// Whether the owner could take a place now.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn check(&self, owner: &str) -> Result<(), Full> {
        self.room(&self.lock(), owner)
    }

    fn room(&self, taken: &Taken, owner: &str) -> Result<(), Full> {
        let has = taken.owners.get(owner).copied().unwrap_or(0);
        match self.limit.saturating_sub(taken.all) {
            0 => Err(Full::Node(self.limit)),
            free if has >= free => Err(Full::Owner(has)),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Who has taken it.
    pub(super) fn owner(&self) -> &Arc<str> {
        &self.owner
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all = taken.all.saturating_sub(1);
        let left = taken.owners.get_mut(&self.owner).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == 0 {
            taken.owners.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes places until there is none for the owner; why not.
    fn fill(places: &Arc<Places>, owner: &Arc<str>, taken: &mut Vec<Place>) -> Full {
        loop {
            match places.take(owner) {
                Ok(place) => taken.push(place),
                Err(full) => return full,
            }
        }
    }

    #[test]
    fn an_owner_has_no_more_than_are_free() {
        let (places, mut taken) = (Places::new(8), Vec::new());
        let owners = ["a", "b", "c", "d", "e"].map(Arc::<str>::from);
        assert_eq!(fill(&places, &owners[0], &mut taken), Full::Owner(4));
        assert_eq!(fill(&places, &owners[1], &mut taken), Full::Owner(2));
        assert_eq!(fill(&places, &owners[2], &mut taken), Full::Owner(1));
        assert_eq!(fill(&places, &owners[3], &mut taken), Full::Node(8));
        assert_eq!(places.check("a"), Err(Full::Node(8)));
        assert_eq!(taken.pop().unwrap().owner(), &owners[3]);
        assert_eq!(places.check("a"), Err(Full::Owner(4)));
        assert_eq!(places.check("e"), Ok(()));
        drop(places.take(&owners[4]).unwrap());
        taken.clear();
        assert!(places.lock().owners.is_empty() && places.lock().all == 0, "{places:?}");
    }

    #[test]
    fn owners_that_take_in_turn_get_the_same() {
        let (places, mut taken) = (Places::new(8), Vec::new());
        let owners = ["a", "b", "c"].map(Arc::<str>::from);
        for owner in owners.iter().cycle().take(6) {
            taken.push(places.take(owner).unwrap());
        }
        for owner in &owners {
            assert_eq!(places.take(owner).unwrap_err(), Full::Owner(2));
        }
        assert_eq!(places.check("d"), Ok(()));
    }

    #[test]
    fn the_only_place_is_for_the_first() {
        let places = Places::new(1);
        let place = places.take(&Arc::from("a")).unwrap();
        assert_eq!(places.check("a"), Err(Full::Node(1)));
        assert_eq!(places.check("b"), Err(Full::Node(1)));
        drop(place);
        assert_eq!(places.check("b"), Ok(()));
    }
}
