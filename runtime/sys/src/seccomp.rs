//! Loading a compiled seccomp filter (seccomp(2)).

use std::io;

/// Instructions the kernel takes at most (BPF_MAXINSNS).
pub const LONGEST: usize = 4096;

/// Loads a filter for the calling thread, for good. One number an instruction:
/// `code | jt << 16 | jf << 24 | k << 32`.
///
/// # Errors
/// EINVAL for a program the kernel refuses, none or a too long one; EACCES with neither CAP_SYS_ADMIN nor
/// no_new_privs.
pub fn load(instructions: &[u64]) -> io::Result<()> {
    let length = u16::try_from(instructions.len()).ok().filter(|n| usize::from(*n) <= LONGEST && *n > 0);
    let Some(len) = length else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // All bytes but those of the fields' meaning are plain integers: shifting out the low bits is the cast.
    let mut program: Vec<libc::sock_filter> = instructions
        .iter()
        .map(|i| {
            let [c0, c1, jt, jf, k0, k1, k2, k3] = i.to_le_bytes();
            libc::sock_filter {
                code: u16::from_le_bytes([c0, c1]),
                jt,
                jf,
                k: u32::from_le_bytes([k0, k1, k2, k3]),
            }
        })
        .collect();
    let filter = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads `filter`, a `struct sock_fprog` that points at `len` instructions in `program`;
    // both live across the call, and it copies them.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_program() {
        assert_eq!(load(&[]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(load(&vec![0x0006; LONGEST + 1]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
