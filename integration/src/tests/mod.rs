//! The tests, one file or folder per theme.

#![allow(clippy::too_many_lines, reason = "a test is one scenario, read in the order in which it happens")]

mod apparmor;
mod archives;
mod badimage;
mod badinput;
mod cgroupvolumes;
mod configuration;
mod confinement;
mod container;
mod credentials;
mod daemon;
mod degraded;
mod escape;
mod exec;
mod fields;
mod full_disk;
mod grpcio;
mod hazards;
mod hung;
mod image;
mod imageshapes;
mod imagestore;
mod imagevolume;
mod intruders;
mod kill9;
mod leaf;
mod libcontainer;
mod life;
mod log;
mod metrics;
mod mountflags;
mod mounts;
mod namespaces;
mod nested;
mod network;
mod overtaken;
mod pause;
mod plugins;
mod pod;
mod podlife;
mod podstats;
mod privilege;
mod processes;
mod propagation;
mod proxies;
mod pss;
mod records;
mod registries;
mod removal;
mod resources;
mod restart;
mod rootfs;
mod same_as_runc;
mod scopes;
mod security;
mod selinux;
mod service;
mod silent;
mod slow;
mod splitdisk;
mod start;
mod streaming;
mod streams;
mod threads;
mod update;
mod userns;
mod verbose;

use crate::runner::Test;

/// All tests in the order they run.
pub(crate) fn all() -> Vec<Test> {
    [
        pod::tests(),
        namespaces::tests(),
        container::tests(),
        resources::tests(),
        metrics::tests(),
        podstats::tests(),
        update::tests(),
        exec::tests(),
        streaming::tests(),
        pause::tests(),
        log::tests(),
        life::tests(),
        image::tests(),
        imageshapes::tests(),
        imagestore::tests(),
        archives::tests(),
        credentials::tests(),
        libcontainer::tests(),
        scopes::tests(),
        security::tests(),
        confinement::tests(),
        apparmor::tests(),
        selinux::tests(),
        userns::tests(),
        privilege::tests(),
        processes::tests(),
        intruders::tests(),
        same_as_runc::tests(),
        leaf::tests(),
        cgroupvolumes::tests(),
        mounts::tests(),
        mountflags::tests(),
        imagevolume::tests(),
        escape::tests(),
        rootfs::tests(),
        nested::tests(),
        propagation::tests(),
        proxies::tests(),
        registries::tests(),
        removal::tests(),
        full_disk::tests(),
        network::tests(),
        plugins::tests(),
        hazards::tests(),
        daemon::tests(),
        grpcio::tests(),
        streams::tests(),
        fields::tests(),
        threads::tests(),
        verbose::tests(),
        hung::tests(),
        badinput::tests(),
        badimage::tests(),
        restart::tests(),
        kill9::tests(),
        silent::tests(),
        slow::tests(),
        podlife::tests(),
        overtaken::tests(),
        records::tests(),
        start::tests(),
        configuration::tests(),
        service::tests(),
        degraded::tests(),
        splitdisk::tests(),
        pss::tests(),
    ]
    .concat()
}
