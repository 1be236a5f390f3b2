//! Loading of compiled filters.

use std::io;

/// BPF_MAXINSNS.
const MAX: usize = 4096;

/// struct sock_fprog.
#[repr(C)]
struct Program {
    length: u16,
    filter: *const u64,
}

/// A filter that was looked at and can be loaded without allocating.
#[derive(Debug, Clone, Copy)]
pub struct Filter<'a> {
    instructions: &'a [u64],
    length: u16,
}

impl<'a> Filter<'a> {
    /// Of instructions as an array of struct sock_filter has them in memory.
    ///
    /// # Errors
    /// None, or more than 4096.
    pub fn new(instructions: &'a [u64]) -> io::Result<Self> {
        match u16::try_from(instructions.len()) {
            Ok(length) if length > 0 && usize::from(length) <= MAX => Ok(Self { instructions, length }),
            _ => {
                let text = format!("a seccomp filter of {} instructions", instructions.len());
                Err(io::Error::new(io::ErrorKind::InvalidInput, text))
            }
        }
    }

    /// Loads it for the calling thread, for good.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN and no_new_privs; EINVAL for a program the kernel refuses.
    pub fn load(&self) -> io::Result<()> {
        const SET_MODE_FILTER: libc::c_uint = 1;
        let program = Program { length: self.length, filter: self.instructions.as_ptr() };
        // SAFETY: `program` is a live struct sock_fprog; its pointer and length are those of a slice of
        // 8-byte instructions. The kernel checks the program itself before it takes it.
        let done = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// [`Filter::new`] and [`Filter::load`] in one.
///
/// # Errors
/// As those.
pub fn load(instructions: &[u64]) -> io::Result<()> {
    Filter::new(instructions)?.load()
}
