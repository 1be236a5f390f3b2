//! Converts between CRI `Signal` numbers, kernel numbers, and an image's `StopSignal`.
//!
//! CRI numbers its signals alphabetically; 0 means "not set". Kernel numbers are those of x86 and arm, which
//! agree. SIGRTMIN is 34, as in the C library: images and other runtimes use that number.

use crate::Error;

/// Stop signal if neither the request nor the image names one.
const DEFAULT_STOP: i32 = 15;
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Kernel number and name by CRI number, starting at 1; real-time signals follow from 35.
const NAMED: [(i32, &str); 34] = [
    (6, "ABRT"),
    (14, "ALRM"),
    (7, "BUS"),
    (17, "CHLD"),
    (17, "CLD"),
    (18, "CONT"),
    (8, "FPE"),
    (1, "HUP"),
    (4, "ILL"),
    (2, "INT"),
    (29, "IO"),
    (6, "IOT"),
    (9, "KILL"),
    (13, "PIPE"),
    (29, "POLL"),
    (27, "PROF"),
    (30, "PWR"),
    (3, "QUIT"),
    (11, "SEGV"),
    (16, "STKFLT"),
    (19, "STOP"),
    (31, "SYS"),
    (15, "TERM"),
    (5, "TRAP"),
    (20, "TSTP"),
    (21, "TTIN"),
    (22, "TTOU"),
    (23, "URG"),
    (10, "USR1"),
    (12, "USR2"),
    (26, "VTALRM"),
    (28, "WINCH"),
    (24, "XCPU"),
    (25, "XFSZ"),
];
/// CRI number of SIGRTMIN.
const CRI_RTMIN: i32 = 35;
/// CRI number of SIGRTMAX.
const CRI_RTMAX: i32 = 65;

/// Kernel number of a CRI `Signal`; `None` for 0 (not set) and for numbers that the enum does not have.
fn from_cri(signal: i32) -> Option<i32> {
    if (CRI_RTMIN..=CRI_RTMAX).contains(&signal) {
        return Some(RTMIN + signal - CRI_RTMIN);
    }
    let at = usize::try_from(signal).ok()?.checked_sub(1)?;
    NAMED.get(at).map(|(kernel, _)| *kernel)
}

/// CRI `Signal` of a kernel number; 0 if CRI has none. If one number has two names, the usual one is chosen
/// (CHLD, not CLD; IO, not POLL; ABRT, not IOT).
pub fn to_cri(kernel: i32) -> i32 {
    if (RTMIN..=RTMAX).contains(&kernel) {
        return kernel - RTMIN + CRI_RTMIN;
    }
    let at = NAMED.iter().position(|(number, _)| *number == kernel);
    at.and_then(|at| i32::try_from(at + 1).ok()).unwrap_or(0)
}

/// Kernel number of an image's `StopSignal`: a number, or a name with or without `SIG`, in upper or lower
/// case; also `RTMIN+n` and `RTMAX-n`.
fn from_image(text: &str) -> Result<i32, Error> {
    let bad =
        || Error::invalid("image config StopSignal", text, "must be a signal's name or number, 1 to 64");
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((kernel, _)) = NAMED.iter().find(|(_, known)| *known == name) {
        return Ok(*kernel);
    }
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        None if rest.is_empty() => Some(0),
        None => None,
        Some(digits) => digits.parse::<i32>().ok().filter(|n| (0..=RTMAX - RTMIN).contains(n)),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest, '+').map(|n| RTMIN + n)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest, '-').map(|n| RTMAX - n)
    } else {
        None
    };
    number.ok_or_else(bad)
}

/// The signal that stop sends first: that of the request, else that of the image, else SIGTERM. An invalid
/// StopSignal of the image is an error: another signal might not stop the container.
pub fn stop_signal(requested: i32, image: &str) -> Result<i32, Error> {
    match from_cri(requested) {
        Some(kernel) => Ok(kernel),
        None if image.trim().is_empty() => Ok(DEFAULT_STOP),
        None => from_image(image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_numbers_follow_the_enum() {
        let known =
            [(1, 6), (9, 4), (13, 9), (23, 15), (29, 10), (34, 25), (35, 34), (50, 49), (51, 50), (65, 64)];
        for (cri, kernel) in known {
            assert_eq!(from_cri(cri), Some(kernel), "{cri}");
        }
        for none in [0, -1, 66, i32::MAX, i32::MIN] {
            assert_eq!(from_cri(none), None, "{none}");
        }
        for cri in 1..=65 {
            let kernel = from_cri(cri).unwrap();
            assert_eq!(from_cri(to_cri(kernel)), Some(kernel), "{cri}");
        }
        assert_eq!((to_cri(17), to_cri(29), to_cri(6), to_cri(32)), (4, 11, 1, 0));
    }

    #[test]
    fn image_names() {
        for (text, number) in
            [("SIGTERM", 15), ("quit", 3), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("sigrtmin", 34)]
        {
            assert_eq!(from_image(text), Ok(number), "{text}");
        }
        for bad in ["0", "65", "SIGFOO", "", "RTMIN+99", "RTMIN-1", "RTMIN+-1", "-9"] {
            assert!(from_image(bad).is_err(), "{bad}");
        }
        assert_eq!(stop_signal(0, ""), Ok(15));
        assert_eq!(stop_signal(0, "SIGINT"), Ok(2));
        assert_eq!(stop_signal(13, "SIGINT"), Ok(9));
        assert!(stop_signal(0, "nonsense").is_err());
    }
}
