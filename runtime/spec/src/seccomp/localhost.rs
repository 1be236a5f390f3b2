//! Parses Localhost profiles: OCI's JSON, and Docker's superset of it (`archMap`, `includes`, `excludes`,
//! `name`).

use super::{Action, Arch, ArgTest, Op, Profile, Rule};
use crate::{Error, security};
use serde::Deserialize;

/// Maximum number of rules of a profile, and of names of system calls in all of them. The profile of containers-common
/// has 35 rules with some 480 names.
const MAX_RULES: usize = 4096;
const MAX_NAMES: usize = 16_384;
/// Error number if the profile names none.
const EPERM: u16 = 1;
/// SECCOMP_FILTER_FLAG_LOG and _SPEC_ALLOW (linux/seccomp.h).
const FLAG_LOG: u32 = 2;
const FLAG_SPEC_ALLOW: u32 = 4;
/// The kernel truncates larger error numbers (MAX_ERRNO).
const MAX_ERRNO: u16 = 4095;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    architectures: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    arch_map: Vec<RawArch>,
    #[serde(default, deserialize_with = "null_is_empty")]
    flags: Vec<String>,
    listener_path: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    syscalls: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArch {
    architecture: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    sub_architectures: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default, deserialize_with = "null_is_empty")]
    args: Vec<RawArg>,
    includes: Option<RawFilter>,
    excludes: Option<RawFilter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFilter {
    #[serde(default, deserialize_with = "null_is_empty")]
    caps: Vec<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Go encodes an empty list as null.
fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The facts that `includes` and `excludes` are compared with.
struct Facts {
    arch: Arch,
    caps: u64,
    kernel: (u32, u32),
}

/// Parses a profile for a process with these capabilities (bounding set) on this architecture and kernel. The
/// caller limits the size of the text.
pub fn parse_localhost(text: &[u8], arch: Arch, caps: u64, kernel: (u32, u32)) -> Result<Profile, Error> {
    let raw: RawProfile = serde_json::from_slice(text).map_err(|error| {
        Error::invalid("seccomp profile", error.to_string(), "must be a profile in OCI's JSON")
    })?;
    let facts = Facts { arch, caps, kernel };
    let mut flags = 0;
    for flag in &raw.flags {
        flags |= match flag.as_str() {
            // TSYNC synchronises threads; a filter is loaded before there are any, so it has no effect.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => FLAG_LOG,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => FLAG_SPEC_ALLOW,
            other => {
                return Err(Error::unsupported(
                    "flags",
                    other,
                    "only TSYNC, LOG and SPEC_ALLOW are implemented",
                ));
            }
        };
    }
    if let Some(path) = raw.listener_path.filter(|path| !path.is_empty()) {
        return Err(Error::unsupported("listenerPath", path, "seccomp notification is not implemented"));
    }
    if raw.syscalls.len() > MAX_RULES {
        return Err(Error::invalid("syscalls", raw.syscalls.len().to_string(), "must be at most 4096 rules"));
    }
    let mut rules = Vec::new();
    let mut count = 0;
    for (at, raw) in raw.syscalls.into_iter().enumerate() {
        let field = format!("syscalls[{at}]");
        count += raw.names.len() + 1;
        if count > MAX_NAMES {
            return Err(Error::invalid(field, count.to_string(), "must be at most 16384 names"));
        }
        rule(&field, raw, &facts, &mut rules)?;
    }
    Ok(Profile {
        default: action("defaultAction", &raw.default_action, raw.default_errno_ret)?,
        arches: arches(raw.architectures, raw.arch_map, arch)?,
        rules,
        flags,
    })
}

fn rule(field: &str, raw: RawRule, facts: &Facts, rules: &mut Vec<Rule>) -> Result<(), Error> {
    let mut names = raw.names;
    match raw.name.filter(|name| !name.is_empty()) {
        Some(name) if !names.is_empty() => {
            return Err(Error::invalid(format!("{field}.name"), name, "must not be set beside names"));
        }
        Some(name) => names.push(name),
        None => {}
    }
    let letters = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if let Some(name) = names.iter().find(|name| name.is_empty() || name.len() > 64 || !letters(name)) {
        return Err(Error::invalid(format!("{field}.names"), name, "must be names of system calls"));
    }
    let action = action(&format!("{field}.action"), &raw.action, raw.errno_ret)?;
    let mut args = Vec::with_capacity(raw.args.len());
    for (at, arg) in raw.args.iter().enumerate() {
        args.push(test(&format!("{field}.args[{at}]"), arg)?);
    }
    // Every rule is validated before any is skipped, so that a profile is valid or invalid on every node
    // alike.
    let include = match &raw.includes {
        None => true,
        Some(filter) => {
            let fields = format!("{field}.includes");
            let (caps, least) = (caps(&fields, filter)?, kernel(&fields, filter)?);
            caps.into_iter().all(|bit| facts.caps & bit != 0)
                && (filter.arches.is_empty() || names_arch(filter, facts.arch))
                && least.is_none_or(|least| facts.kernel >= least)
        }
    };
    let exclude = match &raw.excludes {
        None => false,
        Some(filter) => {
            let fields = format!("{field}.excludes");
            let (caps, least) = (caps(&fields, filter)?, kernel(&fields, filter)?);
            caps.into_iter().any(|bit| facts.caps & bit != 0)
                || names_arch(filter, facts.arch)
                || least.is_some_and(|least| facts.kernel >= least)
        }
    };
    if !include || exclude {
        return Ok(());
    }
    let repeats = args.iter().enumerate().any(|(at, test)| args[..at].iter().any(|b| b.index == test.index));
    if repeats {
        // Several conditions on the same argument are alternatives, as in runc.
        rules.extend(args.into_iter().map(|test| Rule { names: names.clone(), action, args: vec![test] }));
    } else {
        rules.push(Rule { names, action, args });
    }
    Ok(())
}

fn caps(field: &str, filter: &RawFilter) -> Result<Vec<u64>, Error> {
    let bit = |name: &String| {
        let unknown = || Error::invalid(format!("{field}.caps"), name, "must be names of capabilities");
        security::bit(name).ok_or_else(unknown)
    };
    filter.caps.iter().map(bit).collect()
}

/// The names of architectures in Docker's profiles.
fn names_arch(filter: &RawFilter, arch: Arch) -> bool {
    let own = match arch {
        Arch::X86_64 => "amd64",
        Arch::X86 => "x86",
        Arch::X32 => "x32",
        Arch::Aarch64 => "arm64",
        Arch::Arm => "arm",
    };
    filter.arches.iter().any(|name| name == own)
}

fn kernel(field: &str, filter: &RawFilter) -> Result<Option<(u32, u32)>, Error> {
    let Some(text) = filter.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = text.split_once('.').and_then(|(major, minor)| {
        let minor = minor.split('.').next().unwrap_or_default();
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    match parsed {
        Some(version) => Ok(Some(version)),
        None => Err(Error::invalid(format!("{field}.minKernel"), text, "must be a version such as 4.8")),
    }
}

fn test(field: &str, raw: &RawArg) -> Result<ArgTest, Error> {
    let index = u8::try_from(raw.index).ok().filter(|index| *index < 6);
    let Some(index) = index else {
        return Err(Error::invalid(format!("{field}.index"), raw.index.to_string(), "must be 0 to 5"));
    };
    let (op, value) = match raw.op.as_str() {
        "SCMP_CMP_NE" => (Op::Ne, raw.value),
        "SCMP_CMP_LT" => (Op::Lt, raw.value),
        "SCMP_CMP_LE" => (Op::Le, raw.value),
        "SCMP_CMP_EQ" => (Op::Eq, raw.value),
        "SCMP_CMP_GE" => (Op::Ge, raw.value),
        "SCMP_CMP_GT" => (Op::Gt, raw.value),
        "SCMP_CMP_MASKED_EQ" => (Op::Masked(raw.value), raw.value_two),
        other => {
            return Err(Error::invalid(
                format!("{field}.op"),
                other,
                "must be an operator such as SCMP_CMP_EQ",
            ));
        }
    };
    Ok(ArgTest { index, op, value })
}

fn action(field: &str, name: &str, errno: Option<u32>) -> Result<Action, Error> {
    let number = || match errno {
        None => Ok(EPERM),
        Some(given) => u16::try_from(given).ok().filter(|number| *number <= MAX_ERRNO).ok_or_else(|| {
            Error::invalid(format!("{field} errnoRet"), given.to_string(), "must be 0 to 4095")
        }),
    };
    match name {
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_LOG" => Ok(Action::Log),
        "SCMP_ACT_ERRNO" => number().map(Action::Errno),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
        "SCMP_ACT_TRAP" => Ok(Action::Trap),
        "SCMP_ACT_TRACE" => number().map(Action::Trace),
        "SCMP_ACT_NOTIFY" => Err(Error::unsupported(field, name, "seccomp notification is not implemented")),
        other => Err(Error::invalid(field, other, "must be an action such as SCMP_ACT_ERRNO")),
    }
}

/// The native architecture, and those of its family that the profile lists. Others cannot occur on this
/// machine.
fn arches(listed: Vec<String>, map: Vec<RawArch>, native: Arch) -> Result<Vec<Arch>, Error> {
    if !listed.is_empty() && !map.is_empty() {
        return Err(Error::invalid("archMap", "", "must not be set beside architectures"));
    }
    let mut wanted = listed;
    for entry in map {
        if scmp_arch(&entry.architecture) == Some(native) {
            wanted.extend(entry.sub_architectures);
        }
    }
    let mut arches = vec![native];
    for name in wanted {
        if !name.starts_with("SCMP_ARCH_") {
            return Err(Error::invalid("architectures", name, "must be names such as SCMP_ARCH_X86_64"));
        }
        let known = scmp_arch(&name).filter(|arch| native.family().contains(arch) && !arches.contains(arch));
        arches.extend(known);
    }
    Ok(arches)
}

fn scmp_arch(name: &str) -> Option<Arch> {
    Some(match name {
        "SCMP_ARCH_X86_64" => Arch::X86_64,
        "SCMP_ARCH_X86" => Arch::X86,
        "SCMP_ARCH_X32" => Arch::X32,
        "SCMP_ARCH_AARCH64" => Arch::Aarch64,
        "SCMP_ARCH_ARM" => Arch::Arm,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Profile, Error> {
        parse_localhost(text.as_bytes(), Arch::X86_64, security::DEFAULT, (5, 14))
    }

    #[test]
    fn docker_shape() {
        let profile = parse(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
            "syscalls":[
             {"names":["read","write"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
             {"name":"chroot","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_CHROOT"]}},
             {"name":"mount","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
             {"name":"bpf","action":"SCMP_ACT_ERRNO","errnoRet":22,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
             {"name":"ptrace","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
             {"name":"kexec_load","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.1"}},
             {"name":"arch_prctl","action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64"]}},
             {"name":"set_tls","action":"SCMP_ACT_ALLOW","includes":{"arches":["arm64"]}},
             {"name":"clone","action":"SCMP_ACT_ALLOW",
              "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
             {"name":"personality","action":"SCMP_ACT_ALLOW",
              "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}
            ]}"#,
        )
        .unwrap();
        assert_eq!(profile.default, Action::Errno(38));
        assert_eq!(profile.arches, [Arch::X86_64, Arch::X86]);
        let names: Vec<&str> =
            profile.rules.iter().flat_map(|rule| &rule.names).map(String::as_str).collect();
        assert_eq!(
            names,
            ["read", "write", "chroot", "bpf", "ptrace", "arch_prctl", "clone", "personality", "personality"]
        );
        assert_eq!(profile.rules[2].action, Action::Errno(22));
        let masked = ArgTest { index: 0, op: Op::Masked(0x7e02_0000), value: 0 };
        assert_eq!(profile.rules[5].args, [masked]);
    }

    #[test]
    fn oci_shape_and_refusals() {
        let minimal =
            parse(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X32"]}"#).unwrap();
        assert_eq!((minimal.default, minimal.arches.len(), minimal.flags), (Action::Allow, 2, 0));
        let flags = ["TSYNC", "LOG", "SPEC_ALLOW"].map(|name| format!("\"SECCOMP_FILTER_FLAG_{name}\""));
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[{}]}}"#, flags.join(","));
        assert_eq!(parse(&text).unwrap().flags, 6);
        for (text, field, kind) in [
            (r#"{"defaultAction":"ALLOW"}"#, "defaultAction", ErrorKind::Invalid),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "defaultAction", ErrorKind::Unsupported),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}"#,
                "listenerPath",
                ErrorKind::Unsupported,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#,
                "flags",
                ErrorKind::Unsupported,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["x86"]}"#,
                "architectures",
                ErrorKind::Invalid,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a b","action":"SCMP_ACT_ALLOW"}]}"#,
                "syscalls[0].names",
                ErrorKind::Invalid,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "syscalls[0].args[0].index",
                ErrorKind::Invalid,
            ),
            // Also where another condition decides already.
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"],"minKernel":"new"}}]}"#,
                "syscalls[0].includes.minKernel",
                ErrorKind::Invalid,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","excludes":{"arches":["amd64"],"minKernel":"new"}}]}"#,
                "syscalls[0].excludes.minKernel",
                ErrorKind::Invalid,
            ),
            ("[]", "seccomp profile", ErrorKind::Invalid),
            ("", "seccomp profile", ErrorKind::Invalid),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.field(), error.kind()), (field, kind), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse_localhost(&text, Arch::Aarch64, 0, (6, 1)));
        }
    }
}
