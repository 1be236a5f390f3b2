//! Looks up a container's user in the image's /etc/passwd and /etc/group. Both files are untrusted: they are
//! opened beneath the root, must be regular files, and are read up to a size limit.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use model::{User, UserRequest};
use wire::UserPlan;

/// Largest passwd or group file that is read, in bytes.
const MAX_FILE: u64 = 8 << 20;

/// A user and its home folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The ids of the process.
    pub(crate) user: User,
    /// Home from passwd, `/` if it has none.
    pub(crate) home: String,
}

/// Why a user could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UserError {
    /// The name is not in the image's file.
    #[error("no {kind} {name:?} in the image's {file}")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// The requested name.
        name: String,
        /// The file.
        file: &'static str,
    },
    /// 4294967295 means "unchanged" to setresuid(2) and setresgid(2): the process would keep the shim's.
    #[error("{kind} {id} cannot be used: to the kernel this number means that the {kind} stays unchanged")]
    NoId {
        /// `user` or `group`.
        kind: &'static str,
        /// The id.
        id: u32,
    },
    /// The file could not be read.
    #[error("the image's {file}: {source}")]
    File {
        /// The file.
        file: &'static str,
        /// The error.
        source: io::Error,
    },
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Looks up the user of a plan in the root file system `root`.
///
/// # Errors
/// An unknown name; a file that exists but cannot be read.
pub(crate) fn resolve(root: BorrowedFd<'_>, plan: &UserPlan) -> Result<Resolved, UserError> {
    let passwd = read(root, PASSWD)?;
    let group = read(root, GROUP)?;
    decide(plan, &passwd, &group)
}

fn read(root: BorrowedFd<'_>, file: &'static str) -> Result<String, UserError> {
    let at = |source| UserError::File { file, source };
    let opened = match sys::mount::open_regular_in_root(root, Path::new(file)) {
        Ok(opened) => opened,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(String::new());
        }
        Err(e) => return Err(at(e)),
    };
    let bytes = sys::file::read_capped(opened, MAX_FILE).map_err(at)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let home = fields.nth(1).unwrap_or_default();
        Some(PasswdEntry { name, uid, gid, home })
    })
}

fn group_entries(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn group_id(name: &str, group: &str) -> Result<u32, UserError> {
    // A group with the name "1000" wins over the id 1000, as in Docker.
    match group_entries(group).find(|(known, ..)| *known == name) {
        Some((_, gid, _)) => Ok(gid),
        None => {
            name.parse().map_err(|_| UserError::Unknown { kind: "group", name: name.to_owned(), file: GROUP })
        }
    }
}

fn decide(plan: &UserPlan, passwd: &str, group: &str) -> Result<Resolved, UserError> {
    let by_name = |name: &str| passwd_entries(passwd).find(|e| e.name == name);
    let by_uid = |uid: u32| passwd_entries(passwd).find(|e| e.uid == uid);
    let unknown = |name: &str| UserError::Unknown { kind: "user", name: name.to_owned(), file: PASSWD };
    let (uid, entry, image_group) = match &plan.request {
        UserRequest::Root => (0, by_uid(0), None),
        UserRequest::Uid(uid) => (*uid, by_uid(*uid), None),
        UserRequest::Name(name) => {
            let entry = by_name(name).ok_or_else(|| unknown(name))?;
            (entry.uid, Some(entry), None)
        }
        UserRequest::Image(text) => {
            let (user, group) = text.split_once(':').unwrap_or((text, ""));
            let group = Some(group).filter(|g| !g.is_empty());
            match (by_name(user), user.parse::<u32>()) {
                (Some(entry), _) => (entry.uid, Some(entry), group),
                (None, Ok(uid)) => (uid, by_uid(uid), group),
                (None, Err(_)) if user.is_empty() => (0, by_uid(0), group),
                (None, Err(_)) => return Err(unknown(user)),
            }
        }
    };
    let gid = match (plan.gid, image_group) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_id(name, group)?,
        (None, None) => entry.as_ref().map_or(0, |e| e.gid),
    };
    let mut groups = plan.supplemental.clone();
    if plan.merge_image_groups
        && let Some(entry) = &entry
    {
        let member = |members: &str| members.split(',').any(|m| m.trim() == entry.name);
        let listed = group_entries(group).filter(|(.., members)| member(members)).map(|(_, gid, _)| gid);
        groups.extend(listed.filter(|gid| *gid != sys::creds::NO_ID));
    }
    for (kind, id) in [("user", uid), ("group", gid)] {
        if id == sys::creds::NO_ID {
            return Err(UserError::NoId { kind, id });
        }
    }
    // The supplementary groups must include the primary one. Otherwise a process could drop it and access a file that
    // denies this group (CVE-2022-36109).
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map_or("", |e| e.home);
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(Resolved { user: User { uid, gid, groups }, home })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD_TEXT: &str =
        "root:x:0:0:root:/root:/bin/sh\n# c\n\nbad\nweb:x:33:34:w:/srv/web:/bin/false\n1000:x:7:8::/seven:\n";
    const GROUP_TEXT: &str = "root:x:0:\nadm:x:4:web,other\nstaff:x:50:web\nwww:x:34:\n";

    fn ask(
        request: UserRequest,
        gid: Option<u32>,
        supplemental: &[u32],
        merge: bool,
    ) -> Result<Resolved, UserError> {
        let plan = UserPlan { request, gid, supplemental: supplemental.to_vec(), merge_image_groups: merge };
        decide(&plan, PASSWD_TEXT, GROUP_TEXT)
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> Resolved {
        Resolved { user: User { uid, gid, groups: groups.to_vec() }, home: home.to_owned() }
    }

    #[test]
    fn each_form_of_a_request_is_resolved() {
        let image = |s: &str| UserRequest::Image(s.to_owned());
        assert_eq!(ask(UserRequest::Root, None, &[], true).unwrap(), user(0, 0, &[0], "/root"));
        assert_eq!(
            ask(UserRequest::Uid(33), None, &[], true).unwrap(),
            user(33, 34, &[4, 34, 50], "/srv/web")
        );
        assert_eq!(
            ask(UserRequest::Uid(33), Some(9), &[7], false).unwrap(),
            user(33, 9, &[7, 9], "/srv/web")
        );
        assert_eq!(ask(UserRequest::Uid(4242), None, &[7], true).unwrap(), user(4242, 0, &[0, 7], "/"));
        assert_eq!(ask(image("web:adm"), None, &[], false).unwrap(), user(33, 4, &[4], "/srv/web"));
        assert_eq!(ask(image("5:6"), None, &[], true).unwrap(), user(5, 6, &[6], "/"));
        assert_eq!(ask(image("1000"), None, &[], true).unwrap(), user(7, 8, &[8], "/seven"));
        assert_eq!(ask(image(""), None, &[], true).unwrap(), user(0, 0, &[0], "/root"));
    }

    #[test]
    fn the_value_for_unchanged_is_no_id() {
        let passwd = "evil:x:4294967295:0::/:\nodd:x:5:4294967295::/:\n";
        let image = |s: &str| UserRequest::Image(s.to_owned());
        for request in [image("evil"), image("4294967295"), image("7:4294967295"), image("odd")] {
            let plan = UserPlan { request: request.clone(), ..UserPlan::default() };
            let refused = decide(&plan, passwd, "");
            assert!(matches!(refused, Err(UserError::NoId { .. })), "{request:?}: {refused:?}");
        }
        let plan = UserPlan { request: image("7"), merge_image_groups: true, ..UserPlan::default() };
        let made = decide(&plan, "u:x:7:8::/:\n", "g:x:4294967295:u\n").unwrap();
        assert_eq!(made.user.groups, [8]);
    }

    #[test]
    fn unknown_names_are_errors() {
        for request in [
            UserRequest::Name("nobody".into()),
            UserRequest::Name("33".into()),
            UserRequest::Image("web:no".into()),
        ] {
            assert!(
                matches!(ask(request.clone(), None, &[], true), Err(UserError::Unknown { .. })),
                "{request:?}"
            );
        }
    }
}
