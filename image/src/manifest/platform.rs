//! Platforms: what this node runs, best first, and what images call it. Names and their synonyms are containerd's
//! (its module `platforms`), variants of amd64 those of the x86-64 psABI.

/// A platform as an index or a config states it, in the names that Go uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// With synonyms replaced, in any case. No operating system means Linux.
    pub(crate) fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let [os, architecture, variant] = [os, architecture, variant].map(str::to_ascii_lowercase);
        let os = match os.as_str() {
            "" => "linux",
            "macos" => "darwin",
            os => os,
        };
        // Variants have a `v`, which some tools leave out.
        let number = variant.strip_prefix('v').unwrap_or(&variant);
        let (architecture, variant) = match architecture.as_str() {
            "i386" => ("386", String::new()),
            "x86_64" | "x86-64" | "amd64" => match number {
                "" | "1" => ("amd64", String::new()),
                number => ("amd64", format!("v{number}")),
            },
            "aarch64" | "arm64" => match number {
                "" | "8" | "8.0" => ("arm64", String::new()),
                "9.0" => ("arm64", "v9".to_owned()),
                number => ("arm64", format!("v{number}")),
            },
            "armhf" => ("arm", "v7".to_owned()),
            "armel" => ("arm", "v6".to_owned()),
            "arm" if number.is_empty() => ("arm", "v7".to_owned()),
            "arm" => ("arm", format!("v{number}")),
            other => (other, variant),
        };
        Self { os: os.to_owned(), architecture: architecture.to_owned(), variant }
    }

    pub(crate) fn is_linux(&self) -> bool {
        self.os == "linux"
    }

    pub(crate) fn has_architecture(&self) -> bool {
        !self.architecture.is_empty()
    }
}

/// `os/architecture` or `os/architecture/variant`.
impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// The platforms that a node runs, best first.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    platforms: Vec<Platform>,
}

impl Host {
    /// This machine's.
    pub(crate) fn this() -> Self {
        Self::of(std::env::consts::ARCH, amd64_level())
    }

    /// Those of an architecture, by Rust's name for it. `level` is the highest variant of amd64 that the processor has,
    /// 1 to 4.
    pub(super) fn of(architecture: &str, level: u8) -> Self {
        let linux = |architecture: &str, variant: &str| Platform::new("linux", architecture, variant);
        let arm = || ["v8", "v7", "v6", "v5"].map(|variant| linux("arm", variant));
        let platforms = match architecture {
            "x86_64" => {
                let variants = (1..=level).rev().map(|level| linux("amd64", &format!("v{level}")));
                variants.chain([linux("386", "")]).collect()
            }
            // Processors with v9 are not told apart: images of v9 alone are not known.
            "aarch64" => [linux("arm64", "")].into_iter().chain(arm()).collect(),
            "arm" => arm().into_iter().skip(1).collect(),
            "x86" => vec![linux("386", "")],
            "powerpc64" if cfg!(target_endian = "little") => vec![linux("ppc64le", "")],
            "powerpc64" => vec![linux("ppc64", "")],
            "loongarch64" => vec![linux("loong64", "")],
            other => vec![linux(other, "")],
        };
        Self { platforms }
    }

    /// How well an image for this platform runs here: 0 is best; `None` is not at all.
    pub(crate) fn rank(&self, platform: &Platform) -> Option<usize> {
        self.platforms.iter().position(|own| own == platform)
    }

    /// A rank that is worse than all.
    pub(crate) fn worst(&self) -> usize {
        self.platforms.len()
    }
}

/// The best platform, for messages.
impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.platforms.first().map_or(Ok(()), |best| best.fmt(f))
    }
}

/// The highest level of the x86-64 psABI (its table of micro-architecture levels) that this processor and kernel have.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> u8 {
    // Each asks cpuid, and xgetbv for what the kernel must save.
    macro_rules! has {
        ($($feature:tt)*) => { $(std::arch::is_x86_feature_detected!($feature))&&* };
    }
    // Not asked for: LAHF and SAHF of v2, and OSXSAVE of v3, which no processor with the rest is without.
    if !has!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3") {
        1
    } else if !has!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe") {
        2
    } else if !has!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
        3
    } else {
        4
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(host: &Host, architecture: &str, variant: &str) -> Option<usize> {
        host.rank(&Platform::new("linux", architecture, variant))
    }

    #[test]
    fn synonyms_mean_the_same() {
        for (given, want) in [
            (["Linux", "x86_64", ""], "linux/amd64"),
            (["", "X86-64", "v1"], "linux/amd64"),
            (["linux", "amd64", "V3"], "linux/amd64/v3"),
            (["linux", "amd64", "2"], "linux/amd64/v2"),
            (["linux", "aarch64", "8"], "linux/arm64"),
            (["linux", "arm64", "v8.0"], "linux/arm64"),
            (["linux", "arm64", "9.0"], "linux/arm64/v9"),
            (["linux", "armhf", "v5"], "linux/arm/v7"),
            (["linux", "armel", ""], "linux/arm/v6"),
            (["linux", "arm", ""], "linux/arm/v7"),
            (["linux", "arm", "6"], "linux/arm/v6"),
            (["linux", "i386", "x"], "linux/386"),
            (["macOS", "arm64", ""], "darwin/arm64"),
            (["linux", "riscv64", "rva23"], "linux/riscv64/rva23"),
            (["unknown", "unknown", ""], "unknown/unknown"),
        ] {
            let [os, architecture, variant] = given;
            assert_eq!(Platform::new(os, architecture, variant).to_string(), want, "{given:?}");
        }
    }

    #[test]
    fn the_best_variant_that_the_processor_has_comes_first() {
        let v3 = Host::of("x86_64", 3);
        let ranks = ["v3", "v2", "v1", ""].map(|variant| rank(&v3, "amd64", variant));
        assert_eq!(ranks, [Some(0), Some(1), Some(2), Some(2)]);
        assert_eq!(rank(&v3, "amd64", "v4"), None);
        assert_eq!(rank(&v3, "386", ""), Some(3));
        assert_eq!((v3.worst(), v3.to_string()), (4, "linux/amd64/v3".to_owned()));
        let v1 = Host::of("x86_64", 1);
        assert_eq!((rank(&v1, "amd64", ""), rank(&v1, "amd64", "v2")), (Some(0), None));
        let arm64 = Host::of("aarch64", 1);
        assert_eq!(rank(&arm64, "arm64", "v8"), Some(0));
        assert_eq!((rank(&arm64, "arm64", "v9"), rank(&arm64, "arm", "v7")), (None, Some(2)));
        assert_eq!(rank(&Host::of("arm", 1), "arm", ""), Some(0));
        assert_eq!(rank(&Host::of("riscv64", 1), "riscv64", ""), Some(0));
        assert_eq!(rank(&Host::of("loongarch64", 1), "loong64", ""), Some(0));
    }

    #[test]
    fn this_processor_runs_its_own_architecture() {
        let host = Host::this();
        assert!(host.rank(&Platform::new("linux", std::env::consts::ARCH, "")).is_some(), "{host}");
        #[cfg(target_arch = "x86_64")]
        {
            // The kernel lists what it lets programs use.
            let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
            let has = |flags: &[&str]| {
                flags.iter().all(|flag| cpuinfo.split_whitespace().any(|word| word == *flag))
            };
            let v2 = has(&["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]);
            let v3 = v2 && has(&["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]);
            let v4 = v3 && has(&["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]);
            assert_eq!(amd64_level(), 1 + u8::from(v2) + u8::from(v3) + u8::from(v4));
        }
    }
}
