//! Places of which there is a limited number, and of which one owner can take only a part, so that it cannot keep out
//! all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One owner can take this part of all places: a quarter.
const SHARE: usize = 4;

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All places are taken.
    #[error("there are {0} on this node already, and no more are allowed")]
    Node(usize),
    /// The owner has its share.
    #[error("this pod has {0} already, and one pod may have no more")]
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
        let share = self.limit / SHARE;
        if taken.owners.get(owner).is_some_and(|of_owner| *of_owner >= share) {
            return Err(Full::Owner(share));
        }
        if taken.all >= self.limit { Err(Full::Node(self.limit)) } else { Ok(()) }
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

    #[test]
    fn an_owner_has_its_share_and_all_have_the_limit() {
        let places = Places::new(8);
        let owners = ["a", "b", "c", "d", "e"].map(Arc::<str>::from);
        let mut taken = Vec::new();
        for owner in &owners[..4] {
            for _ in 0..2 {
                taken.push(places.take(owner).unwrap());
            }
            assert_eq!(places.take(owner).unwrap_err(), Full::Owner(2));
        }
        assert_eq!(places.take(&owners[4]).unwrap_err(), Full::Node(8));
        assert_eq!(taken.pop().unwrap().owner(), &owners[3]);
        assert_eq!(places.check("a"), Err(Full::Owner(2)));
        assert_eq!(places.check("e"), Ok(()));
        drop(places.take(&owners[4]).unwrap());
        taken.clear();
        assert!(places.lock().owners.is_empty() && places.lock().all == 0, "{places:?}");
    }
}
