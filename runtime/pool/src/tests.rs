use crate::owners::Owners;
use crate::{Error, Lane, Size};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

fn lane(kept_threads: usize, max_threads: usize, max_per_owner: usize, max_queued: usize) -> Lane {
    Lane::new(Size { name: "test", kept_threads, max_threads, max_per_owner, max_queued })
}

/// Work that ends when its sender is dropped.
fn stuck() -> (mpsc::Sender<()>, impl FnOnce() + Send + 'static) {
    let (release, held) = mpsc::channel::<()>();
    (release, move || held.recv().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_in_parallel_up_to_the_limit() {
    let lane = lane(1, 3, 10, 100);
    let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let jobs: Vec<_> = (0..20)
        .map(|number| {
            let (lane, now, peak) = (lane.clone(), Arc::clone(&now), Arc::clone(&peak));
            tokio::spawn(async move {
                lane.run(move || {
                    let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
                    peak.fetch_max(at_once, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    now.fetch_sub(1, Ordering::SeqCst);
                    number
                })
                .await
            })
        })
        .collect();
    for (number, job) in jobs.into_iter().enumerate() {
        assert_eq!(job.await.unwrap().unwrap(), number);
    }
    assert!((1..=3).contains(&peak.load(Ordering::SeqCst)), "{peak:?}");
}

#[tokio::test]
async fn an_owner_cannot_use_up_all_threads() {
    let lane = lane(0, 8, 2, 100);
    let mut held = Vec::new();
    for _ in 0..6 {
        let (release, work) = stuck();
        let lane = lane.clone();
        held.push((release, tokio::spawn(async move { lane.run_for("greedy", work).await })));
    }
    tokio::task::yield_now().await;
    // Callers that go away do not free threads that still hang.
    for (_, job) in &held[..3] {
        job.abort();
    }
    for _ in 0..20 {
        let done = tokio::time::timeout(Duration::from_secs(20), lane.run_for("modest", || 7)).await;
        assert_eq!(done.unwrap().unwrap(), 7);
    }
    // Nothing happens for a while.
    let turn = tokio::time::timeout(Duration::from_millis(50), lane.run_for("greedy", || 7)).await;
    assert!(turn.is_err(), "the owner exceeded its share");
    for (release, _) in held {
        drop(release);
    }
    let done = tokio::time::timeout(Duration::from_secs(20), lane.run_for("greedy", || 7)).await;
    assert_eq!(done.unwrap().unwrap(), 7);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let lane = lane(0, 1, 10, 2);
    let (release, work) = stuck();
    let mut jobs = vec![tokio::spawn({
        let lane = lane.clone();
        async move { lane.run(work).await }
    })];
    // Until the thread has taken it, it counts as waiting.
    loop {
        let lane = lane.clone();
        let next = tokio::spawn(async move { lane.run(|| ()).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        if next.is_finished() {
            assert!(matches!(next.await.unwrap(), Err(Error::Full { waiting: 2, .. })));
            break;
        }
        jobs.push(next);
        assert!(jobs.len() <= 3);
    }
    drop(release);
    for job in jobs {
        job.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_panic_only_affects_its_caller() {
    let lane = lane(1, 1, 1, 10);
    let error = lane
        .run(|| {
            if true {
                panic!("by number {}", 7)
            }
        })
        .await
        .unwrap_err();
    assert!(matches!(&error, Error::Panicked { message, .. } if message == "by number 7"), "{error}");
    assert_eq!(lane.run_for("x", || 7).await.unwrap(), 7);
}

#[tokio::test]
async fn idle_extra_threads_end_and_kept_ones_stay() {
    let threads = || {
        let mut count = 0;
        for entry in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            count += usize::from(name.trim() == "cpd-goes");
        }
        count
    };
    let lane =
        Lane::new(Size { name: "goes", kept_threads: 2, max_threads: 6, max_per_owner: 10, max_queued: 100 });
    lane.start().unwrap();
    let held: Vec<_> = (0..6)
        .map(|_| {
            let ((release, work), lane) = (stuck(), lane.clone());
            (release, tokio::spawn(async move { lane.run(work).await }))
        })
        .collect();
    let until = |wanted: usize| async move {
        for _ in 0..2000 {
            if threads() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} threads, not {wanted}", threads());
    };
    until(6).await;
    for (release, job) in held {
        drop(release);
        job.await.unwrap().unwrap();
    }
    until(2).await;
    assert_eq!(lane.run(|| 7).await.unwrap(), 7);
}

#[tokio::test]
async fn owners_without_work_are_removed() {
    let owners = Owners::new(1);
    for number in 0..1000 {
        drop(owners.permit(&number.to_string()).await);
    }
    assert!(owners.len() <= 65, "{}", owners.len());
}
