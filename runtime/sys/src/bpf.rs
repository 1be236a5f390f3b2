//! Device programs of cgroups v2: bpf(2) with BPF_PROG_TYPE_CGROUP_DEVICE. Neither rustix nor nix has this call.
//!
//! A cgroup keeps the programs that are attached to it, and frees them when it is removed. A device may be used if the
//! programs of the process's cgroup and of all above it allow that. Programs of this module are attached with
//! BPF_F_ALLOW_MULTI, so that a container can add its own, and are known by their name: after a restart of the caller,
//! [`replace_devices`] still finds them. Needs CAP_SYS_ADMIN in the first user namespace.
//!
//! ```text
//! attach_devices   load ──► attach
//! replace_devices  load ──► programs (query, by id, by name) ──► attach instead of the old one
//! ```

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Commands of bpf(2).
mod command {
    pub(super) const PROG_LOAD: libc::c_long = 5;
    pub(super) const PROG_ATTACH: libc::c_long = 8;
    pub(super) const PROG_DETACH: libc::c_long = 9;
    pub(super) const PROG_GET_FD_BY_ID: libc::c_long = 13;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const PROG_QUERY: libc::c_long = 16;
}

/// BPF_PROG_TYPE_CGROUP_DEVICE.
const TYPE: u32 = 15;
/// BPF_CGROUP_DEVICE.
const ATTACH_TYPE: u32 = 6;
/// BPF_F_ALLOW_MULTI.
const ALLOW_MULTI: u32 = 1 << 1;
/// BPF_F_REPLACE, Linux 5.6.
const REPLACE: u32 = 1 << 2;
/// The name of our programs, with its NUL as long as a name may be.
const NAME: [u8; 16] = *b"copepod_devices\0";
/// Maximum number of programs in one cgroup (the kernel's BPF_CGROUP_MAX_PROGS).
const MAX_PROGRAMS: usize = 64;
/// How often a program is loaded if the verifier is interrupted by signals.
const TRIES: usize = 5;
/// Bytes of the verifier's log that are asked for, and how many at its end are in an error.
const LOG: usize = 64 << 10;
const LOG_END: usize = 2 << 10;

/// A failed operation on device programs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refuses the program. EPERM without CAP_SYS_ADMIN or if bpf(2) is locked down; EINVAL without
    /// CONFIG_CGROUP_BPF, or for instructions that the verifier refuses: then `said` has its reason.
    #[error("load the device program of {instructions} instructions: {source}{said}")]
    Load {
        /// How many there are.
        instructions: usize,
        /// The kernel's error.
        source: io::Error,
        /// The end of the verifier's log after a colon and a blank, or nothing.
        said: String,
    },
    /// It is loaded, but the cgroup does not take it. EBADF if the folder is not that of a cgroup v2; EPERM if a program
    /// of this cgroup or one above it was attached without BPF_F_ALLOW_MULTI; E2BIG if the cgroup has 64.
    #[error("attach the device program to the cgroup: {0}")]
    Attach(#[source] io::Error),
    /// The programs of the cgroup cannot be listed or looked at.
    #[error("find the device programs of the cgroup: {0}")]
    Find(#[source] io::Error),
    /// A program cannot be removed from the cgroup.
    #[error("detach a device program from the cgroup: {0}")]
    Detach(#[source] io::Error),
}

impl Error {
    /// The kernel's error.
    pub fn kernel(&self) -> &io::Error {
        match self {
            Self::Load { source, .. } => source,
            Self::Attach(source) | Self::Find(source) | Self::Detach(source) => source,
        }
    }
}

/// Attaches a device program to the cgroup v2 with this folder. Its instructions are `struct bpf_insn`, each as one
/// little-endian number. To be done before a process joins: what is already open stays open. An earlier program stays
/// attached too; [`replace_devices`] exchanges it.
///
/// # Errors
/// [`Error::Load`], [`Error::Attach`].
pub fn attach_devices(cgroup: BorrowedFd<'_>, instructions: &[u64]) -> Result<(), Error> {
    attach(cgroup, load(instructions)?.as_fd(), None)
}

/// Exchanges the cgroup's device program for this one, in one step: at any time one of both decides. Only tests call it:
/// updates do not change device rules. Without an earlier
/// program of ours it is attached. Programs that others have attached stay.
///
/// # Errors
/// All of [`Error`]. On [`Error::Detach`] the new program is attached, and a second one of ours is left beside it.
pub fn replace_devices(cgroup: BorrowedFd<'_>, instructions: &[u64]) -> Result<(), Error> {
    let new = load(instructions)?;
    let ours = ours(cgroup)?;
    let (old, surplus) = match ours.split_first() {
        Some((old, surplus)) => (Some(old.as_fd()), surplus),
        None => (None, &[][..]),
    };
    attach(cgroup, new.as_fd(), old)?;
    surplus.iter().try_for_each(|program| detach(cgroup, program.as_fd()))
}

/// `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// For BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// For BPF_PROG_QUERY. Linux 5.14 knows the fields up to `prog_cnt` and requires zeroes in the others. Later kernels write
/// into the last field too, even if the size that they are told does not include it; so all fields must be here.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// For BPF_PROG_GET_FD_BY_ID.
#[repr(C)]
#[derive(Default)]
struct ById {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// For BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_prog_info` up to the name (Linux 4.15).
#[repr(C)]
#[derive(Default)]
struct Info {
    prog_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_prog_len: u32,
    xlated_prog_len: u32,
    jited_prog_insns: u64,
    xlated_prog_insns: u64,
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// The number of a descriptor in `union bpf_attr`.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// A number of bytes or elements for the kernel; all of them are far below 4 Gi.
fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// bpf(2).
///
/// # Safety
/// `attr` is what the kernel reads, and may write, for this command; addresses in it are of memory that is valid for what
/// the command does there, of the lengths that are given beside them.
unsafe fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `attr`, of the size that is passed. That all it writes to is valid, the caller has promised.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size(size_of::<T>())) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// [`bpf`] for a command that returns a new descriptor, which is close-on-exec.
///
/// # Safety
/// As for [`bpf`]; the command is such a one.
unsafe fn bpf_open<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller has promised what this needs.
    let opened = unsafe { bpf(command, attr) }?;
    let number = i32::try_from(opened).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just opened it for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Loads a program. Without its log first: a program that is fine, and a caller without privileges, need none.
fn load(instructions: &[u64]) -> Result<OwnedFd, Error> {
    let mut outcome = try_load(instructions, &mut []);
    for _ in 1..TRIES {
        match &outcome {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                outcome = try_load(instructions, &mut []);
            }
            _ => break,
        }
    }
    outcome.map_err(|source| {
        let said = match source.raw_os_error() {
            Some(libc::EINVAL | libc::EACCES | libc::E2BIG) => log_of(instructions),
            _ => String::new(),
        };
        Error::Load { instructions: instructions.len(), source, said }
    })
}

/// Loads it with a log, which is empty or at least 128 bytes long.
fn try_load(instructions: &[u64], log: &mut [u8]) -> io::Result<OwnedFd> {
    // As in `struct bpf_insn`: the number's lowest byte is the operation.
    const { assert!(cfg!(target_endian = "little")) };
    let mut attr = Load {
        prog_type: TYPE,
        insn_cnt: size(instructions.len()),
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: size(log.len()),
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        prog_name: NAME,
        ..Load::default()
    };
    // SAFETY: BPF_PROG_LOAD reads `insn_cnt` instructions of 8 bytes and a C string, which is static, and writes up to
    // `log_size` bytes to the log; slice and log live across the call. It returns a descriptor.
    unsafe { bpf_open(command::PROG_LOAD, &mut attr) }
}

/// What the verifier says about a program that it refuses, after a colon; the end of it, which has the reason.
fn log_of(instructions: &[u64]) -> String {
    let mut log = vec![0; LOG];
    if try_load(instructions, &mut log).is_ok() {
        return String::new();
    }
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let end = &text[text.len().saturating_sub(LOG_END)..];
    match String::from_utf8_lossy(end).trim() {
        "" => String::new(),
        said => format!(": {said}"),
    }
}

/// Attaches a program, instead of `old` if there is one.
fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, old: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let mut attr = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_TYPE,
        attach_flags: ALLOW_MULTI | if old.is_some() { REPLACE } else { 0 },
        replace_bpf_fd: old.map_or(0, number),
    };
    // SAFETY: BPF_PROG_ATTACH reads numbers and no other memory; the descriptors are open, because they are borrowed.
    unsafe { bpf(command::PROG_ATTACH, &mut attr) }.map(drop).map_err(Error::Attach)
}

/// Detaches a program. One that is no longer attached is no error.
fn detach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Error> {
    let mut attr = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_TYPE,
        ..Attach::default()
    };
    // SAFETY: BPF_PROG_DETACH reads numbers and no other memory; the descriptors are open, because they are borrowed.
    match unsafe { bpf(command::PROG_DETACH, &mut attr) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(Error::Detach(error)),
        _ => Ok(()),
    }
}

/// The programs of this module that are attached to the cgroup itself, the earliest first.
fn ours(cgroup: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Error> {
    let mut ours = Vec::new();
    for id in ids(cgroup).map_err(Error::Find)? {
        match open(id) {
            Ok(program) if name(program.as_fd()).map_err(Error::Find)? == NAME => ours.push(program),
            Ok(_) => {}
            // Somebody has detached it meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(Error::Find(error)),
        }
    }
    Ok(ours)
}

/// The ids of the device programs that are attached to the cgroup itself.
fn ids(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0; MAX_PROGRAMS];
    let mut attr = Query {
        target_fd: number(cgroup),
        attach_type: ATTACH_TYPE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: size(ids.len()),
        ..Query::default()
    };
    // SAFETY: BPF_PROG_QUERY writes up to `prog_cnt` numbers to `ids`, which lives across the call, and fields of `Query`,
    // which has all that it may write; the other addresses are null, and then nothing is written there.
    unsafe { bpf(command::PROG_QUERY, &mut attr) }?;
    ids.truncate(usize::try_from(attr.prog_cnt).unwrap_or(0));
    Ok(ids)
}

/// A program by its id. ENOENT if it is no longer loaded.
fn open(id: u32) -> io::Result<OwnedFd> {
    let mut attr = ById { prog_id: id, ..ById::default() };
    // SAFETY: BPF_PROG_GET_FD_BY_ID reads numbers and no other memory, and returns a descriptor.
    unsafe { bpf_open(command::PROG_GET_FD_BY_ID, &mut attr) }
}

/// The name that a program was loaded with.
fn name(program: BorrowedFd<'_>) -> io::Result<[u8; 16]> {
    let mut info = Info::default();
    let mut attr =
        GetInfo { bpf_fd: number(program), info_len: size(size_of::<Info>()), info: &raw mut info as u64 };
    // SAFETY: BPF_OBJ_GET_INFO_BY_FD reads and writes up to `info_len` bytes of `info`, which lives across the call and
    // consists of integers, so that any bytes are valid; its addresses and lengths are 0, and then nothing is written
    // there. It also writes a number to `info_len` in `attr`.
    unsafe { bpf(command::OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.name)
}
