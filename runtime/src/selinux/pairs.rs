//! The pairs of categories that pods have for themselves.

use model::SelinuxLabels;
use spec::selinux::{CATEGORIES, Pair, level_of};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The random bytes from which a pair is chosen.
pub(super) type Random = [u8; 32];

/// The pairs that are in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Pairs(Arc<Mutex<Table>>);

/// By how many pods each pair is used: a request may name a level that another pod has.
type Table = HashMap<Pair, u32>;

/// The labels of a pod. While this exists, no other pod is given the pair of categories in them.
#[derive(Debug)]
pub(crate) struct Reserved {
    labels: SelinuxLabels,
    pair: Option<Pair>,
    pairs: Pairs,
}

impl Reserved {
    /// The labels.
    pub(crate) fn labels(&self) -> &SelinuxLabels {
        &self.labels
    }

    /// The same reservation, with labels of the same level.
    pub(super) fn relabelled(mut self, labels: SelinuxLabels) -> Self {
        self.labels = labels;
        self
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let Some(pair) = self.pair else { return };
        self.pairs.table(|table| {
            if let Some(users) = table.get_mut(&pair) {
                *users -= 1;
                if *users == 0 {
                    table.remove(&pair);
                }
            }
        });
    }
}

impl Pairs {
    fn table<T>(&self, with: impl FnOnce(&mut Table) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reserves the pair of these labels, if they have one, also if it is in use.
    pub(super) fn reserve(&self, labels: SelinuxLabels) -> Reserved {
        let pair = Pair::of_level(level_of(&labels.process));
        if let Some(pair) = pair {
            self.table(|table| *table.entry(pair).or_default() += 1);
        }
        Reserved { labels, pair, pairs: self.clone() }
    }

    /// Makes labels with a pair that is not in use, and reserves it. `None` if all are in use.
    pub(super) fn take(
        &self,
        random: &Random,
        labels: impl FnOnce(&str) -> SelinuxLabels,
    ) -> Option<Reserved> {
        let pair = self.table(|table| {
            let pair = free(table, random)?;
            table.insert(pair, 1);
            Some(pair)
        })?;
        Some(Reserved { labels: labels(&pair.level()), pair: Some(pair), pairs: self.clone() })
    }

    /// The number of pairs in use.
    pub(super) fn in_use(&self) -> usize {
        self.table(|table| table.len())
    }
}

/// A pair that is not in use: one of those that the random bytes name, or else the first one after that. A node has fewer
/// than one pod for each hundred pairs, so the search is hardly ever needed.
fn free(table: &Table, random: &Random) -> Option<Pair> {
    let category = |low: u8, high: u8| u16::from_le_bytes([low, high]) % CATEGORIES;
    let named = random.chunks_exact(4).filter_map(|bytes| match bytes {
        [a, b, c, d] => Pair::new(category(*a, *b), category(*c, *d)),
        _ => None,
    });
    let all =
        (0..CATEGORIES).flat_map(|low| (low + 1..CATEGORIES).filter_map(move |high| Pair::new(low, high)));
    named.chain(all).find(|pair| !table.contains_key(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(level: &str) -> SelinuxLabels {
        SelinuxLabels { process: format!("u:r:t:{level}"), file: format!("u:object_r:f:{level}") }
    }

    fn random(seed: u8) -> Random {
        std::array::from_fn(|at| seed.wrapping_mul(31).wrapping_add(u8::try_from(at).unwrap() * 7))
    }

    #[test]
    fn no_pair_is_given_twice_and_each_is_given_back() {
        let pairs = Pairs::default();
        let taken: Vec<Reserved> = (0..200).map(|_| pairs.take(&random(1), labels).unwrap()).collect();
        let mut levels: Vec<&str> = taken.iter().map(|it| level_of(&it.labels().process)).collect();
        levels.sort_unstable();
        levels.dedup();
        assert_eq!((levels.len(), pairs.in_use()), (200, 200));
        drop(taken);
        assert_eq!(pairs.in_use(), 0);
    }

    #[test]
    fn a_pair_that_is_asked_for_or_restored_is_not_given_to_others() {
        let pairs = Pairs::default();
        let first = pairs.take(&random(3), labels).unwrap();
        let again = pairs.reserve(first.labels().clone());
        drop(first);
        assert_eq!(pairs.in_use(), 1, "another pod has the same level");
        let other = pairs.take(&random(3), labels).unwrap();
        assert_ne!(other.labels(), again.labels());
        drop(again);
        assert_eq!(pairs.in_use(), 1);
        for level in ["s0", "s0:c0.c1023", "s0:c1,c2,c3", ""] {
            let shared = pairs.reserve(labels(level));
            assert_eq!((pairs.in_use(), shared.pair), (1, None), "{level}");
        }
    }

    #[test]
    fn without_a_free_pair_there_is_none() {
        let mut table = Table::new();
        while let Some(pair) = free(&table, &[0; 32]) {
            if table.len() == 3 {
                break;
            }
            table.insert(pair, 1);
        }
        assert_eq!(table.len(), 3);
        let every = (0..CATEGORIES).flat_map(|a| (a + 1..CATEGORIES).filter_map(move |b| Pair::new(a, b)));
        let full: Table = every.map(|pair| (pair, 1)).collect();
        assert_eq!(full.len(), 523_776);
        assert_eq!(free(&full, &random(9)), None);
    }
}
