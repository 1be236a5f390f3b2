//! Replies in several parts: events, and streamed lists.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, Result};
use cri_api::v1::{self as api, ContainerEventType as Kind, ContainerState, PodSandboxState};
use tonic::{Code, Streaming};

use crate::context::Context;
use crate::cri::Cri;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::wait::{self, secs};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(events_of_a_pods_life).ours(),
        test!(events_of_containers_that_end_at_once_or_never_run).ours(),
        test!(events_of_many_pods_at_once).ours().limit(120),
        test!(a_stop_of_the_daemon_ends_the_events).own(),
        test!(streamed_lists_are_the_lists).ours(),
    ]
}

/// A subscriber.
struct Follower(Streaming<api::ContainerEventResponse>);

impl Follower {
    async fn new(cri: &Cri) -> Result<Self> {
        let stream = cri.runtime.clone().get_container_events(api::GetEventsRequest {}).await;
        Ok(Self(stream.context("GetContainerEvents")?.into_inner()))
    }

    async fn next(&mut self) -> Result<api::ContainerEventResponse> {
        let event = wait::timeout(secs(20), self.0.message()).await.context("no event for 20 s")?;
        event.context("the stream of events")?.context("the stream of events has ended")
    }

    /// All events of a pod up to its last one. Each must be complete, and newer than the one before.
    async fn life(&mut self, pod: &str) -> Result<Vec<api::ContainerEventResponse>> {
        let mut events: Vec<api::ContainerEventResponse> = Vec::new();
        loop {
            let event = self.next().await?;
            let status = event.pod_sandbox_status.clone().context("an event without its pod's status")?;
            if status.id != pod {
                continue;
            }
            ensure!(
                status.created_at > 0 && status.metadata.as_ref().is_some_and(|meta| !meta.uid.is_empty()),
                "kubelet drops an event with this status: {status:?}"
            );
            ensure!(
                events.last().is_none_or(|last| last.created_at < event.created_at),
                "{event:?} after {events:?}"
            );
            let last =
                event.container_id == pod && event.container_event_type() == Kind::ContainerDeletedEvent;
            events.push(event);
            if last {
                return Ok(events);
            }
        }
    }
}

/// The events of one object, in order.
fn kinds(events: &[api::ContainerEventResponse], id: &str) -> Vec<Kind> {
    events.iter().filter(|event| event.container_id == id).map(|event| event.container_event_type()).collect()
}

const LIFE: [Kind; 4] = [
    Kind::ContainerCreatedEvent,
    Kind::ContainerStartedEvent,
    Kind::ContainerStoppedEvent,
    Kind::ContainerDeletedEvent,
];

async fn events_of_a_pods_life(cx: Context) -> Result<()> {
    let (mut one, mut two) = (Follower::new(&cx.cri).await?, Follower::new(&cx.cri).await?);
    let pod = cx.pod().await?;
    let first = cx.start(&pod, &cx.shell("first", "exit 7")).await?;
    cx.cri.wait_exit(&first, secs(20)).await?;
    let second = cx.start(&pod, &cx.sleeper("second")).await?;
    let read = cx.cri.pod_status(&pod.id).await?;
    cx.cri.remove(&first).await?;
    cx.cri.drop_pod(&pod.id).await?;
    let events = one.life(&pod.id).await?;
    ensure!(two.life(&pod.id).await? == events, "two subscribers got different events");

    for id in [&pod.id, &first, &second] {
        ensure!(kinds(&events, id) == LIFE, "events of {id}: {:?} in {events:?}", kinds(&events, id));
    }
    // Each event shows the state that it tells, or a later one.
    for event in &events {
        let state = event.containers_statuses.iter().find(|it| it.id == event.container_id);
        match (state, event.container_event_type()) {
            (None, kind) => ensure!(
                event.container_id == pod.id || kind == Kind::ContainerDeletedEvent,
                "an event without its container: {event:?}"
            ),
            (Some(status), Kind::ContainerStoppedEvent) => {
                let code = if event.container_id == first { 7 } else { 137 };
                ensure!(
                    status.state() == ContainerState::ContainerExited && status.exit_code == code,
                    "{event:?}"
                );
            }
            (Some(status), Kind::ContainerStartedEvent) => {
                ensure!(status.state() != ContainerState::ContainerCreated, "{event:?}");
            }
            (Some(_), Kind::ContainerCreatedEvent) => {}
            (Some(_), Kind::ContainerDeletedEvent) => anyhow::bail!("it still exists: {event:?}"),
        }
        let ready = event.pod_sandbox_status.as_ref().map(api::PodSandboxStatus::state)
            == Some(PodSandboxState::SandboxReady);
        let over = event.container_id == pod.id
            && matches!(
                event.container_event_type(),
                Kind::ContainerStoppedEvent | Kind::ContainerDeletedEvent
            );
        ensure!(!(over && ready), "the pod is shown as ready: {event:?}");
    }
    // kubelet 1.37 restarts init containers for ever if it gets a time.
    ensure!(read.timestamp == 0, "PodSandboxStatus has the time {}", read.timestamp);
    let shown: Vec<&str> = read.containers_statuses.iter().map(|it| it.id.as_str()).collect();
    ensure!(shown == [&first, &second], "PodSandboxStatus shows {shown:?}");
    Ok(())
}

async fn events_of_containers_that_end_at_once_or_never_run(cx: Context) -> Result<()> {
    let mut follower = Follower::new(&cx.cri).await?;
    let pod = cx.pod().await?;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(cx.start(&pod, &cx.shell(&format!("c{n}"), "exit 0")).await?);
    }
    let mut config = cx.sleeper("absent");
    config.command = vec!["/absent".to_owned()];
    let absent = cx.create(&pod, &config).await?;
    ensure!(cx.cri.start(&absent).await.is_err(), "a program that is absent was started");
    let never = cx.create(&pod, &cx.sleeper("never")).await?;
    cx.cri.stop(&never, 0).await?;
    cx.cri.drop_pod(&pod.id).await?;
    let events = follower.life(&pod.id).await?;
    for id in &ids {
        ensure!(kinds(&events, id) == LIFE, "events of {id}: {:?}", kinds(&events, id));
    }
    // These have never run.
    for id in [&absent, &never] {
        let [created, _, stopped, deleted] = LIFE;
        ensure!(
            kinds(&events, id) == [created, stopped, deleted],
            "events of {id}: {:?}",
            kinds(&events, id)
        );
    }
    Ok(())
}

async fn events_of_many_pods_at_once(cx: Context) -> Result<()> {
    const PODS: usize = 200;
    let mut follower = Follower::new(&cx.cri).await?;
    cx.need(&crate::fixture::Fixture::image("busybox")).await?;
    let pods = (0..PODS).map(|_| {
        let cx = cx.clone();
        async move {
            let pod = cx.pod().await?;
            let id = cx.start(&pod, &cx.shell("main", "exit 0")).await?;
            cx.cri.drop_pod(&pod.id).await?;
            anyhow::Ok((pod.id, id))
        }
    });
    let running: Vec<_> = pods.map(tokio::spawn).collect();
    let mut wanted = Vec::new();
    for pod in running {
        wanted.push(pod.await??);
    }
    // Read only now: meanwhile the daemon keeps them.
    let mut seen: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
    let mut latest = 0;
    for _ in 0..PODS * LIFE.len() * 2 {
        let event = follower.next().await?;
        ensure!(event.created_at > latest, "{event:?} is not newer than {latest}");
        latest = event.created_at;
        seen.entry(event.container_id.clone()).or_default().push(event.container_event_type());
    }
    for id in wanted.iter().flat_map(|(pod, container)| [pod, container]) {
        ensure!(seen.get(id).is_some_and(|kinds| *kinds == LIFE), "events of {id}: {:?}", seen.get(id));
    }
    Ok(())
}

async fn a_stop_of_the_daemon_ends_the_events(cx: Context) -> Result<()> {
    let (pod, id, _) = cx.sleeping(cx.pod_config()).await?;
    let mut follower = Follower::new(&cx.cri).await?;
    let begun = Instant::now();
    cx.node.terminate().await?;
    let took = begun.elapsed();
    ensure!(took < secs(5), "a subscriber has delayed the stop by {took:?}");
    let end = wait::timeout(secs(5), follower.0.message()).await.context("the stream goes on")?;
    let code = end.err().map(|status| status.code());
    ensure!(code == Some(Code::Unavailable), "the stream has ended with {code:?}");
    cx.node.launch().await?;
    // What a client does then: subscribe, and list.
    let mut follower = Follower::new(&cx.cri).await?;
    cx.is_shown(&id, ContainerState::ContainerRunning).await?;
    cx.cri.drop_pod(&pod.id).await?;
    let events = follower.life(&pod.id).await?;
    let [_, _, stopped, deleted] = LIFE;
    for id in [&pod.id, &id] {
        ensure!(kinds(&events, id) == [stopped, deleted], "events of {id}: {:?}", kinds(&events, id));
    }
    Ok(())
}

/// The items of all replies.
async fn all<R, T>(mut replies: Streaming<R>, items: impl Fn(R) -> Vec<T>) -> Result<Vec<T>> {
    let mut found = Vec::new();
    while let Some(reply) = replies.message().await? {
        let items = items(reply);
        ensure!(!items.is_empty(), "a reply without items");
        found.extend(items);
    }
    Ok(found)
}

async fn streamed_lists_are_the_lists(cx: Context) -> Result<()> {
    let mut pods = Vec::new();
    for _ in 0..3 {
        let pod = cx.pod().await?;
        cx.start(&pod, &cx.sleeper("runs")).await?;
        cx.run(&pod, &cx.shell("ended", "exit 0")).await?;
        pods.push(pod);
    }
    let (mut runtime, mut images) = (cx.cri.runtime.clone(), cx.cri.images.clone());
    for filter in [None, Some(api::PodSandboxFilter { id: pods[1].id.clone(), ..Default::default() })] {
        let request = api::StreamPodSandboxesRequest { filter: filter.clone() };
        let streamed =
            all(runtime.stream_pod_sandboxes(request).await?.into_inner(), |reply| reply.pod_sandboxes);
        ensure!(streamed.await? == cx.cri.pods(filter.clone()).await?, "pods of {filter:?}");
    }
    for filter in
        [None, Some(api::ContainerFilter { pod_sandbox_id: pods[1].id.clone(), ..Default::default() })]
    {
        let request = api::StreamContainersRequest { filter: filter.clone() };
        let streamed = all(runtime.stream_containers(request).await?.into_inner(), |reply| reply.containers);
        let listed = cx.cri.containers(filter.clone()).await?;
        ensure!(streamed.await? == listed && listed.len() >= 2, "containers of {filter:?}");
    }
    let filter = api::ContainerStatsFilter { pod_sandbox_id: pods[2].id.clone(), ..Default::default() };
    let request = api::StreamContainerStatsRequest { filter: Some(filter) };
    let stats =
        all(runtime.stream_container_stats(request).await?.into_inner(), |reply| reply.container_stats);
    let stats = stats.await?;
    // Only of the one that runs.
    ensure!(stats.len() == 1 && stats.iter().all(|it| it.cpu.is_some()), "streamed stats: {stats:?}");
    let streamed = images.stream_images(api::StreamImagesRequest { filter: None }).await?.into_inner();
    let streamed = all(streamed, |reply| reply.images).await?;
    ensure!(streamed == cx.cri.images().await? && !streamed.is_empty(), "streamed images: {streamed:?}");
    for pod in pods {
        cx.cri.drop_pod(&pod.id).await?;
    }
    Ok(())
}
