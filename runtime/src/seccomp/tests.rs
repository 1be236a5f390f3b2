use super::*;

fn program(compiler: &Compiler, profile: &SeccompProfile, caps: u64) -> Arc<Compiled> {
    compiler.program(profile, caps).unwrap().expect("a program")
}

/// Evaluates a filter for a system call as the kernel would: the subset of classic BPF that libseccomp emits.
fn run_filter(compiled: &Compiled, arch: u32, call: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(call.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut at, mut acc) = (0usize, 0u32);
    loop {
        let word = compiled.program.instructions[at];
        let [c0, c1, jt, jf, k @ ..] = word.to_le_bytes();
        let (code, k) = (u16::from_le_bytes([c0, c1]), u32::from_le_bytes(k));
        let jump = |yes: bool| 1 + usize::from(if yes { jt } else { jf });
        at += match code {
            0x20 => {
                let from = usize::try_from(k).unwrap();
                acc = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                1
            }
            0x54 => {
                acc &= k;
                1
            }
            0x05 => 1 + usize::try_from(k).unwrap(),
            0x15 => jump(acc == k),
            0x25 => jump(acc > k),
            0x35 => jump(acc >= k),
            0x45 => jump(acc & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        };
    }
}

const X86_64: u32 = 0xc000_003e;
const ALLOW: u32 = 0x7fff_0000;
const fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

#[test]
#[cfg(target_arch = "x86_64")]
fn default_filter_follows_the_table() {
    let compiler = Compiler::new();
    let none = program(&compiler, &SeccompProfile::RuntimeDefault, spec::security::DEFAULT);
    assert!(none.program.instructions.len() < 2048, "{}", none.program.instructions.len());
    let ask = |call, arg0: u64| run_filter(&none, X86_64, call, [arg0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(0, 0), ALLOW, "read");
    assert_eq!(ask(165, 0), errno(1), "mount");
    assert_eq!(ask(272, 0x1000_0000), errno(1), "unshare");
    assert_eq!(ask(435, 0), errno(38), "clone3");
    assert_eq!(ask(56, 0x11), ALLOW, "clone of a process");
    assert_eq!(ask(56, 0x003d_0f00), ALLOW, "clone of a thread");
    for flag in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
        assert_eq!(ask(56, flag | 0x11), errno(1), "clone {flag:#x}");
    }
    assert_eq!(ask(41, 2), ALLOW, "socket AF_INET");
    assert_eq!((ask(41, 37), ask(41, 39), ask(41, 41)), (ALLOW, ALLOW, ALLOW), "other families");
    assert_eq!((ask(41, 38), ask(41, 40)), (errno(97), errno(97)), "socket AF_ALG, AF_VSOCK");
    assert_eq!(ask(335, 0), ALLOW, "uretprobe");
    assert_eq!((ask(135, 8), ask(135, 0x20_0000)), (ALLOW, errno(38)), "personality");
    assert_eq!(ask(425, 0), errno(38), "io_uring_setup");
    assert_eq!(ask(100_000, 0), errno(38), "a call that no kernel knows");
    assert_eq!(run_filter(&none, 0x4000_0003, 21, [0; 6]), errno(1), "mount of a 32-bit program");
    assert_eq!(run_filter(&none, 0xdead_beef, 0, [0; 6]), 0, "another architecture is killed");

    let admin = spec::security::DEFAULT | spec::security::mask_of(&["SYS_ADMIN"]);
    let admin = program(&compiler, &SeccompProfile::RuntimeDefault, admin);
    for call in [165, 272, 435, 56] {
        assert_eq!(run_filter(&admin, X86_64, call, [u64::MAX; 6]), ALLOW, "{call}");
    }
}

#[test]
fn cache_is_keyed_by_relevant_inputs_and_bounded() {
    let compiler = Compiler::new();
    assert!(compiler.program(&SeccompProfile::Unconfined, 0).unwrap().is_none());
    let first = program(&compiler, &SeccompProfile::RuntimeDefault, 0);
    let chown = spec::security::mask_of(&["CHOWN"]);
    assert!(Arc::ptr_eq(&first, &program(&compiler, &SeccompProfile::RuntimeDefault, chown)));

    let folder = tempfile::tempdir().unwrap();
    for number in 0..40 {
        let path = folder.path().join(format!("{number}.json"));
        let rule = format!(r#"{{"names":["getpid"],"action":"SCMP_ACT_ERRNO","errnoRet":{}}}"#, number + 1);
        std::fs::write(&path, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#))
            .unwrap();
        let profile = SeccompProfile::Localhost(path.to_str().unwrap().to_owned());
        let made = program(&compiler, &profile, 0);
        assert!(Arc::ptr_eq(&made, &program(&compiler, &profile, 0)));
        if cfg!(target_arch = "x86_64") {
            assert_eq!(run_filter(&made, X86_64, 39, [0; 6]), errno(number + 1));
            assert_eq!(run_filter(&made, X86_64, 0, [0; 6]), ALLOW);
        }
        // The key includes the content: a changed file is another profile.
        std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        assert!(!Arc::ptr_eq(&made, &program(&compiler, &profile, 0)));
    }
    assert_eq!(compiler.cached.lock().unwrap().len(), MAX_CACHED);
}

#[test]
fn ready_is_what_was_compiled_before() {
    let compiler = Compiler::new();
    let (default, caps) = (SeccompProfile::RuntimeDefault, spec::security::DEFAULT);
    assert!(compiler.ready(&SeccompProfile::Unconfined, caps).is_some_and(|program| program.is_none()));
    assert!(compiler.ready(&default, caps).is_none(), "not compiled yet");
    let compiled = program(&compiler, &default, caps);
    let ready = compiler.ready(&default, caps).flatten().expect("compiled");
    assert!(Arc::ptr_eq(&compiled, &ready));
    assert!(compiler.ready(&default, u64::MAX).is_none(), "other capabilities have another program");
    assert!(
        compiler.ready(&SeccompProfile::Localhost("/no/such".to_owned()), caps).is_none(),
        "a file must be read"
    );
}

#[test]
fn localhost_errors_name_the_file() {
    let compiler = Compiler::new();
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path| {
        let profile = SeccompProfile::Localhost(path.to_str().unwrap().to_owned());
        let error = compiler.program(&profile, 0).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    };
    refused(&folder.path().join("absent.json"));
    refused(folder.path());
    let bad = folder.path().join("bad.json");
    std::fs::write(&bad, r#"{"defaultAction":"SCMP_ACT_NOPE"}"#).unwrap();
    assert!(refused(&bad).contains("defaultAction"));
    std::fs::write(&bad, vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(refused(&bad).contains("1 MiB"));
}

#[test]
fn containers_commons_profile_compiles() {
    let compiler = Compiler::new();
    let path = "/usr/share/containers/seccomp.json";
    assert!(std::path::Path::new(path).exists(), "Debian package golang-github-containers-common");
    let made = program(&compiler, &SeccompProfile::Localhost(path.to_owned()), spec::security::DEFAULT);
    assert!(made.program.instructions.len() > 500);
}
