//! About how many bytes of memory a record takes.

use model::{ContainerRecord, PodRecord, Text};
use serde_json::Value;
use std::collections::BTreeMap;

/// Bytes for each object: the struct itself, its allocations, and the fields that are not counted one by one.
const BASE: usize = 2048;
/// Bytes for each text in a list or table, beside its own.
const ENTRY: usize = 32;

/// The weight of a pod's record.
pub(super) fn of_pod(pod: &PodRecord) -> usize {
    let config = &pod.config;
    BASE + table(&config.labels) + table(&config.annotations) + table(&config.sysctls) + pod.message.len()
}

/// The weight of a container's record.
pub(super) fn of_container(container: &ContainerRecord) -> usize {
    let config = &container.config;
    let envs = config.envs.iter().map(|env| 2 * ENTRY + env.key.len() + env.value.as_bytes().len());
    let mounts = config.mounts.iter().map(|it| 4 * ENTRY + it.container_path.len() + it.host_path.len());
    let devices = config.devices.iter().map(|it| 3 * ENTRY + it.container_path.len() + it.host_path.len());
    BASE + table(&config.labels)
        + table(&config.annotations)
        + table(&config.image.annotations)
        + texts(&config.command)
        + texts(&config.args)
        + envs.sum::<usize>()
        + mounts.sum::<usize>()
        + devices.sum::<usize>()
        + container.exec_template.as_ref().map_or(0, value)
        + size_of_val(container.asked_env.as_slice())
        + table(&container.update_annotations)
}

fn table(entries: &BTreeMap<String, String>) -> usize {
    entries.iter().map(|(key, value)| 2 * ENTRY + key.len() + value.len()).sum()
}

fn texts(texts: &[Text]) -> usize {
    texts.iter().map(|text| ENTRY + text.as_bytes().len()).sum()
}

/// The weight of JSON. This program has made it, so its depth is small.
fn value(json: &Value) -> usize {
    ENTRY
        + match json {
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(value).sum(),
            Value::Object(fields) => fields.iter().map(|(key, field)| ENTRY + key.len() + value(field)).sum(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{ContainerConfig, ContainerId, PodConfig, PodId};

    #[test]
    fn what_may_be_large_counts() {
        const LARGE: usize = 1 << 20;
        let large = || "x".repeat(LARGE);
        let labels = || BTreeMap::from([("label".to_owned(), large())]);
        let pod = PodId::from_random([1; 32]);
        let config = PodConfig { labels: labels(), annotations: labels(), ..PodConfig::default() };
        let weight = of_pod(&PodRecord::new(pod.clone(), config, 1));
        assert!((2 * LARGE..2 * LARGE + 4096).contains(&weight), "{weight}");

        let config = ContainerConfig {
            labels: labels(),
            annotations: labels(),
            args: vec![Text::new(large()).expect("no NUL")],
            ..ContainerConfig::default()
        };
        let mut record = ContainerRecord::new(ContainerId::from_random([2; 32]), pod, config, 1);
        record.exec_template = Some(serde_json::json!({ "env": [large()] }));
        let weight = of_container(&record);
        assert!((4 * LARGE..4 * LARGE + 4096).contains(&weight), "{weight}");
    }
}
