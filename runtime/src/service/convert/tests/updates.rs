//! Requests that change resources.

use super::*;
use model::{Resources, Update};

fn request(linux: cri::LinuxContainerResources) -> cri::UpdateContainerResourcesRequest {
    cri::UpdateContainerResourcesRequest {
        container_id: "c".into(),
        linux: Some(linux),
        windows: None,
        annotations: [("a".to_owned(), "b".to_owned())].into(),
    }
}

#[test]
fn every_field_of_an_update_is_converted() {
    let all = full_pod().linux.unwrap().resources.unwrap();
    let (id, Update { resources, annotations }) = update_container(request(all.clone())).unwrap();
    assert_eq!((id.as_str(), annotations["a"].as_str()), ("c", "b"));
    assert_eq!(super::super::resources::resources_out(&resources), all);
    let nothing = cri::UpdateContainerResourcesRequest { container_id: "c".into(), ..Default::default() };
    assert_eq!(update_container(nothing).unwrap().1, Update::default());
}

#[test]
fn values_that_no_container_can_have_are_refused() {
    let with = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut linux = cri::LinuxContainerResources::default();
        change(&mut linux);
        update_container(request(linux)).map(|(_, update)| update.resources)
    };
    refused(with(|r| r.cpu_period = 999), &["container \"c\": linux.cpu_period: 999"]);
    refused(with(|r| r.memory_limit_in_bytes = 1_048_575), &["linux.memory_limit_in_bytes: 1048575"]);
    refused(with(|r| r.oom_score_adj = 1001), &["linux.oom_score_adj"]);
    refused(with(|r| r.cpuset_mems = "x".into()), &["linux.cpuset_mems"]);
    let both = with(|r| (r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes) = (2 << 20, 1 << 20));
    refused(both, &["linux.memory_swap_limit_in_bytes: 1048576", "(2097152)"]);
    refused(with(|r| r.memory_swap_limit_in_bytes = -2), &["linux.memory_swap_limit_in_bytes: -2"]);
    // Whether it fits the memory limit that the container has is not known here.
    let alone = with(|r| r.memory_swap_limit_in_bytes = 5).unwrap();
    assert_eq!(alone, Resources { memory_swap_limit: 5, ..Resources::default() });
    let large = [("a".to_owned(), "x".repeat(33 << 10))].into();
    let large = cri::UpdateContainerResourcesRequest { annotations: large, ..Default::default() };
    refused(update_container(large), &["annotations: 33793 bytes"]);
}

#[test]
fn a_pods_resources_are_converted() {
    let linux = full_pod().linux.unwrap();
    let message = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "p".into(),
        overhead: None,
        resources: linux.resources.clone(),
    };
    let (id, new) = update_pod(message).unwrap();
    assert_eq!((id.as_str(), &new.overhead), ("p", &None));
    assert_eq!(super::super::resources::resources_out(&new.resources.unwrap()), linux.resources.unwrap());
    let overhead = Some(cri::LinuxContainerResources { cpu_shares: -1, ..Default::default() });
    let wrong = cri::UpdatePodSandboxResourcesRequest { overhead, ..Default::default() };
    refused(update_pod(wrong), &["overhead.cpu_shares: -1"]);
}
