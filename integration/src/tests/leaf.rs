//! A container's cgroup equals the one that Debian's runc and crun make for the same resources: all values in the leaf and
//! its parent, the devices that can be opened, and what the container sees. [`DIFFERENCES`] is the whole list of exceptions.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use cri_api::v1 as api;
use serde_json::json;

use crate::cgroup::{self, Driver};
use crate::compare::cgroups::{self, Case, Facts, Runtime};
use crate::context::Context;
use crate::expect::ensure;
use crate::runner::{Test, test};
use crate::shapes::{ContainerExt as _, PodExt as _};

pub(super) fn tests() -> Vec<Test> {
    vec![
        test!(without_limits).limit(90),
        test!(limited).limit(90),
        test!(unified).limit(90),
        test!(privileged).limit(90),
    ]
}

/// A fact in which copepod differs on purpose.
struct Difference {
    /// The runtimes that it differs from.
    from: &'static [Runtime],
    /// Whether the host has v2; `None` for both.
    v2: Option<bool>,
    /// The driver, if it is only with one.
    driver: Option<Driver>,
    /// The fact's name.
    fact: &'static str,
    /// Why.
    #[expect(dead_code, reason = "for the reader")]
    reason: &'static str,
}

/// All facts in which copepod may differ from the references.
const DIFFERENCES: &[Difference] = &[
    Difference {
        from: &[Runtime::Runc],
        v2: Some(false),
        driver: None,
        fact: "mount /sys/fs/cgroup",
        reason: "runc's tmpfs may be filled by a container that has its cgroups read-only",
    },
    Difference {
        from: &[Runtime::Runc],
        v2: Some(false),
        driver: None,
        fact: "writable",
        reason: "the same, tried",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "leaf cgroup/cgroup.controllers",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "leaf cgroup/misc.max",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "leaf cgroup/rdma.max",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "parent cgroup/cgroup.controllers",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "parent cgroup/cgroup.subtree_control",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "parent cgroup/misc.max",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Runc, Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "parent cgroup/rdma.max",
        reason: "they enable all that the host has; copepod what limits and statistics need",
    },
    Difference {
        from: &[Runtime::Crun],
        v2: Some(true),
        driver: None,
        fact: "leaf cgroup/hugetlb.2MB.rsvd.max",
        reason: "crun limits pages in use but not reserved ones",
    },
    Difference {
        from: &[Runtime::Runc],
        v2: Some(true),
        driver: Some(Driver::Systemd),
        fact: "leaf cgroup/pids.max",
        reason: "the manager's DefaultTasksMax is no limit of the pod",
    },
];

async fn without_limits(cx: Context) -> Result<()> {
    same(&cx, Case { resources: json!({}), privileged: false }, api::LinuxContainerResources::default()).await
}

async fn limited(cx: Context) -> Result<()> {
    // Both refuse limits of what the host does not count.
    let huge = cgroup::has_controller("hugetlb");
    let pages = if huge { json!([{"pageSize": "2MB", "limit": 4 << 20}]) } else { json!([]) };
    let resources = json!({
        "cpu": {"shares": 512, "quota": 20_000, "period": 100_000, "cpus": "0"},
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
        "hugepageLimits": pages,
    });
    let limit = api::HugepageLimit { page_size: String::from("2MB"), limit: 4 << 20 };
    let asked = api::LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        cpuset_cpus: String::from("0"),
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        hugepage_limits: if huge { vec![limit] } else { Vec::new() },
        ..Default::default()
    };
    same(&cx, Case { resources, privileged: false }, asked).await
}

async fn unified(cx: Context) -> Result<()> {
    if !cgroup::is_v2() {
        println!("      {}: this host has cgroup v1, which has no unified values", cx.name);
        return Ok(());
    }
    let values = [
        ("memory.high", "33554432"),
        ("memory.min", "4194304"),
        ("memory.low", "8388608"),
        ("pids.max", "100"),
        ("cpu.weight", "321"),
    ];
    let resources = json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "unified": values.into_iter().collect::<std::collections::BTreeMap<_, _>>()});
    let asked = api::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        unified: values.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..Default::default()
    };
    same(&cx, Case { resources, privileged: false }, asked).await
}

async fn privileged(cx: Context) -> Result<()> {
    same(&cx, Case { resources: json!({}), privileged: true }, api::LinuxContainerResources::default()).await
}

/// Compares a container with those of the references.
async fn same(cx: &Context, case: Case, resources: api::LinuxContainerResources) -> Result<()> {
    let config = cx.pod_config();
    let pod = cx.pod_of(if case.privileged { config.privileged() } else { config }).await?;
    let mut config = cx.sleeper("leaf");
    *config.resources() = resources;
    config.security().privileged = case.privileged;
    let id = cx.start(&pod, &config).await?;
    let above = pod.config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
    let leaf = cgroup::leaf(&above, &pod.id, &id);
    let mut ours = cgroups::files("leaf", &leaf)?;
    ours.extend(cgroups::files("parent", &above)?);
    let said = cx.cri.exec(&id, &["/bin/sh", "-c", &cgroups::script(case.privileged)]).await?;
    ensure!(said.code == 0, "the exec's report ended with {said:?}");
    ours.extend(cgroups::seen(&said.stdout, &leaf, &above));
    let mut all = Vec::new();
    // crun refuses hybrid hosts whose v2 hierarchy has a controller.
    let references: &[Runtime] =
        if cgroup::is_v2() { &[Runtime::Runc, Runtime::Crun] } else { &[Runtime::Runc] };
    for &runtime in references {
        let theirs = cgroups::reference(cx, runtime, &case).await?;
        all.extend(differences(runtime, &ours, &theirs).context(runtime.program())?);
    }
    ensure!(all.is_empty(), "the cgroup differs in\n  {}", all.join("\n  "));
    Ok(())
}

/// The facts that differ and are not in the list.
fn differences(runtime: Runtime, ours: &Facts, theirs: &Facts) -> Result<Vec<String>> {
    ensure!(theirs.len() > 50, "it reported only {} facts", theirs.len());
    let applies = |name: &str| {
        DIFFERENCES.iter().any(|d| {
            d.from.contains(&runtime)
                && d.v2.is_none_or(|v2| v2 == cgroup::is_v2())
                && d.driver.is_none_or(|driver| driver == cgroup::driver())
                && d.fact == name
        })
    };
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differing = names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name) && !applies(name));
    let line = |name: &String| {
        format!("{name}: ours {:?}, {}'s {:?}", ours.get(name), runtime.program(), theirs.get(name))
    };
    Ok(differing.map(line).collect())
}
