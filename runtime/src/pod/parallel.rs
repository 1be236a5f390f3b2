//! Does a step for several containers of a pod at once.

use futures_util::stream::{self, StreamExt as _};

/// Steps of one pod that run at once: each occupies a thread of a lane, and a pod may use no more than four of the kill
/// lane (`lanes`).
const AT_ONCE: usize = 4;

/// Runs `step` for every item, a few at once, and returns all results in the order of the items. A step that hangs
/// delays no other step while fewer than [`AT_ONCE`] hang.
pub(super) async fn for_all<T, F: Future>(items: Vec<T>, mut step: impl FnMut(T) -> F) -> Vec<F::Output> {
    let steps = items.into_iter().enumerate().map(|(place, item)| {
        let work = step(item);
        async move { (place, work.await) }
    });
    let mut results: Vec<(usize, F::Output)> = stream::iter(steps).buffer_unordered(AT_ONCE).collect().await;
    results.sort_by_key(|(place, _)| *place);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// Containers on a hung disk, of which each removal takes 10 s.
    #[tokio::test(start_paused = true)]
    async fn hung_steps_share_their_time_and_every_error_is_kept() {
        let before = Instant::now();
        let results = for_all((0..9).collect(), |number| async move {
            if number % 3 == 0 {
                sleep(Duration::from_secs(10)).await;
                return vec![Error::internal(format!("container {number}"))];
            }
            Vec::new()
        })
        .await;
        assert!(
            before.elapsed() < Duration::from_secs(11),
            "{:?}: they hang one after the other",
            before.elapsed()
        );
        let errors: Vec<String> = results.into_iter().flatten().map(|error| error.text()).collect();
        assert_eq!(errors, ["container 0", "container 3", "container 6"]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_run_at_once() {
        let before = Instant::now();
        let results = for_all((0..10).collect(), |number| async move {
            sleep(Duration::from_secs(10)).await;
            number
        })
        .await;
        assert!((30..31).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
        assert_eq!(results, (0..10).collect::<Vec<_>>());
    }
}
