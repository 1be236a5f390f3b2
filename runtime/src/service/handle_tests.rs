//! Tests of [`handle`]: what a caller, the log and verbose Status are told about a call that waits.

use super::*;
use crate::operations::{self, Operation, Subject};
use model::{ContainerConfig, ContainerId, ContainerRecord, PodConfig, PodId, PodMeta, PodRecord};
use serde_json::Value;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::time::Duration;
use tracing::subscriber::DefaultGuard;

/// The log lines of the current thread.
struct Log {
    file: Arc<File>,
    _subscriber: DefaultGuard,
}

impl Log {
    fn capture() -> Self {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let json = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(Arc::clone(&file))
            .finish();
        Self { file, _subscriber: tracing::subscriber::set_default(json) }
    }

    /// The line with this message.
    fn line(&self, message: &str) -> Value {
        let (mut reader, mut text) = (&*self.file, String::new());
        reader.rewind().unwrap();
        reader.read_to_string(&mut text).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message:?} in {text}"))
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A request with a deadline and a trace.
fn request(deadline: &str) -> Request<()> {
    let mut request = Request::new(());
    request.metadata_mut().insert("grpc-timeout", deadline.parse().unwrap());
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
    request
}

fn pod(number: u8) -> PodRecord {
    let meta = PodMeta { name: "web-0".into(), namespace: "shop".into(), uid: "u".into(), attempt: 0 };
    PodRecord::new(PodId::from_random([number; 32]), PodConfig { meta, ..PodConfig::default() }, 1)
}

/// Operations on a pod that are under way.
fn of_pod(pod: &PodRecord) -> Vec<Operation> {
    let all = operations::under_way().oldest.into_iter();
    all.filter(|operation| operation.subject.pod.as_ref() == Some(&pod.id)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_late_call_says_where_its_job_is_and_what_can_be_done() {
    let log = Log::capture();
    let pod = pod(0xa1);
    let subject = Subject { pod: Some(pod.id.clone()), ..Subject::default() };
    let job = tokio::spawn(operations::job("tear down the pod", subject, async {
        let _outer = progress::enter("release the network", "");
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _inner = progress::enter("CNI DEL of plugin bridge", "look at the plugin");
        std::future::pending::<()>().await;
    }));
    let stopping = handle("StopPodSandbox", request("2S"), WORK_CONTINUES, async |()| {
        operations::about_pod(&pod);
        let _awaiting = operations::await_driver();
        tracing::info!("before it waits");
        std::future::pending::<Result<(), Failure>>().await
    });
    let status = stopping.await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let id = &pod.id;
    assert_eq!(
        status.message(),
        format!(
            "the caller's deadline has passed after 1.96s in the stage `tear down the pod: release the network: CNI DEL \
             of plugin bridge`, which has taken 1.5s so far, for pod shop/web-0, id {id}; look at the plugin; {WORK_CONTINUES}"
        )
    );
    let line = log.line("refused");
    assert_eq!(line["error"], status.message());
    let span = &line["span"];
    assert_eq!(span["call"], "StopPodSandbox");
    assert_eq!((span["namespace"].as_str(), span["pod_name"].as_str()), (Some("shop"), Some("web-0")));
    assert_eq!((span["pod"].as_str(), span["trace"].as_str()), (Some(id.as_str()), Some(TRACE)));
    // The call has ended; the work goes on without it.
    let left = of_pod(&pod);
    assert!(left.len() == 1 && left[0].call.is_none(), "{left:?}");
    job.abort();
    assert!(job.await.is_err());
    assert!(of_pod(&pod).is_empty());
}

#[tokio::test]
async fn every_line_of_a_call_that_waits_says_whose_it_is() {
    let log = Log::capture();
    let pod = pod(0xa2);
    let id = ContainerId::from_random([0xa2; 32]);
    let mut container = ContainerRecord::new(id.clone(), pod.id.clone(), ContainerConfig::default(), 1);
    container.config.meta.name = "app".to_owned();
    let reply = handle("StopContainer", request("20S"), WORK_CONTINUES, async |()| {
        operations::about_container(Some(&pod), &container);
        tokio::task::yield_now().await;
        tracing::warn!("the shim did not kill the container");
        Ok(())
    });
    reply.await.unwrap();
    for message in ["the shim did not kill the container", "call succeeded"] {
        let span = &log.line(message)["span"];
        assert_eq!(
            (&span["call"], &span["pod"]),
            (&"StopContainer".into(), &pod.id.as_str().into()),
            "{message}"
        );
        assert_eq!(
            (&span["container_name"], &span["container"]),
            (&"app".into(), &id.as_str().into()),
            "{message}"
        );
    }
}

/// What becomes known while a call waits is added to its span.
#[tokio::test]
async fn the_id_of_a_pod_is_added_when_it_is_known() {
    let log = Log::capture();
    let pod = pod(0xa3);
    let reply = handle("RunPodSandbox", request("20S"), WORK_CONTINUES, async |()| {
        operations::about_new_pod(&pod.config.meta, None);
        tokio::task::yield_now().await;
        operations::about_new_pod(&pod.config.meta, Some(&pod.id));
        tracing::warn!("inside");
        Ok(())
    });
    reply.await.unwrap();
    let span = &log.line("inside")["span"];
    assert_eq!((&span["pod_name"], &span["pod"]), (&"web-0".into(), &pod.id.as_str().into()));
}

#[tokio::test]
async fn a_call_is_listed_while_its_client_waits() {
    let pod = Arc::new(pod(0xa4));
    let about = Arc::clone(&pod);
    let call = tokio::spawn(handle("RemovePodSandbox", request("20S"), WORK_CONTINUES, async move |()| {
        operations::about_pod(&about);
        let _step = progress::enter("wait for something", "");
        std::future::pending::<Result<(), Failure>>().await
    }));
    while of_pod(&pod).is_empty() {
        tokio::task::yield_now().await;
    }
    let [listed] = &of_pod(&pod)[..] else { panic!("one call") };
    assert_eq!(listed.call, Some("RemovePodSandbox"));
    assert_eq!(listed.place.as_ref().map(|place| place.steps.as_str()), Some("wait for something"));
    assert_eq!(listed.trace.map(|id| id.to_string()).as_deref(), Some(TRACE));
    // The client goes away: the server drops the call.
    call.abort();
    assert!(call.await.is_err());
    assert!(of_pod(&pod).is_empty());
}

#[tokio::test]
async fn a_call_that_does_not_wait_is_not_listed() {
    let pod = pod(0xa5);
    let reply = handle("ListPodSandbox", request("20S"), NOTHING_CONTINUES, async |()| {
        operations::about_pod(&pod);
        Ok(of_pod(&pod).len())
    });
    assert_eq!(reply.await.unwrap().into_inner(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_line_is_logged_about_a_call_that_takes_long() {
    let log = Log::capture();
    let reply = handle("PullImage", request("90S"), NOTHING_CONTINUES, async |()| {
        operations::about_image("registry.local/app:1");
        let _step = progress::enter("transfer the layers", "");
        tokio::time::sleep(Duration::from_secs(40)).await;
        Ok(())
    });
    reply.await.unwrap();
    let line = log.line("still under way");
    assert_eq!((&line["stage"], &line["took_s"]), (&"transfer the layers".into(), &30.into()));
    assert_eq!(
        (&line["span"]["call"], &line["span"]["image"]),
        (&"PullImage".into(), &"registry.local/app:1".into())
    );
}
