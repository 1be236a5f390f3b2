//! Privileges of a process: user, groups, capabilities, no_new_privs (capabilities(7), credentials(7)).

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// New credentials. Capability sets are masks, bit n for capability n of linux/capability.h.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Real, effective and saved.
    pub uid: u32,
    /// Real, effective and saved.
    pub gid: u32,
    /// Supplementary groups; set even if empty, so that the caller's are removed.
    pub groups: Vec<u32>,
    /// The bounding set.
    pub bounding: u64,
    /// Permitted and effective until execve; capabilities that the caller does not have are skipped.
    pub permitted: u64,
    /// Inheritable.
    pub inheritable: u64,
    /// Ambient; must be permitted and inheritable.
    pub ambient: u64,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
    /// A filter will be loaded: without `no_new_privs`, CAP_SYS_ADMIN is kept for that. execve drops it.
    pub filter: bool,
}

/// The value that is no uid and no gid: to setresuid(2) it means "unchanged".
pub const NO_ID: u32 = u32::MAX;

/// The capability that is kept only for loading the filter, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct ForFilter(Option<CapabilitySets>);

impl ForFilter {
    /// Drops the capability after the filter was loaded. Makes no call if there is none.
    ///
    /// # Errors
    /// The errno that the filter returns for capset(2).
    pub fn drop_capability(self) -> io::Result<()> {
        self.0.map_or(Ok(()), |sets| Ok(set_capabilities(None, sets)?))
    }
}

/// Sets the credentials in the only order that works. What needs the caller's privileges must be done before, except
/// loading a filter.
///
/// # Errors
/// The failed step with the kernel's error; EINVAL for [`NO_ID`].
pub fn assume(wanted: &Credentials) -> Result<ForFilter, (&'static str, io::Error)> {
    let at = |step: &'static str| move |e: Errno| (step, io::Error::from(e));
    if wanted.uid == NO_ID || wanted.gid == NO_ID || wanted.groups.contains(&NO_ID) {
        return Err(at("uid or gid 4294967295, which is no id")(Errno::INVAL));
    }
    let available = capabilities(None).map_err(at("capget"))?.permitted;
    // Make all permitted capabilities effective, in case the caller has lowered some.
    let all =
        CapabilitySets { effective: available, permitted: available, inheritable: CapabilitySet::empty() };
    set_capabilities(None, all).map_err(at("capset"))?;
    clear_ambient_capability_set().map_err(at("ambient set"))?;
    for bit in each(!wanted.bounding) {
        match remove_capability_from_bounding_set(bit) {
            // Above the last capability of this kernel.
            Err(Errno::INVAL) => break,
            other => other.map_err(at("bounding set"))?,
        }
    }
    let groups: Vec<Gid> = wanted.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    set_thread_groups(&groups).map_err(at("setgroups"))?;
    set_keep_capabilities(true).map_err(at("keepcaps"))?;
    let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
    set_thread_res_gid(gid, gid, gid).map_err(at("setresgid"))?;
    set_thread_res_uid(uid, uid, uid).map_err(at("setresuid"))?;
    set_keep_capabilities(false).map_err(at("keepcaps"))?;
    let for_filter =
        if wanted.filter && !wanted.no_new_privs { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let own = CapabilitySet::from_bits_retain(wanted.permitted) & available;
    let permitted = (own | for_filter) & available;
    let inheritable = CapabilitySet::from_bits_retain(wanted.inheritable) & available;
    set_capabilities(None, CapabilitySets { effective: permitted, permitted, inheritable })
        .map_err(at("capset"))?;
    for bit in each(wanted.ambient & available.bits()) {
        configure_capability_in_ambient_set(bit, true).map_err(at("ambient set"))?;
    }
    if wanted.no_new_privs {
        set_no_new_privs(true).map_err(at("no_new_privs"))?;
    }
    let fewer = CapabilitySets { effective: own, permitted: own, inheritable };
    Ok(ForFilter(Some(fewer).filter(|_| own != permitted)))
}

fn each(mask: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..64).map(|n| 1u64 << n).filter(move |bit| mask & bit != 0).map(CapabilitySet::from_bits_retain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_for_unchanged_is_refused() {
        for (uid, gid, groups) in [(NO_ID, 0, vec![]), (0, NO_ID, vec![]), (0, 0, vec![NO_ID])] {
            let wanted = Credentials { uid, gid, groups, ..Credentials::default() };
            assert_eq!(assume(&wanted).unwrap_err().1.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
        }
    }

    #[test]
    fn masks_become_bits() {
        let bits: Vec<u64> = each(0b1010_0000_0000_0000_0000_0001).map(|b| b.bits()).collect();
        assert_eq!(bits, [1, 1 << 21, 1 << 23]);
    }
}
