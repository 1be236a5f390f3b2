//! Folders and files of v2: one folder, in which the controllers that are enabled above it have their files
//! (Documentation/admin-guide/cgroup-v2.rst).

use super::files::{put, read};
use super::{Error, Hierarchy, levels, names};
use rustix::io::Errno;
use spec::devices::DeviceRule;
use spec::resources::Write;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Controllers that are enabled for every leaf, where the host has them: those of the limits in CRI, of the statistics,
/// and what programs in containers look for.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];
/// The controllers enabled for the cgroups below.
const ENABLED: &str = "cgroup.subtree_control";
/// The controllers that can be.
const AVAILABLE: &str = "cgroup.controllers";
/// At most this many warnings about controllers that are left out.
const MAX_SAID: usize = 64;

/// The controllers of a leaf.
#[derive(Debug)]
struct Wanted<'a> {
    /// Those to enable for it, where the host has them.
    names: Vec<&'a str>,
    /// Its limits. The controller of a limit that is not optional must be enabled.
    writes: &'a [Write],
}

impl<'a> Wanted<'a> {
    fn new(hierarchy: &Hierarchy, writes: &'a [Write]) -> Self {
        let mut names: Vec<&str> = CONTROLLERS.into_iter().filter(|name| hierarchy.has(name)).collect();
        for Write { controller, .. } in writes {
            if hierarchy.is_kernels(controller) && !names.contains(&controller.as_str()) {
                names.push(controller);
            }
        }
        Self { names, writes }
    }

    /// Those that are not enabled.
    fn missing<'b>(&'b self, enabled: &'b str) -> impl Iterator<Item = &'a str> + 'b {
        self.names.iter().copied().filter(move |name| !has(enabled, name))
    }

    /// The field of a limit that cannot be set without this controller.
    fn needing(&self, name: &str) -> Option<&'a str> {
        let needs = |write: &&Write| write.controller == name && !write.optional;
        self.writes.iter().find(needs).map(|write| write.field.as_str())
    }
}

/// Whether a list of controllers, as the kernel shows it, has this one.
fn has(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|listed| listed == name)
}

/// Creates the folder of a leaf, after the controllers that it needs are enabled on every level above it. Normally they
/// are: kubelet enables them down to the pod's parent, and the pod's first leaf below that.
pub(super) fn make(
    hierarchy: &Hierarchy,
    parent: &str,
    path: &str,
    writes: &[Write],
) -> Result<PathBuf, Error> {
    let wanted = Wanted::new(hierarchy, writes);
    let above = hierarchy.folder(parent);
    let enabled = read(&above.join(ENABLED));
    if !enabled.is_ok_and(|enabled| wanted.missing(&enabled).next().is_none()) {
        let enable = |folder: &Path| enable(folder, &wanted, put);
        enable(hierarchy.mount())?;
        // Only systemd makes scopes: a folder that we made in the place of an ended one would never be removed.
        let of_ours = if names::is_scope(parent) {
            parent.rsplit_once('/').map_or("", |(slice, _)| slice)
        } else {
            parent
        };
        if of_ours != parent && !above.is_dir() {
            return Err(Error::NoScope { path: parent.to_owned() });
        }
        levels::ensure(hierarchy, of_ours, enable)?;
        if of_ours != parent {
            enable(&above)?;
        }
    }
    let folder = hierarchy.folder(path);
    fs::create_dir(&folder).map_err(|source| Error::io("make cgroup", &folder, source))?;
    Ok(folder)
}

/// Enables controllers for the cgroups below a folder with `put`, as far as they are available in it. If the kernel refuses
/// one that no limit needs, the leaf is made without it.
fn enable(
    folder: &Path,
    wanted: &Wanted<'_>,
    put: impl Fn(&Path, &str) -> io::Result<()>,
) -> Result<(), Error> {
    let file = folder.join(ENABLED);
    let enabled = read(&file)?;
    if wanted.missing(&enabled).next().is_none() {
        return Ok(());
    }
    let available = read(&folder.join(AVAILABLE))?;
    let more: Vec<&str> = wanted.missing(&enabled).filter(|name| has(&available, name)).collect();
    if more.is_empty() {
        return Ok(());
    }
    let all: Vec<String> = more.iter().map(|name| format!("+{name}")).collect();
    let all = all.join(" ");
    match put(&file, &all) {
        Ok(()) => return Ok(()),
        // It has ended since it was read. Whoever makes folders tries again.
        Err(source) if matches!(Errno::from_io_error(&source), Some(Errno::NOENT | Errno::NODEV)) => {
            return Err(Error::io("write", &file, io::ErrorKind::NotFound.into()));
        }
        // The folder is refused, not a controller. One by one the kernel would enable some, and make the folder threaded:
        // then no process could join the leaf (Documentation/admin-guide/cgroup-v2.rst, "Threads").
        Err(source) if matches!(Errno::from_io_error(&source), Some(Errno::BUSY | Errno::OPNOTSUPP)) => {
            return Err(not_enabled(folder, &all, &source, None));
        }
        Err(_) => {}
    }
    // The kernel enables all controllers of one write, or none.
    for name in more {
        let Err(source) = put(&file, &format!("+{name}")) else { continue };
        let refused = not_enabled(folder, &format!("+{name}"), &source, wanted.needing(name));
        if wanted.needing(name).is_some() {
            return Err(refused);
        }
        if is_news(folder, name) {
            tracing::warn!(error = %refused, "no limit of this cgroup needs the controller, so it is left out");
        }
    }
    Ok(())
}

/// Whether this was not said before: every leaf below the folder would say it again.
fn is_news(folder: &Path, controller: &str) -> bool {
    static SAID: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.len() < MAX_SAID && said.insert((folder.to_owned(), controller.to_owned()))
}

/// Why controllers cannot be enabled, and what to do. `field`: the limit that needs them.
fn not_enabled(folder: &Path, controllers: &str, source: &io::Error, field: Option<&str>) -> Error {
    let kind = read(&folder.join("cgroup.type")).unwrap_or_default();
    let reason = match (Errno::from_io_error(source), kind.as_str()) {
        (_, "threaded" | "domain threaded" | "domain invalid") => format!(
            "its type is \"{kind}\", and below a threaded cgroup no container can have limits: choose another \
             cgroup_parent, or remove the threaded cgroup"
        ),
        (Some(Errno::BUSY), _) => "it has processes of its own, so the kernel allows no limits below it: move its \
             processes (cgroup.procs) to a cgroup below it, or choose another cgroup_parent"
            .to_owned(),
        (Some(Errno::INVAL), _) if has(controllers, "+cpu") => "the controller cpu cannot be enabled while \
             processes with a realtime policy are in cgroups other than the root: `ps -eo pid,cls,cgroup,args` shows \
             them (cls RR or FF)"
            .to_owned(),
        _ => format!("{source}; `dmesg` may have the kernel's reason"),
    };
    let reason = match field {
        Some(field) => format!("{reason}. {field} needs it"),
        None => reason,
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

    /// A write to a file of this controller.
    fn write(controller: &str, optional: bool) -> Write {
        Write {
            controller: controller.to_owned(),
            file: format!("{controller}.max"),
            value: "1".to_owned(),
            field: format!("field_of_{controller}"),
            optional,
        }
    }

    /// A folder in which these controllers are available and enabled.
    fn folder(available: &str, enabled: &str) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(AVAILABLE), available).unwrap();
        fs::write(temp.path().join(ENABLED), enabled).unwrap();
        temp
    }

    #[test]
    fn only_what_is_missing_is_enabled() {
        let temp = folder("cpuset cpu io memory pids\n", "memory pids\n");
        let enabled = || read(&temp.path().join(ENABLED)).unwrap();
        let enable = |names| enable(temp.path(), &Wanted { names, writes: &[] }, put).unwrap();
        enable(vec!["memory", "pids"]);
        assert_eq!(enabled(), "memory pids");
        enable(vec!["cpu", "hugetlb", "memory", "cpuset"]);
        assert!(enabled().contains("+cpu +cpuset") && !enabled().contains("hugetlb"), "{}", enabled());
    }

    /// What is written to a folder that refuses the controller cpu with this error, and how it ends.
    fn refusing_cpu(errno: Errno, writes: &[Write]) -> (Vec<String>, Result<(), Error>) {
        let temp = folder("cpu io memory\n", "\n");
        let written = std::cell::RefCell::new(Vec::new());
        let put = |_: &Path, text: &str| {
            written.borrow_mut().push(text.to_owned());
            if has(text, "+cpu") { Err(errno.into()) } else { Ok(()) }
        };
        let outcome = enable(temp.path(), &Wanted { names: vec!["cpu", "io", "memory"], writes }, put);
        (written.into_inner(), outcome)
    }

    #[test]
    fn a_refused_controller_fails_only_limits_that_need_it() {
        let one_by_one = ["+cpu +io +memory", "+cpu", "+io", "+memory"];
        let (written, outcome) = refusing_cpu(Errno::INVAL, &[write("cpu", true), write("memory", false)]);
        outcome.unwrap();
        assert_eq!(written, one_by_one);
        let (_, outcome) = refusing_cpu(Errno::INVAL, &[write("cpu", false)]);
        let text = outcome.unwrap_err().to_string();
        for part in ["enable +cpu for", "realtime policy", "field_of_cpu needs it"] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// Else the kernel makes it threaded, and no process can join a cgroup below.
    #[test]
    fn a_folder_with_processes_gets_no_single_controllers() {
        for errno in [Errno::BUSY, Errno::OPNOTSUPP] {
            let (written, outcome) = refusing_cpu(errno, &[]);
            assert_eq!(written, ["+cpu +io +memory"]);
            outcome.unwrap_err();
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let temp = tempfile::tempdir().unwrap();
        let text = |errno: Errno| not_enabled(temp.path(), "+cpu", &errno.into(), None).to_string();
        assert!(text(Errno::BUSY).contains("processes of its own"), "{}", text(Errno::BUSY));
        assert!(text(Errno::INVAL).contains("realtime"));
        let cpuset = not_enabled(temp.path(), "+cpuset", &Errno::INVAL.into(), None).to_string();
        assert!(!cpuset.contains("realtime") && cpuset.contains("Invalid argument"), "{cpuset}");
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
