//! Folders and files of v2: one folder, in which the controllers that are enabled above it have their files
//! (Documentation/admin-guide/cgroup-v2.rst).

use super::files::{put, read};
use super::{Error, Hierarchy, levels, names};
use rustix::io::Errno;
use spec::devices::DeviceRule;
use spec::resources::Write;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// Controllers that are enabled for every leaf, where the host has them: those of the limits in CRI, of the statistics,
/// and what programs in containers look for.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
/// The controllers enabled for the cgroups below.
const ENABLED: &str = "cgroup.subtree_control";
/// The controllers that can be.
const AVAILABLE: &str = "cgroup.controllers";

/// Creates the folder of a leaf, after the controllers that it needs are enabled on every level above it. Normally they
/// are: kubelet enables them down to the pod's parent, and the pod's first leaf below that.
pub(super) fn make(
    hierarchy: &Hierarchy,
    parent: &str,
    path: &str,
    writes: &[Write],
) -> Result<PathBuf, Error> {
    let mut wanted: Vec<&str> = CONTROLLERS.into_iter().filter(|name| hierarchy.has(name)).collect();
    for Write { controller, .. } in writes {
        if hierarchy.is_kernels(controller) && !wanted.contains(&controller.as_str()) {
            wanted.push(controller);
        }
    }
    let above = hierarchy.folder(parent);
    let enabled = read(&above.join(ENABLED));
    if !enabled.is_ok_and(|enabled| missing(&enabled, &wanted).next().is_none()) {
        enable(hierarchy.mount(), &wanted)?;
        // Only systemd makes scopes: a folder that we made in the place of an ended one would never be removed.
        let of_ours = if names::is_scope(parent) {
            parent.rsplit_once('/').map_or("", |(slice, _)| slice)
        } else {
            parent
        };
        if of_ours != parent && !above.is_dir() {
            return Err(Error::NoScope { path: parent.to_owned() });
        }
        levels::ensure(hierarchy, of_ours, |folder| enable(folder, &wanted))?;
        if of_ours != parent {
            enable(&above, &wanted)?;
        }
    }
    let folder = hierarchy.folder(path);
    fs::create_dir(&folder).map_err(|source| Error::io("make cgroup", &folder, source))?;
    Ok(folder)
}

fn missing<'a>(enabled: &'a str, wanted: &'a [&'a str]) -> impl Iterator<Item = &'a &'a str> {
    wanted.iter().filter(|name| !enabled.split_ascii_whitespace().any(|enabled| enabled == **name))
}

/// Enables controllers for the cgroups below a folder, as far as they are available in it. A limit of one that is not
/// fails later, with its field.
fn enable(folder: &Path, wanted: &[&str]) -> Result<(), Error> {
    let file = folder.join(ENABLED);
    let enabled = read(&file)?;
    if missing(&enabled, wanted).next().is_none() {
        return Ok(());
    }
    let available = read(&folder.join(AVAILABLE))?;
    let is_available = |name: &&&str| available.split_ascii_whitespace().any(|available| available == **name);
    let more: Vec<String> =
        missing(&enabled, wanted).filter(is_available).map(|name| format!("+{name}")).collect();
    if more.is_empty() {
        return Ok(());
    }
    put(&file, &more.join(" ")).map_err(|source| not_enabled(folder, &more.join(" "), source))
}

/// Why controllers cannot be enabled, and what to do.
fn not_enabled(folder: &Path, controllers: &str, source: io::Error) -> Error {
    let kind = read(&folder.join("cgroup.type")).unwrap_or_default();
    let reason = match (Errno::from_io_error(&source), kind.as_str()) {
        (_, "threaded" | "domain threaded" | "domain invalid") => format!(
            "its type is \"{kind}\", and below a threaded cgroup no container can have limits: choose another \
             cgroup_parent, or remove the threaded cgroup"
        ),
        (Some(Errno::BUSY), _) => "it has processes of its own, so the kernel allows no limits below it: move its \
             processes (cgroup.procs) to a cgroup below it, or choose another cgroup_parent"
            .to_owned(),
        (Some(Errno::INVAL), _) if controllers.contains("cpu") => "the controller cpu cannot be enabled while \
             processes with a realtime policy are in cgroups other than the root: `ps -eo pid,cls,cgroup,args` shows \
             them (cls RR or FF)"
            .to_owned(),
        _ => source.to_string(),
    };
    Error::Controllers { path: folder.to_owned(), controllers: controllers.to_owned(), reason }
}

/// Creates a cgroup without limits, and its missing parents.
pub(super) fn ensure(hierarchy: &Hierarchy, path: &str) -> Result<PathBuf, Error> {
    levels::ensure(hierarchy, path, |_| Ok(()))
}

/// Attaches the rules of a new leaf, before any process can join it.
pub(super) fn devices(folder: BorrowedFd<'_>, path: &Path, rules: &[DeviceRule]) -> Result<(), Error> {
    let program = spec::devices::program(rules)?;
    if program.allows_all() {
        return Ok(());
    }
    let attached = sys::bpf::attach_devices(folder, program.instructions());
    attached.map_err(|source| Error::Devices { path: path.to_owned(), source })
}

/// Writes the file of this name in a cgroup that has processes.
pub(super) fn set(file: &Path, name: &str, value: &str) -> io::Result<()> {
    if name == "memory.max" {
        reclaim(file, value)?;
    }
    match put(file, value) {
        // A cpuset with processes cannot become empty again, which stands for that of the cgroup above. So it gets that.
        Err(error) if value.is_empty() && Errno::from_io_error(&error) == Some(Errno::NOSPC) => {
            let above = file.parent().and_then(Path::parent).ok_or(error)?;
            put(file, fs::read_to_string(above.join(format!("{name}.effective")))?.trim_end())
        }
        written => written,
    }
}

/// Makes room for a lower `memory.max`: the kernel would kill processes if it cannot reclaim enough. Fails with EBUSY
/// then, as v1's limit does.
fn reclaim(limit: &Path, value: &str) -> io::Result<()> {
    let Ok(wanted) = value.parse::<u64>() else { return Ok(()) };
    let used = || -> io::Result<u64> {
        let text = fs::read_to_string(limit.with_file_name("memory.current"))?;
        text.trim_end().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    };
    let more = used()?.saturating_sub(wanted);
    if more == 0 {
        return Ok(());
    }
    // EAGAIN: not all of it was reclaimed; ENOENT: Linux older than 5.19. What is in use then decides.
    drop(put(&limit.with_file_name("memory.reclaim"), &more.to_string()));
    if used()? > wanted { Err(Errno::BUSY.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_enabled() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(temp.path().join(name), text).unwrap();
        let enabled = || read(&temp.path().join(ENABLED)).unwrap();
        write(AVAILABLE, "cpuset cpu io memory pids\n");
        write(ENABLED, "memory pids\n");
        enable(temp.path(), &["memory", "pids"]).unwrap();
        assert_eq!(enabled(), "memory pids");
        enable(temp.path(), &["cpu", "hugetlb", "memory", "cpuset"]).unwrap();
        assert!(enabled().contains("+cpu +cpuset") && !enabled().contains("hugetlb"), "{}", enabled());
    }

    #[test]
    fn errors_say_what_to_do() {
        let temp = tempfile::tempdir().unwrap();
        let text = |errno: Errno| not_enabled(temp.path(), "+cpu", errno.into()).to_string();
        assert!(text(Errno::BUSY).contains("processes of its own"), "{}", text(Errno::BUSY));
        assert!(text(Errno::INVAL).contains("realtime"));
        fs::write(temp.path().join("cgroup.type"), "domain invalid\n").unwrap();
        assert!(text(Errno::OPNOTSUPP).contains("\"domain invalid\""));
    }

    #[test]
    fn a_limit_below_what_is_in_use_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let limit = temp.path().join("memory.max");
        fs::write(temp.path().join("memory.current"), "5000\n").unwrap();
        reclaim(&limit, "5000").unwrap();
        reclaim(&limit, "max").unwrap();
        assert_eq!(reclaim(&limit, "4999").unwrap_err().raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    }
}
