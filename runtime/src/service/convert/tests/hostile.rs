//! Requests that no real client sends.

use super::*;
use proptest::prelude::*;
use prost::Message as _;

#[test]
fn hostile_values_are_shortened_and_escaped() {
    let name = "\u{1b}[31m\n".repeat(10_000);
    let text = container(|c| c.working_dir = name).unwrap_err().to_string();
    assert!(text.len() < 600 && !text.contains(['\n', '\u{1b}']), "{text:?}");
}

fn mangled(bytes: &[u8], edits: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for (at, value) in edits {
        *at.get_mut(&mut bytes) = *value;
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever decodes is converted, or refused with a bounded, printable text; nothing panics.
    #[test]
    fn mangled_requests_are_refused_without_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let pod = cri::RunPodSandboxRequest { config: Some(full_pod()), runtime_handler: String::new() };
        let container = cri::CreateContainerRequest {
            pod_sandbox_id: "p".into(),
            config: Some(full_container()),
            sandbox_config: Some(full_pod()),
        };
        let mut texts = Vec::new();
        if let Ok(request) = cri::RunPodSandboxRequest::decode(mangled(&pod.encode_to_vec(), &edits).as_slice()) {
            match run_request(request, PLAIN) {
                Ok(config) => drop(pod_status(&pod_record(config))),
                Err(refusal) => texts.push(refusal.to_string()),
            }
        }
        if let Ok(request) =
            cri::CreateContainerRequest::decode(mangled(&container.encode_to_vec(), &edits).as_slice())
        {
            match container_config(request, GUARDED) {
                Ok((_, config, _)) => drop(container_status(&container_record(config), || "/x".to_owned())),
                Err(refusal) => texts.push(refusal.to_string()),
            }
        }
        for text in texts {
            prop_assert!(text.len() < 2048 && !text.chars().any(char::is_control), "{:?}", text);
        }
    }
}
